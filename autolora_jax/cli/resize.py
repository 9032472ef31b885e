"""`autolora resize`."""

from collections import Counter
from pathlib import Path

from autolora_jax.cli.console import reported
from autolora_jax.cli.extract import ranks, require_new, save
from autolora_jax.display import Display, say
from autolora_jax.lora import Fits, Truncation, resize
from autolora_jax.settings.programs.resize import Resize
from autolora_jax.weights.families import family_of
from autolora_jax.weights.files import FLOATS, open_tensors
from autolora_jax.weights.lora.base_model import read_alone
from autolora_jax.weights.lora.dialects import PEFT, naming_style
from autolora_jax.weights.lora.export import DTYPES, SPEC_HASH
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.metadata import listing
from autolora_jax.weights.lora.peft import HEADER_KEY
from autolora_jax.weights.lora.source import find_lora

# Entries of a header that are no longer true of a LoRA with other ranks.
STALE = frozenset({SPEC_HASH, "ss_network_alpha", "ss_network_args", "ss_network_dim"})


def run(asked: Resize) -> None:
    """Writes the LoRA at its new ranks, and says what it misses."""
    with reported(exit_code=2):
        truncation = Truncation(asked.rank, asked.max_error, asked.conv_rank)
    path = find_lora(asked.lora)
    own_dialect, own_dtype = _own(path)
    dialect, dtype = asked.dialect or own_dialect, asked.save_dtype or own_dtype
    require_new(asked.out, dialect, dtype)
    networks, file = read_alone(path, asked.model)
    with Display() as display:
        trees, fits = resize(file, truncation, display.row("Resize"))
    say(listing(str(path), fits.rows()))
    save(asked.out, trees, dialect, _header(file, fits), networks[family_of(networks).denoiser], dtype)


def _own(path: Path) -> tuple[str, str]:
    """(dialect, dtype) of a LoRA file, of those that are written: the nearest ones."""
    with open_tensors(path) as file:
        [(dtype, _)] = Counter(info.dtype for info in file.tensors.values()).most_common(1) or [("F32", 0)]
        name = FLOATS[dtype].name if dtype in FLOATS else ""
        return "peft" if PEFT in naming_style(file.tensors) else "kohya", name if name in DTYPES else "float32"


def _header(file: LoraFile, fits: Fits) -> dict[str, str]:
    """The header of a resized LoRA: what the file's says, as far as it is still true."""
    kept = {key: value for key, value in file.metadata.items() if key not in STALE | {HEADER_KEY}}
    comments = [kept.get("ss_training_comment", ""), f"resized from {file.path.name}, to {fits.error:.3g} of it"]
    said = "; ".join(comment for comment in comments if comment not in ("", "None"))
    return {**kept, "ss_training_comment": said, **ranks(fits)}
