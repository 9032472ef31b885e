"""`autolora resize`."""

from collections import Counter
from pathlib import Path

from autolora_jax.cli.console import reported, say
from autolora_jax.cli.lora_output import require_new, resized, save
from autolora_jax.cli.progress import Display
from autolora_jax.lora import Truncation, resize
from autolora_jax.settings.programs.resize import Resize
from autolora_jax.weights.families import family_of
from autolora_jax.weights.files import FLOATS, open_tensors
from autolora_jax.weights.lora.base_model import read_alone
from autolora_jax.weights.lora.dialects import PEFT, naming_style
from autolora_jax.weights.lora.export import DTYPES
from autolora_jax.weights.lora.metadata import listing
from autolora_jax.weights.lora.source import find_lora


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
        trees, fits = resize(file, truncation, lambda done, total, what: display.update("Resize", done, total, what))
    say(listing(str(path), fits.rows()))
    save(asked.out, trees, dialect, resized(file, fits), networks[family_of(networks).denoiser], dtype)


def _own(path: Path) -> tuple[str, str]:
    """(dialect, dtype) of a LoRA file, of those that are written: the nearest ones."""
    with open_tensors(path) as file:
        [(dtype, _)] = Counter(info.dtype for info in file.tensors.values()).most_common(1) or [("F32", 0)]
        name = FLOATS[dtype].name if dtype in FLOATS else ""
        return "peft" if PEFT in naming_style(file.tensors) else "kohya", name if name in DTYPES else "float32"
