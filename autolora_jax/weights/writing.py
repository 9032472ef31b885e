"""Writing .safetensors files: whole or not at all, the same bytes for the same tensors; or tensor by tensor."""

import hashlib
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

LEGACY = slice(0x100000, 0x110000)  # bytes of a file that older hashes of A1111 are of


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, hashed: bool = False
) -> None:
    """Writes {name: array} and the header's entries; a file that was there is replaced. Raises OSError.

    hashed: with sd-scripts' hashes of the tensors among the entries, by which A1111 and civitai know a LoRA.
    """
    entries = dict(metadata or {})
    of_training = {name: value for name, value in entries.items() if name.startswith("ss_")}
    content = memoryview(save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, of_training))
    start = 8 + int.from_bytes(content[:8], "little")
    if hashed:
        entries |= _hashes(content, start)
    header = json.loads(bytes(content[8:start]))
    header.pop("__metadata__", None)
    # Not safetensors' save_file: it shuffles the entries, and the same tensors should be one file; and its files are
    # for their owner's eyes only (mode 0600).
    with files.writing(path) as file:
        file.write(_header({"__metadata__": dict(sorted(entries.items())), **header} if entries else header))
        file.write(content[start:])


def _hashes(content: memoryview, start: int) -> dict[str, str]:
    """Of a file whose header has the entries of its training alone, and whose data begins at `start`.

    Source: sd-scripts library/train_util.py precalculate_safetensors_hashes.
    """
    legacy = hashlib.sha256(content[LEGACY]).hexdigest()[:8]
    return {"sshs_model_hash": hashlib.sha256(content[start:]).hexdigest(), "sshs_legacy_hash": legacy}


def _header(entries: Mapping[str, object]) -> bytes:
    """A file's header, after which the data begins at a multiple of 8 bytes."""
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


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
    with path.open("wb") as file:
        file.write(_header(header))
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
