"""Where a job's files lie: a folder of this machine, or a bucket. A file is whole or it is not there.

| place             | a file appears by                         | what fails                             |
|-------------------|-------------------------------------------|----------------------------------------|
| folder            | fsync, then a rename of a temporary file  | at once: a full disk stays full        |
| gs://, s3://, …   | a single put through fsspec               | after some patience: networks recover  |

Names are relative, with slashes. What can't be kept is a StorageError that says what to do.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO, Protocol, TypeVar, cast, runtime_checkable

from autolora_jax import files, foreign
from autolora_jax.config import ConfigError

T = TypeVar("T")

STATE = ".autolora"  # folder of what belongs to an unfinished job; gone when it is finished
_UNFINISHED = f"{STATE}/unfinished"
AT_ONCE = 32  # requests to a remote place
PATIENCE = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # seconds between attempts at a remote place
_AGAIN = "What is finished is safe, and the same command goes on from there"


class StorageError(OSError):
    """A file could not be kept or read. Says which, why and what to do."""


@runtime_checkable
class Storage(Protocol):
    """A place for files. where: it, for messages, and for paths in them."""

    where: str

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder, sorted, without those in folders of it; [] when there is none."""

    def read(self, name: str) -> bytes | None:
        """A file's content; None when there is none."""

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        """The contents of files that exist, in order; few are in memory at a time."""
        for name in names:
            with self.reading(name) as file:
                yield file.read()

    def write(self, name: str, content: bytes) -> None:
        """Makes or replaces a file."""
        with self.writing(name) as file:
            file.write(content)

    def reading(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A file that exists, opened."""

    def writing(self, name: str) -> AbstractContextManager[IO[bytes]]:
        """A new file, which appears, or replaces the old one, when the block ends well."""

    def scratch(self) -> AbstractContextManager[IO[bytes]]:
        """A file without a name, to write and to read, of which nothing is left: beside the others if that can be."""

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, as far as they exist."""

    def tidy(self) -> None:
        """Removes what killed runs left unfinished, and empty folders of STATE. Not while others write."""


class Folder(Storage):
    """A folder of this machine; it is made when the first file is written."""

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)

    def names(self, folder: str) -> list[str]:
        path = self.root / folder
        with _told(path, "read"):
            return sorted(entry.name for entry in os.scandir(path) if entry.is_file()) if path.is_dir() else []

    def read(self, name: str) -> bytes | None:
        try:
            with open(f"{self.where}/{name}", "rb", buffering=0) as file:
                return file.readall()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise _failed(self.root / name, "read", e) from e

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        with _told(self.root / name, "read"), (self.root / name).open("rb") as file:
            yield file

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        path = self.root / name
        # Not beside the file: a run that is killed leaves it behind, and readers would find it.
        unfinished = self.root / _UNFINISHED
        with _told(path, "written"):
            unfinished.mkdir(parents=True, exist_ok=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            with files.writing(path, unfinished=unfinished, synced=True) as file:
                yield file

    @contextmanager
    def scratch(self) -> Iterator[IO[bytes]]:
        unfinished = self.root / _UNFINISHED
        with _told(unfinished, "written"):
            unfinished.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=unfinished) as file:
                yield file

    def remove(self, names: Iterable[str]) -> None:
        for name in names:
            with _told(self.root / name, "removed"):
                (self.root / name).unlink(missing_ok=True)

    def tidy(self) -> None:
        with _told(self.root / STATE, "removed"):
            shutil.rmtree(self.root / _UNFINISHED, ignore_errors=True)
            for folder, _, _ in os.walk(self.root / STATE, topdown=False):
                with suppress(OSError):  # it is not empty
                    os.rmdir(folder)


@contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    """OSErrors of the block as StorageErrors."""
    try:
        yield
    except StorageError:
        raise
    except OSError as e:
        raise _failed(path, what, e) from e


