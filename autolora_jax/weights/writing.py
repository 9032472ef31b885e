"""Writing .safetensors files: whole or not at all, the same bytes for the same tensors; or tensor by tensor."""

import json
import math
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from autolora_jax import files
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import FLOATS
from autolora_jax.weights.rules import Shape


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes {name: array} and the header's entries; a file that was there is replaced. Raises OSError."""
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, dict(metadata or {}))
    # Not safetensors' save_file: its files are for their owner's eyes only (mode 0600).
    files.write(path, _sorted_entries(content))


def _sorted_entries(content: bytes) -> bytes:
    """The file with its header's entries sorted: safetensors shuffles them, and the same tensors should be one file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if entries := header.pop("__metadata__", None):
        header = {"__metadata__": dict(sorted(entries.items())), **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(start - 8)
    assert len(text) == start - 8, "both write JSON without spaces"
    return content[:8] + text + content[start:]


def stream_safetensors(
    path: Path, shapes: Mapping[str, Shape], dtype: np.dtype, tensors: Iterable[tuple[str, np.ndarray]]
) -> None:
    """Writes tensors of one dtype as they come, so that no two need be in memory. Raises OSError.

    shapes: of all tensors, in the order in which they come. The caller removes a file that was not finished.
    """
    [name_of_dtype] = [name for name, known in FLOATS.items() if known == dtype]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}  # without it, transformers 4 reads no file
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": name_of_dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begins at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for expected, (name, tensor) in zip(shapes, tensors, strict=True):
            assert (name, tensor.shape, tensor.dtype) == (expected, tuple(shapes[expected]), dtype)
            file.write(np.ascontiguousarray(tensor).view(np.uint8).data)


def require_writable(folder: Path) -> None:
    """Makes a folder if need be. Raises WeightsError when no file can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise WeightsError(f"{folder} can't be written: {e.strerror or e}; choose another folder") from None
