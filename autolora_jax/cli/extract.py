"""`autolora extract`, and what it shares with `resize`, which makes one LoRA out of another: checks, the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolora_jax.cli.console import reported
from autolora_jax.config import JsonConfig
from autolora_jax.display import Display, say
from autolora_jax.lora import Extraction, Fits, Truncation, extract, save_lora
from autolora_jax.settings.programs.extract import CEILING, RANK, Extract
from autolora_jax.training.header import Names, names_of
from autolora_jax.weights.checkpoint import open_checkpoint
from autolora_jax.weights.lora.export import require_saveable


def run(asked: Extract) -> None:
    """Makes a LoRA of the difference of two models, and says what it misses."""
    usual = RANK if asked.max_error is None else CEILING
    with reported(exit_code=2):
        truncation = Truncation(usual if asked.rank is None else asked.rank, asked.max_error, asked.conv_rank)
    require_new(asked.out, asked.dialect, asked.save_dtype)
    before, after = (open_checkpoint(source, variant=asked.variant) for source in (asked.base, asked.tuned))
    with Display() as display:
        trees, found = extract(before, after, truncation, display.row("Compare"))
    say(str(found))
    names = names_of(before.family.name, before.networks[before.family.denoiser])
    header = _header(found, names, asked.out)
    save(asked.out, trees, asked.dialect, header, before.networks[before.family.denoiser], asked.save_dtype)


def _header(found: Extraction, names: Names, out: Path) -> dict[str, str]:
    """The header of an extracted LoRA. Of files it tells the names, not the folders."""
    base, tuned = (Path(name).name for name in (found.base, found.tuned))
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{names.architecture}/lora",
        "modelspec.title": out.stem,
        "ss_sd_model_name": base,
        "ss_base_model_version": names.base_model,
        "ss_network_module": names.module,
        "ss_training_comment": f"the difference of {tuned} and {base}, to {found.fits.error:.3g} of it",
        **ranks(found.fits),
    }


def require_new(out: Path, dialect: str, dtype: str) -> None:
    """Raises before the work what saving would raise after it, and FileExistsError for a file that is there."""
    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")
    require_saveable(out, dialect, dtype)


def save(
    out: Path, trees: Mapping[str, Any], dialect: str, header: Mapping[str, str], config: JsonConfig, dtype: str
) -> None:
    """Writes the file and says where it is, and how large."""
    save_lora(out, trees, dialect, header, config, dtype)
    say(f"{out.stat().st_size / 1e6:,.1f} MB as {dialect}, {dtype}", "dim")
    print(f"LoRA in {out}")


def ranks(fits: Fits) -> dict[str, str]:
    """sd-scripts' entries; "Dynamic" is its own word for layers of several ranks."""
    rank = str(next(iter(fits.ranks))) if len(fits.ranks) == 1 else "Dynamic"
    return {"ss_network_dim": rank, "ss_network_alpha": rank}
