"""Puts right what `verify` found wrong, and nothing else: the place is then what an undamaged run leaves.

    pictures that are files   drawn again, into their places
    shards                    written again: what is sound as it is, what is not drawn again, in the shard's order
    rows                      of what was drawn again, or as a shard says them; the manifest is then made anew of all
    batches of an unfinished job, whose parts or pieces are damaged, are forgotten: the job draws them with the rest

Every file is replaced whole, by one that is right: whenever it is stopped, the same command goes on.
"""

import dataclasses
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from typing import Any

import jax
import numpy as np

from autolora_jax.batch.book import Book, Trouble
from autolora_jax.batch.draw import Artist, Draw
from autolora_jax.batch.formats import FORMATS, Features, open_features
from autolora_jax.batch.manifest import MANIFEST, OK, PARQUET, PARTS, Part, fold, make_part, parts_in
from autolora_jax.batch.owner import owning
from autolora_jax.batch.plan import Plan, make_plan
from autolora_jax.batch.run import OnBatch, run
from autolora_jax.batch.shard_files import BESIDE, Member, end, sample, walk
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.storage import STATE, Storage, open_storage
from autolora_jax.batch.store import STAGED, Picture, Place, Store, shard_file, shard_number, shards_in
from autolora_jax.batch.verify import Report, scratch, verify
from autolora_jax.batch.work import Ledger, Record, Work, open_place
from autolora_jax.compilation import keep_programs
from autolora_jax.progress import OnProgress
from autolora_jax.settings.jobs import Job

DRAWN = f"{STATE}/drawn"  # pictures of shards, until these are written
FILES_AT_ONCE = 1000  # pictures that are files, between which memory forgets
_RECORD = "f" * 8  # whose parts hold the rows of what was put right: they come last, and so they count
Row = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Repair:
    """What came of it. drawn: pictures that were drawn again. more: whether it was stopped; the same command goes on.

    left: what could not be put right: pictures of other jobs, and those that can't be drawn. forgotten: batches of an
    unfinished job, which that will draw with the rest.
    """

    drawn: int = 0
    more: bool = False
    left: Sequence[Trouble] = ()
    forgotten: int = 0


def repair(
    job: Job,
    out: str | os.PathLike[str] | Storage,
    report: Report | None = None,
    *,
    devices: Sequence[jax.Device] | None = None,
    compilation_cache: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    on_batch: OnBatch | None = None,
) -> Repair:
    """Puts right what is wrong with a job's place, by one process: draws what is damaged or gone, and nothing else.

    report: what `verify` has found with this job; default: it is asked. The rest is as for draw_job.
    Raises as draw_job.
    """
    storage, plan = out if isinstance(out, Storage) else open_storage(out), make_plan(job, Sources())
    keep_programs(compilation_cache)
    artist = Artist(devices, FORMATS[job.output.format].latents, on_progress)
    rows = job.batch_size * len(jax.devices() if devices is None else devices)
    with owning(storage):
        report = verify(storage, plan=plan) if report is None else report
        features = open_features(job.output, plan, devices)
        return mend(job, plan, storage, report.troubles, rows, artist, features, on_batch)


def mend(
    job: Job,
    plan: Plan,
    storage: Storage,
    troubles: Sequence[Trouble],
    rows: int,
    draw: Draw,
    features: Features | None = None,
    on_batch: OnBatch | None = None,
) -> Repair:
    """The same of a job that is planned, in batches of so many rows."""
    open_place(storage, job.output, features)
    forgotten = _forget(storage, troubles)
    wrong = [trouble for trouble in troubles if not trouble.what.startswith(STAGED)]
    of_rows = [trouble for trouble in wrong if trouble.what.startswith((MANIFEST, PARQUET, PARTS))]
    of_samples = [trouble for trouble in wrong if trouble.what.endswith(".json")]
    with ExitStack() as stack:
        book = Book(storage, scratch(storage, stack))
        distrusted = frozenset(trouble.key for trouble in (*of_rows, *of_samples))
        bench = _Bench(job, plan, storage, draw, rows, features, on_batch, book, distrusted)
        bench.record([json.loads(trouble.row) for trouble in wrong if trouble.row and not trouble.key])
        left = bench.put_right(wrong)
    if bench.parts or of_rows:
        fold(storage, plan.keys, mend=True)
        storage.remove(part.file for part in parts_in(storage) if part.record == _RECORD)
    storage.remove(f"{DRAWN}/{name}" for name in storage.names(DRAWN))
    storage.tidy()
    return Repair(bench.drawn, bench.stopped, (*left,), forgotten)


