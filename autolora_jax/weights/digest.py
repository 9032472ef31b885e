"""What a file is called by where files are known by their hashes."""

import hashlib
from collections.abc import Callable
from pathlib import Path

from autolora_jax.weights.errors import WeightsError

OnBytes = Callable[[int, int], None]  # (bytes done, bytes in all)
_CHUNK = 1 << 23


def sha256_of(path: Path, on_bytes: OnBytes | None = None) -> str:
    """The file's sha256, 64 hex digits. It is read piece by piece. Raises WeightsError for an unreadable file."""
    digest, done = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            total = path.stat().st_size
            while piece := file.read(_CHUNK):
                digest.update(piece)
                done += len(piece)
                if on_bytes:
                    on_bytes(done, total)
    except OSError as e:
        raise WeightsError(f"{path} can't be read: {e.strerror}") from None
    return digest.hexdigest()


def autov2(sha256: str) -> str:
    """civitai's AutoV2 of a file: the first ten digits, in capitals."""
    return sha256[:10].upper()
