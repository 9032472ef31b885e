"""A job at its place: what is planned, what is done, what is to be drawn. Workers that share a place each open it.

What is done is kept where the pictures are, so that any machine can go on:

    batch.json              what the place is for: pictures of one form
    manifest.jsonl          finished jobs
    .autolora/plan.json     the unfinished job: which pictures, in batches of how many rows
    .autolora/parts/        a part of the manifest for each of its batches that is done

A batch is done when its part is there, and its part is written when its pictures are safe. The record in plan.json does
not change until the job is finished: a resumed run draws the same batches as one that was never stopped.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from autolora_jax import foreign
from autolora_jax.batch.formats import FORMATS, Features, open_features
from autolora_jax.batch.manifest import (
    MANIFEST,
    Part,
    Recorded,
    fold,
    make_part,
    note_file,
    notes_in,
    parts_in,
    read_part,
    recorded,
)
from autolora_jax.batch.plan import Batch, Items, Plan, make_plan
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.storage import STATE, Storage, StorageError, open_storage
from autolora_jax.batch.store import (
    STAGED,
    Piece,
    Shards,
    Store,
    any_picture,
    join_staged,
    lost_pieces,
    pieces_in,
    shard_file,
    shard_number,
    shards_in,
)
from autolora_jax.config import ConfigError
from autolora_jax.evaluation.kept import FEATURES
from autolora_jax.settings.jobs import Job, OutputConfig
from autolora_jax.weights.errors import shorten

PLACE, RECORD = "batch.json", f"{STATE}/plan.json"
FORMAT = "autolora-jax batch"
VERSION = 1


class Record(NamedTuple):
    """An unfinished job.

    plan: fingerprint. rows: of a batch. items: first and last numbers of the pictures that it draws.
    first_shard, shard_batches: of WebDataset shards; 0 batches: there are none.
    """

    plan: str
    rows: int
    items: tuple[tuple[int, int], ...]
    first_shard: int = 0
    shard_batches: int = 0

    @property
    def name(self) -> str:
        """What tells it from other records."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:8]

    def batches(self, plan: Plan) -> list[Batch]:
        """All its batches."""
        parts = [np.arange(first, last + 1) for first, last in self.items]
        return plan.batches(np.concatenate(parts) if parts else np.arange(0), self.rows)