def _forget(storage: Storage, troubles: Iterable[Trouble]) -> int:
    """Makes batches whose pieces are damaged or gone count as not drawn; how many."""
    pieces = {trouble.what.removeprefix(f"{STAGED}/").partition(".")[0] for trouble in troubles}
    batches = {int(piece.rpartition("-")[2]) for piece in pieces if piece.replace("-", "").isdecimal()}
    parts = [part for part in parts_in(storage) if part.batch in batches]
    storage.remove(part.file for part in parts)
    return len(parts)


class _Bench:
    """Where pictures are drawn again, in groups: files, and the pictures of a shard.

    parts: that hold rows of what was put right. drawn: pictures. stopped: whether it was interrupted.
    """

    def __init__(
        self,
        job: Job,
        plan: Plan,
        storage: Storage,
        draw: Draw,
        rows: int,
        features: Features | None,
        on_batch: OnBatch | None,
        book: Book,
        distrusted: frozenset[str | None],
    ) -> None:
        """book: of the place as it was. distrusted: pictures whose rows are not to be believed."""
        self._job, self._plan, self._storage, self._draw, self._rows = job, plan, storage, draw, rows
        self._features, self._on_batch, self._book, self._distrusted = features, on_batch, book, distrusted
        self._changed: dict[str, Row] = {}  # of the group at hand, and those that shards said
        self._said: dict[str, Row] = {}  # rows by shards, of pictures whose places these know better
        self.parts, self.drawn, self.stopped = 0, 0, False

    def record(self, rows: Sequence[Row]) -> None:
        """Rows that count from now on."""
        if rows:
            self._storage.write(Part(_RECORD, self.parts).file, make_part(rows, {"repaired": len(rows)}))
            self.parts += 1
            self._changed |= {row["key"]: row for row in rows}

    def put_right(self, troubles: Sequence[Trouble]) -> list[Trouble]:
        """Draws pictures and writes shards. Returns what could not be put right."""
        self._said = {trouble.key: json.loads(trouble.row) for trouble in troubles if trouble.key and trouble.row}
        known = {*self._changed}
        keys = {trouble.key: trouble for trouble in troubles if trouble.key and trouble.key not in known}
        items = {key: item for key, item in _items(self._plan, keys)}
        groups: defaultdict[int | None, dict[str, Place]] = defaultdict(dict)
        groups |= {trouble.shard: {} for trouble in troubles if trouble.shard is not None}
        # A line that is no row is dropped, whatever it was: what it told of has troubles of its own.
        left = [each for key, each in keys.items() if key not in items and not each.what.startswith(MANIFEST)]
        for key in items:
            if (place := self._place(key)) is None:
                left.append(keys[key])
            else:
                groups[shard_number(place.file)][key] = place
        for number, places in groups.items():
            for part in _parts(places, FILES_AT_ONCE if number is None else len(places)):
                rows = self._draw_into(part, [items[key] for key in part])
                self.record([row for row in rows if not self._is_known(row)])
                failed = {row["key"]: row["reason"] for row in rows if row["reason"]}
                left += [Trouble(key, f"can't be drawn: {why}", key) for key, why in failed.items()]
            if self.stopped:
                break
            if number is not None:
                left += self._write(number)
        return left

    def _place(self, key: str) -> Place | None:
        """Where a picture belongs; None for one of a shard that is not known."""
        if self._job.output.shard_size is None:
            return Store(self._storage, self._suffix).place(0, 0, key)
        row = self._said.get(key) or self._book.row(key)
        if row is None or row["status"] != OK:
            return None
        return Place(row["file"], f"{key}.{self._suffix}", row.get("position"))

    @property
    def _suffix(self) -> str:
        return FORMATS[self._job.output.format].suffix

    def _is_known(self, row: Row) -> bool:
        """Whether the row that was there says the same: it may be another version's."""
        before = self._book.row(row["key"])
        same = before is not None and before["sha256"] == row["sha256"] and before["status"] == row["status"]
        return same and row["key"] not in self._distrusted

    def _draw_into(self, places: Mapping[str, Place], items: Sequence[int]) -> list[Row]:
        """Draws pictures into their places; those of shards lie beside them. Returns their rows."""
        if not places:
            return []
        batches = self._plan.batches(np.array(sorted(items)), self._rows)
        ledger = _Rows(self._storage, Record(self._plan.fingerprint, self._rows, ()))
        store = _Places(self._storage, self._suffix, places)
        work = Work(self._job, self._plan, self._storage, ledger, store, batches, frozenset(), self._features)
        summary = run(work, self._draw, None, self._on_batch)
        self.drawn += summary.ok
        self.stopped = summary.more
        return ledger.found

    def _write(self, number: int) -> list[Trouble]:
        """Writes a shard of the pictures in it that are what their rows say, and those that were drawn.

        Where others are lacking it stays as it is, and what is returned says so.
        """
        lines = (line for line, _ in self._book.of_shard(number).values())
        rows: dict[str, Row] = {row["key"]: row for row in map(json.loads, lines)}
        rows |= {key: row for key, row in self._changed.items() if row["file"] == shard_file(number) or key in rows}
        there = number in shards_in(self._storage)
        with ExitStack() as stack:
            old = stack.enter_context(self._storage.reading(shard_file(number))) if there else None
            sound = dict(_sound(walk(old), rows)) if old else {}

            def order(row: Row) -> tuple[int, int]:
                place = row.get("position")
                return (sound.get(row["key"], (0, 0))[0], 0) if place is None else (place, 0)

            drawn = set(self._storage.names(DRAWN))
            wanted = [row for row in rows.values() if row["status"] == OK and row["file"] == shard_file(number)]
            if not wanted and not there:
                return []
            if lacking := sum(row["member"] not in drawn and row["key"] not in sound for row in wanted):
                return [Trouble(shard_file(number), f"lacks {lacking} pictures that this job does not have")]
            new = stack.enter_context(self._storage.writing(shard_file(number)))
            for row in sorted(wanted, key=order):
                if row["member"] in drawn:
                    content = self._storage.read(f"{DRAWN}/{row['member']}") or b""
                else:
                    assert old is not None
                    start, size = sound[row["key"]]
                    old.seek(start)
                    content = old.read(size)
                new.write(sample(row, content))
            new.write(end(new.tell()))
        self._storage.remove(f"{DRAWN}/{row['member']}" for row in wanted if row["member"] in drawn)
        self._changed = {key: row for key, row in self._changed.items() if key not in rows}
        return []


