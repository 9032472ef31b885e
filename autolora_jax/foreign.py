"""What someone else wrote, read within bounds: regular files alone; JSON of no great depth whose numbers are finite.

Who reads other programs' files goes through here, and says in its own words which file it is and what to do.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

MOST_DEPTH = 100  # those who read on recurse, and no format that is read here needs more than 8
MOST_NODES = 2_000_000  # a file of YAML may mean exponentially more than it says
MOST_JSON = 256 << 20  # bytes of a file that is JSON as a whole; the largest that is known, an index of shards, has 3e6
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def check_regular(path: str | os.PathLike[str]) -> os.stat_result:
    """What is known of a regular file, links followed. Raises OSError: for pipes and devices, too, which might never
    come to an end, and for names that no file can have."""
    try:
        found = os.stat(path)
    except ValueError as e:  # a name with a NUL
        raise OSError(errno.EINVAL, f"no file has such a name ({e})", repr(os.fspath(path))[:100]) from None
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind} and no file", os.fspath(path))
    return found


def open_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """A regular file, opened for reading. Raises as check_regular."""
    check_regular(path)
    return Path(path).open("rb")


def read_file(path: str | os.PathLike[str], most: int | None = None) -> bytes:
    """The content of a regular file, of at most so many bytes. Raises as check_regular."""
    size = check_regular(path).st_size
    if most is not None and size > most:
        raise OSError(errno.EFBIG, f"it has {size} bytes, more than the {most} that it may have", os.fspath(path))
    return Path(path).read_bytes()


def read_json_file(path: str | os.PathLike[str]) -> Any:
    """What a file says that is JSON as a whole. Raises OSError, ValueError."""
    return parse_json(read_file(path, MOST_JSON))


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def parse_json(
    content: str | bytes,
    of_pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
    of_constant: Callable[[str], Any] = _no_constant,
) -> Any:
    """What JSON says. of_pairs: what makes an object of its entries, instead of dict. of_constant: and of "NaN",
    "Infinity" and "-Infinity".

    Raises ValueError: by default also for these, which are no JSON, for numbers that no float holds, and for what is
    nested deeper than MOST_DEPTH.
    """
    text = content if isinstance(content, str) else content.decode("utf-8-sig")
    try:
        found = json.loads(text, parse_constant=of_constant, parse_float=_finite, object_pairs_hook=of_pairs)
    except RecursionError:  # the parser counts its levels and stops in time
        raise ValueError(_DEEP) from None
    if text.count("[") + text.count("{") > MOST_DEPTH:
        check_tree(found)
    return found


def parse_object(content: str | bytes) -> dict[str, Any]:
    """The same of JSON that should be an object. Raises ValueError."""
    found = parse_json(content)
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, {{…}}; it holds a {type(found).__name__}")
    return found


def check_tree(value: Any) -> None:
    """Raises ValueError for containers in containers that are too deep, or too many, to be walked through."""
    count = 0
    left: list[tuple[Any, int]] = [([value], 0)]
    while left:
        container, depth = left.pop()
        parts = container.values() if isinstance(container, Mapping) else container
        inner = [part for part in parts if isinstance(part, Mapping | list | tuple)]
        count += len(parts)
        if inner and depth == MOST_DEPTH:
            raise ValueError(_DEEP)
        if count > MOST_NODES:
            raise ValueError(f"it means more than {MOST_NODES} values")
        left += [(part, depth + 1) for part in inner]


_DEEP = f"it is nested more than {MOST_DEPTH} levels deep"


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:40]} is too large a number")
    return value
