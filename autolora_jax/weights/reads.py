"""Which bytes a load has read, for those who promised certain ones.

A file that was opened is hashed as it was opened, once all has been read: what its name means by then does not matter,
and what was written into it meanwhile shows. Files that other libraries read by their names are hashed by them.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import BinaryIO

from autolora_jax.weights.errors import WeightsError

_THREADS = 4  # files that are hashed at once
_PIECE = 1 << 20  # bytes
_Inode = tuple[Path, int, int]


class Reads:
    """Files that are read."""

    def __init__(self) -> None:
        self._opened: dict[_Inode, BinaryIO] = {}
        self._read: dict[_Inode, None] = {}
        self._named: dict[Path, None] = {}

    def opened(self, path: Path, file: BinaryIO) -> Callable[[], None]:
        """Keeps an opened file; to be called when something of it is read."""
        stat = os.fstat(file.fileno())
        key = path, stat.st_dev, stat.st_ino
        if key not in self._opened:
            self._opened[key] = os.fdopen(os.dup(file.fileno()), "rb")
        return lambda: self._read.setdefault(key)

    def named(self, paths: Iterable[Path]) -> None:
        """Files that others read."""
        self._named |= dict.fromkeys(paths)

    def sha256s(self) -> list[tuple[Path, str]]:
        """(path, SHA-256) of each file that was read. Raises WeightsError for one that is gone."""
        with ThreadPoolExecutor(_THREADS) as pool:
            opened = pool.map(lambda key: (key[0], _sha256(self._opened[key])), self._read)
            return [*opened, *pool.map(_by_name, self._named)]

    def close(self) -> None:
        for file in self._opened.values():
            file.close()


_NOTED: ContextVar[Reads | None] = ContextVar("reads", default=None)


@contextmanager
def noted() -> Iterator[Reads]:
    """What is read in the block, by its thread and by those that read what it has opened."""
    reads = Reads()
    before = _NOTED.set(reads)
    try:
        yield reads
    finally:
        _NOTED.reset(before)
        reads.close()


def opened(path: Path, file: BinaryIO) -> Callable[[], None]:
    """What has to be called when something of an opened file is read."""
    reads = _NOTED.get()
    return reads.opened(path, file) if reads else lambda: None


def named(paths: Callable[[], Iterable[Path]]) -> None:
    """Notes files that are read by other libraries. paths: asked only where that is wanted."""
    if reads := _NOTED.get():
        reads.named(paths())


def _sha256(file: BinaryIO) -> str:
    file.seek(0)
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _by_name(path: Path) -> tuple[Path, str]:
    try:
        with path.open("rb") as file:
            return path, _sha256(file)
    except OSError as e:
        raise WeightsError(f"{path} can't be read any more: {e.strerror}") from None
