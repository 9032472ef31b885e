"""What the programs that make one LoRA out of others share: flags of the ranks and of the file, checks, the header."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autolora_jax.cli.console import say
from autolora_jax.cli.flags import option

if TYPE_CHECKING:
    from autolora_jax.config import JsonConfig
    from autolora_jax.lora import Extraction, Fits
    from autolora_jax.weights.families import Family
    from autolora_jax.weights.lora.files import LoraFile

RANKS, FILE = "Ranks", "File"  # their panels in --help

Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="FILE", help="The new .safetensors file.", rich_help_panel=FILE),
]
Dialect = Annotated[
    str,
    option(
        "--dialect",
        panel=FILE,
        default="kohya",
        help="kohya, for A1111, ComfyUI and, but for SD3, diffusers; or peft, for diffusers and ComfyUI.",
    ),
]
SaveDtype = Annotated[
    str,
    option(
        "--save-dtype",
        panel=FILE,
        default="float32",
        help="float32, or float16 or bfloat16 for half the size: they round, to 0.03 % and to 0.2 %.",
    ),
]
MaxError = Annotated[
    float | None,
    option(
        "--max-error",
        panel=RANKS,
        metavar="SHARE",
        help="Let every layer choose: the fewest ranks that miss at most this share of its change (Frobenius norm of "
        "what is missing over that of the change), such as 0.05. Then --rank is the most that a layer gets.",
    ),
]
ConvRank = Annotated[
    int | None,
    option(
        "--conv-rank",
        panel=RANKS,
        default="as --rank",
        help="Instead of --rank for 3x3 convolutions, whose ranks are the largest; 0 leaves them out.",
    ),
]
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


def compute_on_host() -> None:
    """Settings for JAX and numpy, neither of which is imported yet: no accelerator is taken, one core does the work.

    On the matrices of a network LAPACK's threads wait for each other more than they work: an eigendecomposition of
    [1280, 1280] took 0.5 s with two, 0.16 s with one.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def require_new(out: Path, dialect: str, dtype: str) -> None:
    """Raises before the work what saving would raise after it, and FileExistsError for a file that is there."""
    from autolora_jax.weights.lora.export import require_saveable

    if out.exists():
        raise FileExistsError(f"{out} exists; remove it or choose another --out")
    require_saveable(out, dialect, dtype)


def save(
    out: Path, trees: Mapping[str, Any], dialect: str, header: Mapping[str, str], config: "JsonConfig", dtype: str
) -> None:
    """Writes the file and says where it is, and how large."""
    from autolora_jax.lora import save_lora

    save_lora(out, trees, dialect, header, config, dtype)
    say(f"{out.stat().st_size / 1e6:,.1f} MB as {dialect}, {dtype}", "dim")
    print(f"LoRA in {out}")


def extracted(found: "Extraction", family: "Family", out: Path) -> dict[str, str]:
    """The header of an extracted LoRA. Of files it tells the names, not the folders."""
    from autolora_jax.training.header import FAMILIES

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


def resized(file: "LoraFile", fits: "Fits") -> dict[str, str]:
    """The header of a resized LoRA: what the file's says, as far as it is still true."""
    from autolora_jax.weights.lora.peft import HEADER_KEY

    kept = {key: value for key, value in file.metadata.items() if key not in STALE | {HEADER_KEY}}
    comments = [kept.get("ss_training_comment", ""), f"resized from {file.path.name}, to {fits.error:.3g} of it"]
    said = "; ".join(comment for comment in comments if comment not in ("", "None"))
    return {**kept, "ss_training_comment": said, **_ranks(fits)}


def _ranks(fits: "Fits") -> dict[str, str]:
    """sd-scripts' entries; "Dynamic" is its own word for layers of several ranks."""
    rank = str(next(iter(fits.ranks))) if len(fits.ranks) == 1 else "Dynamic"
    return {"ss_network_dim": rank, "ss_network_alpha": rank}
