"""A place against its manifest: every picture, shard, row and count.

    rows     each is one, and no picture has two ──▶ what is expected of files and shards
    files    read and hashed, many at a time
    shards   read from end to end: each header, picture, row, prompt and padding, and the end

Of a picture memory holds some 200 bytes, of its row nothing. What is found wrong says what would put it right; `repair`
does that.
"""

import hashlib
import json
import os
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import IO, NamedTuple

import numpy as np

from autolora_jax.batch.book import Book, Trouble
from autolora_jax.batch.manifest import (
    MANIFEST,
    OK,
    read_row,
)
from autolora_jax.batch.plan import KEY_LENGTH, Plan, make_plan
from autolora_jax.batch.shard_files import BESIDE, Damage, beside, walk
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.storage import AT_ONCE, STATE, Bucket, Storage, StorageError, open_storage
from autolora_jax.batch.store import IMAGES, Piece, pieces_in, shard_file, shards_in
from autolora_jax.batch.work import RECORD
from autolora_jax.settings.jobs import Job

STATE_FILE = f"{STATE}/verified.json"  # how far a verification is that was stopped
SAVE_EVERY = 10.0  # seconds
TOGETHER = 64  # files that a thread takes at once
SHARDS_AT_ONCE = 4  # which a bucket's have to be copied for
_PICTURE = re.compile(rf"([0-9a-f]{{{KEY_LENGTH}}})\.\w+").fullmatch
OnChecked = Callable[[int, int], None]  # (pictures checked, in all)


class Report(NamedTuple):
    """What was checked, and what is wrong.

    undrawn: pictures of the job, if one was given, that have no row yet. unlisted: files of pictures that no row names
    and no job was given for: they were left behind by a stop, or their rows are gone.
    """

    pictures: int
    bytes: int
    troubles: Sequence[Trouble]
    undrawn: int = 0
    unlisted: int = 0


def verify(
    out: str | os.PathLike[str] | Storage,
    job: Job | None = None,
    *,
    plan: Plan | None = None,
    on_progress: OnChecked | None = None,
) -> Report:
    """Checks all that a place holds against its manifest, also of an unfinished job. Nothing is changed.

    out: a folder, or a URL that fsspec knows. A verification that was stopped goes on where it was.
    job: whose pictures they should be: rows are then compared with what it asks for. plan: the job's, if it is made.
    Raises StorageError for a place that can't be read; ConfigError, WeightsError for a job that can't be planned.
    """
    storage = out if isinstance(out, Storage) else open_storage(out)
    plan = make_plan(job, Sources()) if job and plan is None else plan
    with ExitStack() as stack:
        book = Book(storage, scratch(storage, stack), plan)
        kept = _Kept(storage, book.fingerprint)
        troubles, done, size = kept.read()
        at = kept.pictures
        began = saved = time.monotonic()
        if on_progress:
            on_progress(at, book.drawn)
        try:
            for checked in _checks(storage, book, done):
                troubles += checked.troubles
                done, at, size = done + 1, at + checked.pictures, size + checked.bytes
                if on_progress:
                    on_progress(at, book.drawn)
                if time.monotonic() - saved > SAVE_EVERY:
                    kept.write(troubles, done, size, at)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            if time.monotonic() - began > SAVE_EVERY:
                kept.write(troubles, done, size, at)
            raise
        kept.remove()
        lost, unlisted = _strays(storage, book, plan)
        return Report(book.drawn, size, [*book.troubles, *troubles, *lost], book.undrawn, unlisted)


class Checked(NamedTuple):
    """A part of the work that is done."""

    troubles: list[Trouble]
    pictures: int
    bytes: int


def _checks(storage: Storage, book: Book, done: int) -> Iterator[Checked]:
    """All parts of the work, in their order, but for the first so many."""
    starts, copies = range(0, len(book.files), TOGETHER), threading.Semaphore(SHARDS_AT_ONCE)
    work: list[Callable[[], Checked]] = [
        *(partial(_check_files, storage, book, start) for start in starts),
        *(partial(_check_shard, storage, book, number, copies) for number in book.shards),
    ]
    pool = ThreadPoolExecutor(AT_ONCE if isinstance(storage, Bucket) else min(8, os.cpu_count() or 1))
    try:
        yield from pool.map(lambda part: part(), work[done:])
    finally:
        pool.shutdown(cancel_futures=True)


