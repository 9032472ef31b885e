"""SHA-256 of pictures, of which each is read once: what is known of a file holds while its size and times stay."""

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from autolora_jax import files
from autolora_jax.weights.files import sha256_of

THREADS = 4  # files that are read at once


def sha256s(paths: Sequence[Path], kept: Path) -> list[str]:
    """The SHA-256 of each file. kept: where they are noted for the next time. Raises WeightsError, OSError."""
    before = _read(kept)
    stamps = {str(path.resolve()): _stamp(path) for path in paths}

    def known(name: str) -> list[object]:
        stamp, noted = stamps[name], before.get(name)
        if isinstance(noted, list) and noted[:-1] == stamp:
            return noted
        return [*stamp, sha256_of(Path(name))]  # stamped before: what changes meanwhile shows

    with ThreadPoolExecutor(THREADS) as pool:
        after = dict(zip(stamps, pool.map(known, stamps), strict=True))
    if after != before:
        kept.parent.mkdir(parents=True, exist_ok=True)
        files.write(kept, json.dumps(after, indent=0) + "\n")
    return [str(after[str(path.resolve())][-1]) for path in paths]


def _stamp(path: Path) -> list[object]:
    """Size, and when it was written or renamed; tools may set the one back, and not the other."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(kept: Path) -> dict[str, list[object]]:
    try:
        found = json.loads(kept.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