def _failed(path: Path, what: str, error: OSError) -> StorageError:
    return StorageError(f"{path} can't be {what}: {error.strerror or error}. {_AGAIN}")


class Bucket(Storage):
    """A place that fsspec reaches: gs://bucket/folder, s3://bucket/folder, memory://folder, …"""

    def __init__(self, url: str, patience: tuple[float, ...] = PATIENCE) -> None:
        """patience: seconds between attempts. Raises ConfigError when the URL's protocol can't be used here."""
        self.where, self.patience = url.rstrip("/"), patience
        try:
            import fsspec

            self._fs, root = fsspec.core.url_to_fs(self.where)
        except (ImportError, ValueError) as e:
            raise ConfigError(f"{url} can't be used: {e}") from None
        self._root = root.rstrip("/")

    def names(self, folder: str) -> list[str]:
        def listed() -> list[str]:
            self._fs.invalidate_cache()
            entries = self._fs.ls(self._path(folder), detail=True)
            return sorted(entry["name"].rpartition("/")[2] for entry in entries if entry["type"] == "file")

        return self._try(folder, "listed", listed) or []

    def read(self, name: str) -> bytes | None:
        return self._try(name, "read", lambda: cast(bytes, self._fs.cat_file(self._path(name))))

    def read_all(self, names: Sequence[str]) -> Iterator[bytes]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for start in range(0, len(names), AT_ONCE):
                chunk = names[start : start + AT_ONCE]
                for name, content in zip(chunk, pool.map(self.read, chunk), strict=True):
                    yield self._existing(name, content)

    def write(self, name: str, content: bytes) -> None:
        self._try(name, "written", lambda: self._fs.pipe_file(self._path(name), content))

    @contextmanager
    def reading(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            self._try(name, "read", lambda: self._fs.get_file(self._path(name), str(path)))
            self._existing(name, path if path.exists() else None)
            with path.open("rb") as file:
                yield file

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            with path.open("wb") as file:
                yield file
            self._try(name, "written", lambda: self._fs.put_file(str(path), self._path(name)))

    def scratch(self) -> AbstractContextManager[IO[bytes]]:
        return tempfile.TemporaryFile()  # beside nothing: TMPDIR says where

    def remove(self, names: Iterable[str]) -> None:
        def remove(name: str) -> None:
            self._try(name, "removed", lambda: self._fs.rm_file(self._path(name)))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(remove, names))

    def tidy(self) -> None:
        """A bucket has neither empty folders nor unfinished files."""

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _existing(self, name: str, found: T | None) -> T:
        if found is None:
            raise StorageError(f"{self.where}/{name} is not there any more. {_AGAIN}")
        return found

    def _try(self, name: str, what: str, action: Callable[[], T]) -> T | None:
        """The action's result, or None where there is no such file; again and again while it fails."""
        for wait in (*self.patience, None):
            try:
                return action()
            except FileNotFoundError:
                if what == "written":
                    raise StorageError(f"{self.where}/{name} can't be written: there is no such place") from None
                return None
            except Exception as e:  # every file system has errors of its own
                if wait is None or isinstance(e, PermissionError):
                    why = f"{type(e).__name__}: {e}".rstrip(".")
                    raise StorageError(f"{self.where}/{name} can't be {what}: {why}. {_AGAIN}") from e
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")


def open_storage(out: str | os.PathLike[str]) -> Storage:
    """The place that a path or URL names. Raises ConfigError for a URL that can't be used here."""
    text = os.fspath(out).removeprefix("file://")
    return Bucket(text) if "://" in text else Folder(Path(text))


def read_anywhere(path: str) -> bytes:
    """A file's content, of this machine or at a URL. Raises OSError or ConfigError."""
    folder, slash, name = path.rpartition("/")
    if "://" not in path:
        return foreign.read_file(path)
    content = Bucket(folder + slash).read(name)
    if content is None:
        raise FileNotFoundError(2, os.strerror(2), path)
    return content