def _check_files(storage: Storage, book: Book, start: int) -> Checked:
    numbers, troubles, size = book.files[start : start + TOGETHER].tolist(), [], 0
    for key, file, sha256 in map(book.picture, numbers):
        content = storage.read(file)
        if content is None:
            troubles.append(Trouble(file, "is not there", key))
        elif hashlib.sha256(content).digest() != sha256:
            troubles.append(Trouble(file, "is not the picture that was recorded", key))
        size += len(content or b"")
    return Checked(troubles, len(numbers), size)


def _check_shard(storage: Storage, book: Book, number: int, copies: threading.Semaphore) -> Checked:
    rows, there = book.of_shard(number), pieces_in(storage)
    if number in shards_in(storage):
        with copies, storage.reading(shard_file(number)) as opened:
            found = check_samples(opened, shard_file(number), {key: line for key, (line, _) in rows.items()}, number)
        return Checked(found[0], len(rows), found[1])
    troubles, size = list[Trouble](), 0
    for batch in dict.fromkeys(batch for _, batch in rows.values()):
        piece, own = Piece(number, batch), {key: line for key, (line, of) in rows.items() if of == batch}
        if piece in there:
            with copies, storage.reading(piece.file) as opened:
                found = check_samples(opened, piece.file, own, number, whole=False)
            troubles, size = troubles + found[0], size + found[1]
        else:
            file = shard_file(number) if batch < 0 else piece.file
            troubles += [Trouble(f"{file}/{key}", "is not there", key, number) for key in own]
    return Checked(troubles, len(rows), size)


def check_samples(
    opened: IO[bytes], file: str, rows: Mapping[str, bytes], number: int, whole: bool = True
) -> tuple[list[Trouble], int]:
    """(what is wrong with a shard, or a piece of one, its bytes). rows: key -> row, of all that it should hold."""
    troubles, left, size = list[Trouble](), {key: _expected(line) for key, line in rows.items()}, 0
    strange: dict[str, dict[str, bytes]] = {}  # the last sample that no row is known of

    positions = {key: json.loads(line).get("position") for key, line in rows.items()}
    last, before = None, -1  # the sample at hand; the position of the one before it

    def wrong(name: str, why: str, key: str | None = None, row: str | None = None) -> None:
        troubles.append(Trouble(f"{file}/{name}" if name else file, why, key, number, row))

    for found in walk(opened, whole):
        if isinstance(found, Damage):
            wrong("", f"what stands at byte {found.start} {found.why}")
            continue
        size += len(found.content)
        key, _, ending = found.name.partition(".")
        if key != last:
            last, before = key, positions.get(last or "", before)
        if not found.padded:
            wrong(found.name, "is not padded with zeros")
        if key not in rows:
            if key not in strange:
                troubles += _unknown(file, number, strange)
                strange = {key: {}}
            strange[key][ending] = found.content
        elif (expected := left[key].pop(ending, None)) is None:
            wrong(found.name, "should not be there, or not twice")
        elif ending == "json" and found.content != expected:
            # Which of the two rows is right the picture tells that is drawn again; but not where it stood.
            own = read_row(found.content + b"\n")
            fits = own is not None and own["file"] == file and own.get("position") == (before or 0) + 1
            told = found.content.decode() if fits and positions[key] != (before or 0) + 1 else None
            wrong(found.name, f"is not what {MANIFEST} says", key, told)
        elif ending in BESIDE and found.content != expected:
            wrong(found.name, f"is not what {MANIFEST} says")
        elif ending not in BESIDE and hashlib.sha256(found.content).hexdigest().encode() != expected:
            wrong(found.name, "is not the picture that was recorded", key)
    troubles += _unknown(file, number, strange)
    for key, endings in left.items():
        for ending in endings:
            wrong(f"{key}.{ending}", "is not there", None if ending in BESIDE else key)
    return troubles, size


