"""Writing a .safetensors file: whole or not at all, the same bytes for the same tensors."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes {name: array} and the header's entries; a file that was there is replaced. Raises OSError."""
    content = save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, dict(metadata or {}))
    # Not safetensors' save_file: its files are for their owner's eyes only (mode 0600).
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_bytes(_sorted_entries(content))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _sorted_entries(content: bytes) -> bytes:
    """The file with its header's entries sorted: safetensors shuffles them, and the same tensors should be one file."""
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    if entries := header.pop("__metadata__", None):
        header = {"__metadata__": dict(sorted(entries.items())), **header}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(start - 8)
    assert len(text) == start - 8, "both write JSON without spaces"
    return content[:8] + text + content[start:]
