"""The rows of a place, by where their pictures are, and what is wrong with rows themselves.

Of a row memory holds some 130 bytes; the rows are in a file beside.
"""

import hashlib
import json
import os
from array import array
from typing import IO, Any, NamedTuple

import numpy as np

from autolora_jax.batch.formats import FORMATS
from autolora_jax.batch.manifest import (
    COLUMNS,
    MANIFEST,
    OK,
    PARQUET,
    Reader,
    is_row,
    key_of,
    lines_of,
    parquet_keys,
    parts_in,
    planned_columns,
)
from autolora_jax.batch.plan import KEY_LENGTH, Plan
from autolora_jax.batch.storage import Storage, StorageError
from autolora_jax.batch.store import IMAGES, shard_number, shards_in
from autolora_jax.batch.work import PLACE, RECORD
from autolora_jax.config import ConfigError

_FILE, _NOWHERE = -1, -2  # in place of a shard's number: it is a file; there is no picture


class Trouble(NamedTuple):
    """Something that is wrong, and what puts it right.

    what: a file, or a picture's name in a shard. key: the picture that has to be drawn again. shard: that has to be
    written again. row: as the shard says it: what is missing from the manifest, or else where the picture belongs.
    """

    what: str
    why: str
    key: str | None = None
    shard: int | None = None
    row: str | None = None

    def __str__(self) -> str:
        return f"{self.what}: {self.why}"