def _expected(line: bytes) -> dict[str, bytes]:
    """Ending -> content of what stands behind a picture, SHA-256 of the picture itself."""
    row = json.loads(line)
    return {row["member"].partition(".")[2]: row["sha256"].encode(), **beside(row), "json": line}


def _unknown(file: str, number: int, samples: Mapping[str, Mapping[str, bytes]]) -> Iterator[Trouble]:
    """What is wrong with a sample that no row is known of: its row is gone, unless it is nothing of ours."""
    for key, parts in samples.items():
        line = parts.get("json", b"")
        row = read_row(line + b"\n")
        ours = row is not None and row["status"] == OK and (row["key"], row["file"]) == (key, file)
        if row is not None and ours and parts.keys() == {*_expected(line)}:
            expected = _expected(line)
            picture = row["member"].partition(".")[2]
            sums = {**parts, picture: hashlib.sha256(parts[picture]).hexdigest().encode()}
            if sums == expected:
                yield Trouble(f"{file}/{key}", f"its row is missing from {MANIFEST}", row=line.decode())
                continue
        yield Trouble(f"{file}/{key}", "stands in no row", shard=number)


def _strays(storage: Storage, book: Book, plan: Plan | None) -> tuple[list[Trouble], int]:
    """(Pictures of a plan that are files without a row, how many others are); [] and 0 while a job is unfinished."""
    if storage.read(RECORD) is not None:
        return [], 0
    planned = np.sort(plan.keys) if plan else np.zeros(0, book.keys.dtype)
    troubles, others = list[Trouble](), 0
    folders = [f"{IMAGES}/{first:02x}" for first in range(256)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for folder, names in zip(folders, pool.map(storage.names, folders), strict=True):
            found = {match[1]: match[0] for match in map(_PICTURE, names) if match}
            keys = np.array([*found], book.keys.dtype)
            keys = keys[~_among(keys, book.sorted)]
            lost = _among(keys, planned)
            others += int((~lost).sum())
            for key in (key.decode() for key in keys[lost]):
                troubles.append(Trouble(f"{folder}/{found[key]}", f"its row is missing from {MANIFEST}", key))
    return troubles, others


def _among(keys: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which of these keys are among sorted ones."""
    if not len(there):
        return np.zeros(len(keys), bool)
    return there[np.minimum(np.searchsorted(there, keys), len(there) - 1)] == keys


def scratch(storage: Storage, stack: ExitStack) -> IO[bytes]:
    """A file for the rows; elsewhere where a place can only be read."""
    try:
        return stack.enter_context(storage.scratch())
    except StorageError:
        return stack.enter_context(tempfile.TemporaryFile())


class _Kept:
    """How far a verification is, for one that goes on; of a place that can only be read nothing is kept."""

    def __init__(self, storage: Storage, rows: str) -> None:
        self._storage, self._rows, self.pictures = storage, rows, 0

    def read(self) -> tuple[list[Trouble], int, int]:
        """(troubles, parts of the work done, bytes)."""
        try:
            told = json.loads(self._storage.read(STATE_FILE) or b"{}")
            if told.get("rows") == self._rows:
                self.pictures = int(told["pictures"])
                return [Trouble(*trouble) for trouble in told["troubles"]], int(told["done"]), int(told["bytes"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            pass  # of no use: all is checked
        return [], 0, 0

    def write(self, troubles: Sequence[Trouble], done: int, size: int, pictures: int) -> None:
        told = {"rows": self._rows, "done": done, "pictures": pictures, "bytes": size, "troubles": troubles}
        with suppress(StorageError):
            self._storage.write(STATE_FILE, json.dumps(told).encode())

    def remove(self) -> None:
        if self._storage.read(STATE_FILE) is None:
            return
        with suppress(StorageError):
            self._storage.remove([STATE_FILE])
            if self._storage.read(RECORD) is None:
                self._storage.tidy()