class Ledger:
    """The record of a job, and its parts."""

    def __init__(self, storage: Storage, record: Record) -> None:
        self.storage, self.record = storage, record

    def done(self) -> set[int]:
        """The numbers of the batches that are done."""
        return {part.batch for part in parts_in(self.storage) if part.record == self.record.name}

    def commit(self, batch: int, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        """Records a batch whose pictures are safe. facts: of this run alone, for the log."""
        self.storage.write(self._part(batch), make_part(rows, facts))

    def forget(self, batches: Iterable[int]) -> None:
        """Makes batches count as not done."""
        self.storage.remove(map(self._part, batches))

    def rows(self, batch: int) -> list[dict[str, Any]]:
        """What is recorded of a batch; [] while it is not done."""
        return read_part(self.storage.read(self._part(batch)) or b"") or []

    def note(self, name: str, facts: Mapping[str, Any]) -> None:
        """Adds a line to the log."""
        self.storage.write(note_file(name), make_part([], facts))

    def _part(self, batch: int) -> str:
        return Part(self.record.name, batch).file


@dataclasses.dataclass(frozen=True)
class Work:
    """An opened job.

    batches: all of its record; done: the numbers of those that were done when it was opened.
    features: what takes those, for a job that keeps them in place of pictures.
    """

    job: Job
    plan: Plan
    storage: Storage
    ledger: Ledger
    store: Store
    batches: Sequence[Batch]
    done: frozenset[int]
    features: Features | None = None

    @property
    def todo(self) -> list[Batch]:
        """The batches to be drawn."""
        return [batch for batch in self.batches if batch.number not in self.done]

    @property
    def shares(self) -> list[list[Batch]]:
        """The same, in the smallest parts that different workers may draw: the batches of a shard stay together."""
        size = self.ledger.record.shard_batches or 1
        return [list(share) for _, share in itertools.groupby(self.todo, lambda batch: batch.number // size)]

    def finish(self) -> bool:
        """Closes the job if all its batches are done, by whomever, and says whether it is closed."""
        sound = sound_parts(self.storage, self.ledger.record, self.batches, self.plan)
        if len(self.ledger.done()) < len(self.batches):
            return False
        settle(self.storage, self.plan, sound)
        return True

    def outcome(self) -> dict[str, Any]:
        """Closes the job as `finish` does, and says what a run's summary tells of it."""
        if not self.finish():
            return {"more": True}
        found = recorded(self.storage, self.plan.keys)
        return {"more": False, "lacking": int((self.plan.first & found.known & ~found.ok).sum())}


def open_work(
    job: Job,
    out: str | os.PathLike[str] | Storage,
    devices: Sequence[jax.Device] | None = None,
    retry: bool = False,
) -> Work:
    """Plans a job and finds out what is left of it.

    out: folder, URL, or a storage. devices: that draw (default: all); their number is part of how batches are packed.
    retry: draw also what failed before, or was not finite.
    Raises ConfigError, WeightsError, ValueError for what could not be drawn, StorageError when `out` can't be used.
    """
    storage = out if isinstance(out, Storage) else open_storage(out)
    rows = job.batch_size * len(jax.devices() if devices is None else devices)
    return open_plan(job, make_plan(job, Sources()), storage, rows, devices, retry)


def open_plan(
    job: Job,
    plan: Plan,
    storage: Storage,
    rows: int,
    devices: Sequence[jax.Device] | None = None,
    retry: bool = False,
) -> Work:
    """The same of a job that is planned, in batches of so many rows."""
    features = open_features(job.output, plan, devices)
    open_place(storage, job.output, features)
    record = open_record(storage, plan, rows, job.output, retry)
    return enter(job, plan, storage, record, features)


def open_place(storage: Storage, output: OutputConfig, features: Features | None = None) -> None:
    """Makes a place one for pictures of this form. Raises ConfigError when it holds others."""
    if not check_place(storage, output, features):
        storage.write(PLACE, (json.dumps(_about(output, features), indent=2) + "\n").encode())


def enter(job: Job, plan: Plan, storage: Storage, record: Record, features: Features | None = None) -> Work:
    """The work of a record."""
    ledger, batches = Ledger(storage, record), record.batches(plan)
    done, suffix = ledger.done(), FORMATS[job.output.format].suffix
    store = Store(storage, suffix)
    if record.shard_batches:
        store = Shards(storage, suffix, record.first_shard, record.shard_batches, len(batches), done, record.rows)
    return Work(job, plan, storage, ledger, store, batches, frozenset(done), features)


def check_place(storage: Storage, output: OutputConfig, features: Features | None = None) -> bool:
    """Whether a place is made for pictures of this form; False: it is new. Raises ConfigError when it holds others."""
    content = storage.read(PLACE)
    if content is None:
        return False
    wanted = _about(output, features)
    try:
        found = foreign.parse_object(content)
    except ValueError as e:
        form = f"{output.format} {'shards' if output.shard_size is not None else 'files'}"
        raise ConfigError(
            f"{storage.where}/{PLACE} is damaged ({e}); it says which form the pictures here have. If they are {form}, "
            "remove it: the same command writes it anew"
        ) from None
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise ConfigError(f"{storage.where}/{PLACE} is not of {FORMAT!r} version {VERSION}; choose another --out")
    if found != wanted:
        raise ConfigError(
            f"{storage.where} holds {_form(found)}, and this job makes {_form(wanted)}; choose another --out, or "
            "the same --format, --features and --shards"
        )
    return True


def _about(output: OutputConfig, features: Features | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "pictures": output.format,
        "sharded": output.shard_size is not None,
        **({FEATURES: features.source._asdict()} if features else {}),
    }


def _form(place: Mapping[str, Any]) -> str:
    features = place.get(FEATURES)
    by = f" by {features.get('identity')}" if isinstance(features, Mapping) else ""
    return f"{place.get('pictures')} {'shards' if place.get('sharded') else 'files'}{by}"


def find_record(storage: Storage, plan: Plan, rows: int, retry: bool = False) -> tuple[Record, bool]:
    """(The record of the unfinished job that is this one, or one of all that is to be drawn; whether it is there.)

    retry: draw also what failed before, or was not finite. Nothing is written.
    """
    if (unfinished := _unfinished(storage, plan, rows)) is not None:
        return unfinished, True
    found = recorded(storage, plan.keys)
    _require_manifest(storage, found)
    wanted = np.flatnonzero(plan.first & ~(found.ok if retry else found.known))  # each key once
    return Record(plan.fingerprint, rows, spans(wanted)), False


def _unfinished(storage: Storage, plan: Plan, rows: int) -> Record | None:
    """The record of the unfinished job, if it is this one."""
    if (content := storage.read(RECORD)) is None:
        return None
    try:
        told = foreign.parse_object(content)
        found = Record(**{**told, "items": tuple((int(first), int(last)) for first, last in told["items"])})
        numbers = (found.rows, found.first_shard, found.shard_batches)
        if not isinstance(found.plan, str) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("its values are none of a record")
    except (ValueError, TypeError, KeyError) as e:
        why = f"{storage.where}/{RECORD} is damaged ({e}): the job is planned again from what is recorded"
        warnings.warn(why, stacklevel=3)
        return None
    whole = all(0 <= first <= last < len(plan) for first, last in found.items)
    return found if whole and (found.plan, found.rows) == (plan.fingerprint, rows) else None


def _require_manifest(storage: Storage, found: Recorded) -> None:
    """Raises StorageError for shards that the manifest does not know; warns of other pictures where it is empty."""
    lost = sorted(shards_in(storage) - found.shards)
    if lost:
        raise StorageError(
            f"{storage.where}: {shorten([shard_file(number) for number in lost])} stand in no row of {MANIFEST}, which "
            "is missing, or was emptied or cut. Put a copy of it back, or --verify --repair makes it anew of what the "
            "shards say; to draw all of it again, remove the shards first"
        )
    if not found.rows and storage.read(PLACE) is not None and any_picture(storage):
        warnings.warn(
            f"{storage.where} holds pictures, but {MANIFEST} is missing or empty: those of this job are drawn again, "
            "in their places",
            stacklevel=2,
        )


def open_record(storage: Storage, plan: Plan, rows: int, output: OutputConfig, retry: bool = False) -> Record:
    """The record as find_record finds it, written if it is new.

    Another unfinished job is closed: what it has drawn stays, and what it has not is no longer wanted.
    """
    if (unfinished := _unfinished(storage, plan, rows)) is not None:
        sound_parts(storage, unfinished, unfinished.batches(plan), plan)
        return unfinished
    pieces = sound_parts(storage)
    record, _ = find_record(storage, plan, rows, retry)
    settle(storage, plan, pieces)
    if output.shard_size is not None:
        size, first = max(1, round(output.shard_size / rows)), max(shards_in(storage), default=-1) + 1
        record = record._replace(first_shard=first, shard_batches=size)
    if record.items:
        storage.write(RECORD, (json.dumps(record._asdict()) + "\n").encode())
    return record


def sound_parts(
    storage: Storage, record: Record | None = None, batches: Sequence[Batch] = (), plan: Plan | None = None
) -> list[Piece]:
    """The pieces of shards to come, of all recorded batches. A warning tells of batches that have to be drawn again.

    Those are no longer recorded: their parts were cut or damaged, or their pieces are gone.
    record, batches, plan: whose parts are to hold the batches' very pictures.
    """
    parts = parts_in(storage)
    bad: list[Part] = []
    pieces: dict[Piece, Part] = {}
    for part, content in zip(parts, storage.read_all([part.file for part in parts]), strict=True):
        rows = read_part(content)
        if rows is None or (record and plan and part.record == record.name and not _is_of(rows, batches, part, plan)):
            bad.append(part)
            continue
        for number in {shard_number(row["file"]) for row in rows} - {None}:
            pieces[Piece(int(number or 0), part.batch)] = part
    lost = lost_pieces(storage, pieces)
    if gone := [*bad, *(pieces.pop(piece) for piece in lost)]:
        storage.remove(part.file for part in gone)
        why = f"{len(bad)} records are cut or damaged, pictures of {len(lost)} are gone from {storage.where}/{STAGED}"
        warnings.warn(f"{len(gone)} finished batches are drawn again: {why}", stacklevel=2)
    return [*pieces]


def _is_of(rows: Sequence[Mapping[str, Any]], batches: Sequence[Batch], part: Part, plan: Plan) -> bool:
    keys = [str(row["key"]).encode() for row in rows]
    return part.batch < len(batches) and keys == plan.keys[batches[part.batch].items].tolist()


def settle(storage: Storage, plan: Plan, sound: Sequence[Piece] | None = None) -> None:
    """Closes the unfinished job: everything drawn goes to its place, everything needed on the way is removed.

    Killed anywhere in between, it can be called again: only the record goes before the rest is safe in its place, and
    without it nobody counts on more pictures to come. sound: what sound_parts has just returned.
    """
    storage.remove([RECORD])
    pieces = sound_parts(storage) if sound is None else sound
    join_staged(storage, pieces)
    storage.remove(piece.file for piece in pieces_in(storage))  # whose batches are not recorded
    if files := [*(part.file for part in parts_in(storage)), *notes_in(storage)]:
        fold(storage, plan.keys)
        storage.remove(files)
    storage.tidy()


def spans(items: Items) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as runs (first, last)."""
    if not len(items):
        return ()
    ends = np.flatnonzero(np.diff(items) != 1)
    firsts, lasts = items[np.append(0, ends + 1)], items[np.append(ends, len(items) - 1)]
    return tuple((int(a), int(b)) for a, b in zip(firsts, lasts, strict=True))
