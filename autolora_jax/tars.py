"""Tar files, read to their end: of one that is cut or damaged, tarfile takes what comes before that for the whole."""

import tarfile
from collections.abc import Iterator
from typing import IO

_PIECE = 1 << 16  # bytes


def members(file: IO[bytes]) -> Iterator[tuple[tarfile.TarInfo, IO[bytes] | None]]:
    """(what it is, its content; None of what is no regular file) of each member; few are in memory at a time.

    file: opened, and seekable. Raises tarfile.TarError where it is no tar file, is damaged or not whole.
    """
    with tarfile.open(fileobj=file, mode="r:") as tar:
        count = 0
        while (info := tar.next()) is not None:
            count += 1
            yield info, tar.extractfile(info) if info.isreg() else None
            tar.members.clear()  # type: ignore[attr-defined]  # else a million of them stay
        stopped = tar.offset
    file.seek(stopped)
    if not count:
        raise tarfile.ReadError("it holds nothing")
    ending = 0
    while piece := file.read(_PIECE):
        if piece.strip(b"\0"):
            raise tarfile.ReadError(f"what stands at byte {stopped} is no member, and not its end")
        ending += len(piece)
    if ending < tarfile.BLOCKSIZE:
        raise tarfile.ReadError(f"it ends at byte {stopped} without its end mark: it was cut there")