def _sound(members: Iterable[object], rows: Mapping[str, Row]) -> Iterator[tuple[str, tuple[int, int]]]:
    """(key, (where its picture begins, bytes)) of those that are what their rows say."""
    for found in members:
        if not isinstance(found, Member):
            continue
        key, _, ending = found.name.partition(".")
        if key in rows and ending not in BESIDE and hashlib.sha256(found.content).hexdigest() == rows[key]["sha256"]:
            yield key, (found.start, len(found.content))


def _items(plan: Plan, keys: Iterable[str]) -> Iterator[tuple[str, int]]:
    """(key, number) of those of these pictures that a plan has."""
    wanted = np.isin(plan.keys, np.array(sorted(keys), plan.keys.dtype)) & plan.first
    return ((plan.keys[item].decode(), int(item)) for item in np.flatnonzero(wanted))


def _parts(places: Mapping[str, Place], size: int) -> Iterator[dict[str, Place]]:
    keys = list(places)
    for start in range(0, len(keys), max(size, 1)):
        yield {key: places[key] for key in keys[start : start + size]}


class _Rows(Ledger):
    """Keeps the rows of what is drawn, and writes none."""

    def __init__(self, storage: Storage, record: Record) -> None:
        super().__init__(storage, record)
        self.found: list[Row] = []

    def commit(self, batch: int, rows: Sequence[Row], facts: Row) -> None:
        self.found += rows

    def forget(self, batches: Iterable[int]) -> None:
        assert not [*batches]

    def note(self, name: str, facts: Row) -> None:
        """It is no run of the job."""


class _Places(Store):
    """Puts pictures where they belong; those of shards into DRAWN."""

    def __init__(self, storage: Storage, suffix: str, places: Mapping[str, Place]) -> None:
        super().__init__(storage, suffix)
        self._places = places

    def place(self, batch: int, number: int, key: str) -> Place:
        return self._places[key]

    def save(self, batch: int, pictures: Sequence[Picture], pool: Executor) -> None:
        def write(picture: Picture) -> None:
            place = picture.place
            self.storage.write(place.file if place.member is None else f"{DRAWN}/{place.member}", picture.content)

        list(pool.map(write, pictures))
