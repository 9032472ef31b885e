"""What the programs that make one LoRA out of others share: checks, the header, the file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autolora_jax.cli.console import say
from autolora_jax.config import JsonConfig
from autolora_jax.lora import Extraction, Fits, save_lora
from autolora_jax.training.header import FAMILIES
from autolora_jax.weights.families import Family
from autolora_jax.weights.lora.export import require_saveable
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.peft import HEADER_KEY

# Entries of a header that are no longer true of a LoRA with other ranks.
STALE = frozenset(
    {
        "modelspec.hash_sha256",
        "ss_network_alpha",
        "ss_network_args",
        "ss_network_dim",
        "sshs_legacy_hash",
        "sshs_model_hash",
    }
)


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


def extracted(found: Extraction, family: Family, out: Path) -> dict[str, str]:
    """The header of an extracted LoRA. Of files it tells the names, not the folders."""
    names = FAMILIES[family.name]
    base, tuned = (Path(name).name for name in (found.base, found.tuned))
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{names.architecture}/lora",
        "modelspec.title": out.stem,
        "ss_sd_model_name": base,
        "ss_base_model_version": names.base_model,
        "ss_network_module": names.module,
        "ss_training_comment": f"the difference of {tuned} and {base}, to {found.fits.error:.3g} of it",
        **_ranks(found.fits),
    }


def resized(file: LoraFile, fits: Fits) -> dict[str, str]:
    """The header of a resized LoRA: what the file's says, as far as it is still true."""
    kept = {key: value for key, value in file.metadata.items() if key not in STALE | {HEADER_KEY}}
    comments = [kept.get("ss_training_comment", ""), f"resized from {file.path.name}, to {fits.error:.3g} of it"]
    said = "; ".join(comment for comment in comments if comment not in ("", "None"))
    return {**kept, "ss_training_comment": said, **_ranks(fits)}


def _ranks(fits: Fits) -> dict[str, str]:
    """sd-scripts' entries; "Dynamic" is its own word for layers of several ranks."""
    rank = str(next(iter(fits.ranks))) if len(fits.ranks) == 1 else "Dynamic"
    return {"ss_network_dim": rank, "ss_network_alpha": rank}
