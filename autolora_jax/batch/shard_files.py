"""The bytes of a shard: a tar whose every one follows from its pictures and their rows, so that any other is damage.

KEY.png, KEY.json (the picture's row of the manifest), KEY.txt (its prompt), the next picture's …, the end
"""

import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple

_BLANK = tarfile.TarInfo().tobuf(tarfile.USTAR_FORMAT)  # of a file without a name, a time and an owner
_NAME, _SIZE, _CHECKSUM = slice(0, 100), slice(124, 135), slice(148, 154)
_SUM = sum(_BLANK) - sum(_BLANK[_SIZE]) - sum(_BLANK[_CHECKSUM]) - _BLANK[154] + 7 * ord(" ")
_END = 2 * tarfile.BLOCKSIZE
BESIDE = ("json", "txt")  # endings of what stands behind a picture


def header(name: bytes, size: int) -> bytes:
    """As tarfile writes it for a file of this name and so many bytes."""
    octal = b"%011o" % size
    checksum = b"%06o" % (_SUM + sum(name) + sum(octal))
    return b"".join((name, _BLANK[len(name) : 124], octal, _BLANK[135:148], checksum, _BLANK[154:]))


def member(name: str, content: bytes) -> bytes:
    """A file as it stands in a shard."""
    return b"".join((header(name.encode(), len(content)), content, bytes(-len(content) % tarfile.BLOCKSIZE)))


def beside(row: Mapping[str, Any]) -> dict[str, bytes]:
    """What stands behind a picture: ending -> content."""
    return dict(zip(BESIDE, (json.dumps(row).encode(), str(row["prompt"]).encode("utf-8", "replace")), strict=True))


def sample(row: Mapping[str, Any], picture: bytes) -> bytes:
    """A picture with what stands behind it."""
    others = (member(f"{row['key']}.{ending}", content) for ending, content in beside(row).items())
    return b"".join((member(row["member"], picture), *others))


def end(size: int) -> bytes:
    """What ends a shard whose members have so many bytes."""
    return bytes(_END + -(size + _END) % tarfile.RECORDSIZE)


class Member(NamedTuple):
    """A file that is found in a shard. start: of its content, bytes. padded: whether its last block is filled well."""

    name: str
    content: bytes
    start: int
    padded: bool


class Damage(NamedTuple):
    """What is found in place of members."""

    start: int  # bytes
    why: str


def walk(file: IO[bytes], whole: bool = True) -> Iterator[Member | Damage]:
    """All members of a shard in their order, one at a time in memory, and what is wrong in between.

    Behind damage it goes on with the next header that is one. whole: whether there should be an end; a piece has none.
    """
    at = 0
    damage: int | None = None  # where it began
    zeros: int | None = None  # where blocks of zeros began
    while len(block := file.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE:
        if not any(block):
            zeros = at if zeros is None else zeros
            at += len(block)
            continue
        if (found := _parsed(block)) is None:
            damage = min(place for place in (damage, zeros, at) if place is not None)
            at += len(block)
            zeros = None
            continue
        if zeros is not None or damage is not None:
            yield Damage(min(place for place in (damage, zeros) if place is not None), "is no member")
            damage = zeros = None
        name, size = found
        content = file.read(size)
        padding = file.read(-size % tarfile.BLOCKSIZE)
        if len(content) < size:
            yield Damage(at, f"{name} is cut")
            return
        yield Member(name, content, at + len(block), padding == bytes(-size % tarfile.BLOCKSIZE))
        at += len(block) + size + len(padding)
    if damage is not None:
        yield Damage(damage, "is no member")
    elif whole and (zeros is None or zeros + len(end(zeros)) != at + len(block)):
        yield Damage(at if zeros is None else zeros, "is not the end that it should have")
    elif block or (zeros is not None and not whole):
        yield Damage(at, "is no member")


def _parsed(block: bytes) -> tuple[str, int] | None:
    """(name, size) that a header says; None for what is none, or not one that is written here."""
    name, size = block[_NAME].rstrip(b"\0"), block[_SIZE]
    if not re.fullmatch(rb"[0-7]{11}", size) or block != header(name, int(size, 8)):
        return None
    return name.decode("ascii", "replace"), int(size, 8)
