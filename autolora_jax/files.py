"""Files that appear whole or not at all, whoever else writes them and whenever the program is killed."""

import errno
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LITTER = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini", re.IGNORECASE)


def is_litter(name: str) -> bool:
    """Whether a file is what file browsers leave beside others, which is nobody's."""
    return _LITTER.fullmatch(name) is not None


def files_in(folder: Path) -> list[Path]:
    """The files of a folder, sorted, without litter and those in folders of it. Raises OSError."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not is_litter(path.name))


@contextmanager
def writing(
    path: Path, *, unfinished: Path | None = None, overwrite: bool = True, synced: bool = False
) -> Iterator[IO[bytes]]:
    """A new file, which appears, or replaces the old one, when the block ends well; else nothing of it is left.

    unfinished: an existing folder, of the same disk, where it is until then; None: beside it, by a hidden name. Only a
    killed program leaves that behind. synced: on the disk before it appears, whatever happens to the machine.
    Raises FileExistsError if there is such a file and `overwrite` is false, OSError if it can't be written.
    """
    # No two programs or threads share it. Not tempfile's: its files are for their owner's eyes only (mode 0600).
    temporary = (unfinished or path.parent) / f".{path.name}.{uuid.uuid4().hex[:12]}.part"
    try:
        with temporary.open("wb") as file:
            yield file
            if synced:
                file.flush()
                os.fsync(file.fileno())
        if overwrite:
            temporary.replace(path)
        else:
            _move_to_new(temporary, path)
    except OSError as e:
        if e.errno is None or e.filename not in (None, str(temporary)):
            raise
        raise OSError(e.errno, e.strerror, str(path)) from None  # the name that the caller knows
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: str | bytes, *, overwrite: bool = True) -> None:
    """Writes a file whole; text as UTF-8, lone surrogates as question marks. Raises as `writing`."""
    with writing(path, overwrite=overwrite) as file:
        file.write(content.encode("utf-8", "replace") if isinstance(content, str) else content)


def _move_to_new(source: Path, target: Path) -> None:
    """Renames, without replacing a file that another program may write at this moment."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(source)) from None
        source.replace(target)
