"""What can be said of a LoRA file before it is made."""

from pathlib import Path

from autolora_jax.weights.lora.export import DIALECTS, DTYPES
from autolora_jax.weights.writing import require_writable


def require_saveable(out: Path, dialect: str, dtype: str) -> None:
    """Raises the ValueError or WeightsError that saving a LoRA there would raise, before the work that makes it."""
    if dialect not in DIALECTS:
        raise ValueError(f"dialect {dialect!r} is not known; choose one of {', '.join(DIALECTS)}")
    if dtype not in DTYPES:
        raise ValueError(f"save_dtype {dtype!r} is not known; choose one of {', '.join(DTYPES)}")
    if out.suffix != ".safetensors" or out.is_dir():
        raise ValueError(f"out = {str(out)!r} should be a file that ends in .safetensors")
    require_writable(out.parent)