class Book:
    """The rows of a place, by the pictures' places.

    troubles: of rows themselves. drawn: pictures that should be there. undrawn: of the plan's that have no row.
    sorted: all keys.
    """

    def __init__(self, storage: Storage, spool: IO[bytes], plan: Plan | None = None) -> None:
        """spool: takes the rows; read from several threads."""
        self._spool, self.troubles = spool, list[Trouble]()
        self._keys, self._ends = bytearray(), array("q", [0])
        self._shards, self._batches = array("i"), array("i")  # of each row; batches: of those in parts
        self._sha256s, self._files = bytearray(), dict[int, str]()  # files: of rows whose name is not the usual one
        self._suffix = self._form(storage)
        self._hashes = hashlib.sha256()
        self._in_manifest = 0  # rows
        self._read(storage)
        self.keys = np.frombuffer(bytes(self._keys), f"S{KEY_LENGTH}")
        rows = len(self.keys)
        _, last = np.unique(self.keys[::-1], return_index=True)
        self.counts = np.zeros(rows, bool)  # rows that do: of a key that has several, the last
        self.counts[rows - 1 - last] = True
        self._rank = rows - 1 - last  # those rows, sorted by their keys
        self.sorted = self.keys[self._rank]
        self._shard_of = np.frombuffer(self._shards, np.int32) if rows else np.zeros(0, np.int32)
        self.files = np.flatnonzero(self.counts & (self._shard_of == _FILE))
        self.shards = sorted({int(n) for n in np.unique(self._shard_of[self.counts]) if n >= 0} | shards_in(storage))
        self.drawn = int((self.counts & (self._shard_of != _NOWHERE)).sum())
        self.undrawn = 0
        self._check_counts(storage)
        self._check_parquet(storage)
        if plan is not None:
            self._compare(plan)

    @property
    def fingerprint(self) -> str:
        """Of all rows."""
        return self._hashes.hexdigest()

    def lines(self, first: int, last: int) -> list[bytes]:
        """Rows that stand one behind the other, the last one included."""
        start, stop = self._ends[first], self._ends[last + 1]
        return os.pread(self._spool.fileno(), stop - start, start).splitlines()

    def picture(self, number: int) -> tuple[str, str, bytes]:
        """(key, file, SHA-256) of a row's picture."""
        key = self.keys[number].decode()
        return key, self._files.get(number) or self._usual(key), bytes(self._sha256s[32 * number : 32 * number + 32])

    def of_shard(self, number: int) -> dict[str, tuple[bytes, int]]:
        """Key -> (its row, the batch whose part that is in; -1: none) of a shard's pictures, in the shard's order."""
        rows = np.flatnonzero(self.counts & (self._shard_of == number))
        found = [(self.lines(int(i), int(i))[0], self._batches[i]) for i in rows]
        parsed = [json.loads(line) for line, _ in found]
        order = sorted(range(len(found)), key=lambda i: (parsed[i].get("position") or 0, i))
        return {parsed[i]["key"]: found[i] for i in order}

    def row(self, key: str) -> dict[str, Any] | None:
        """The row of a picture, if there is one."""
        number = self._number(key.encode())
        return None if number is None else json.loads(self.lines(number, number)[0])

    def _number(self, key: bytes) -> int | None:
        at = int(np.searchsorted(self.sorted, key))
        return int(self._rank[at]) if at < len(self._rank) and self.sorted[at] == key else None

    def _read(self, storage: Storage) -> None:
        batches, read = {part.file: part.batch for part in parts_in(storage)}, Reader()
        for file, number, line in lines_of(storage):
            self._hashes.update(line)
            if not is_row(line):
                continue
            if (row := read(line)) is None:
                self.troubles.append(Trouble(f"{file}, line {number}", "is no row of a manifest", key_of(line)))
                continue
            self._spool.write(line)
            self._keys += row["key"].encode()
            self._ends.append(self._ends[-1] + len(line))
            shard = shard_number(row["file"])
            self._shards.append(_NOWHERE if row["status"] != OK else _FILE if shard is None else shard)
            self._sha256s += bytes.fromhex(row["sha256"] or "00" * 32)
            if shard is None and row["file"] != self._usual(row["key"]):
                self._files[len(self._batches)] = row["file"] or ""
            self._batches.append(batches.get(file, -1))
            self._in_manifest += file == MANIFEST
        self._spool.flush()

    def _usual(self, key: str) -> str:
        return f"{IMAGES}/{key[:2]}/{key}.{self._suffix}"

    def _form(self, storage: Storage) -> str:
        """How names of pictures end."""
        content = storage.read(PLACE)
        try:
            return FORMATS[json.loads(content or b"")["pictures"]].suffix
        except (ValueError, KeyError, TypeError, RecursionError):
            self.troubles.append(Trouble(PLACE, "is not there" if content is None else "is damaged"))
            return "png"

    def _check_counts(self, storage: Storage) -> None:
        if not len(self.keys) and storage.read(RECORD) is None:
            if storage.read(PLACE) is None and not self.shards:
                raise ConfigError(f"{storage.where} holds no job of autolora batch; check --out")
            self.troubles.append(Trouble(MANIFEST, "is missing, or empty"))
        keys, counts = np.unique(self.keys[: self._in_manifest], return_counts=True)
        self.troubles += [Trouble(MANIFEST, f"{key.decode()} stands there twice") for key in keys[counts > 1]]

    def _check_parquet(self, storage: Storage) -> None:
        try:
            found = parquet_keys(storage)
        except StorageError as e:
            self.troubles.append(Trouble(PARQUET, str(e)))
            return
        if found is not None and not np.array_equal(found, self.keys[: self._in_manifest]):
            self.troubles.append(Trouble(PARQUET, f"holds other rows than {MANIFEST}"))

    def _compare(self, plan: Plan) -> None:
        """Rows with what a job asks for."""
        for item in np.flatnonzero(plan.first):
            if (number := self._number(plan.keys[item])) is None:
                self.undrawn += 1
                continue
            row = json.loads(self.lines(number, number)[0])
            planned = planned_columns(plan.row(int(item)))
            wrong = [name for name in row if name not in COLUMNS or row[name] != planned.get(name, row[name])]
            if wrong:
                why = f"the row of {row['key']} says {wrong[0]} {row[wrong[0]]!r}, and the job something else"
                self.troubles.append(Trouble(MANIFEST, why, row["key"], shard_number(row["file"])))
