"""What of a job is done, kept where its pictures are, so that any machine can go on.

    batch.json              what the place is for: pictures of one form
    manifest.jsonl          finished jobs
    .autolora/plan.json     the unfinished job: which pictures, in batches of how many rows
    .autolora/parts/        a part of the manifest for each of its batches that is done

A batch is done when its part is there, and its part is written when its pictures are safe. The record in plan.json does
not change until the job is finished: a resumed run draws the same batches as one that was never stopped.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from autolora_jax.batch.manifest import PARTS, fold, make_part, recorded
from autolora_jax.batch.plan import Batch, Items, Plan
from autolora_jax.batch.storage import STATE, Storage
from autolora_jax.batch.store import drop_staged, join_staged, shards_there
from autolora_jax.config import ConfigError
from autolora_jax.evaluation.kept import FEATURES, Source
from autolora_jax.settings.jobs import OutputConfig

PLACE, RECORD = "batch.json", f"{STATE}/plan.json"
_LOG = "log-"  # how names of parts begin that hold no rows
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
        self._prefix = f"{record.name}-"

    def done(self) -> set[int]:
        """The numbers of the batches that are done."""
        return _batches_of(name for name in self.storage.names(PARTS) if name.startswith(self._prefix))

    def commit(self, batch: int, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> None:
        """Records a batch whose pictures are safe. facts: of this run alone, for the log."""
        self.storage.write(self._part(batch), make_part(rows, facts))

    def rows(self, batch: int) -> list[dict[str, Any]]:
        """What is recorded of a batch; [] while it is not done."""
        lines = (self.storage.read(self._part(batch)) or b"").splitlines()
        return [row for row in map(json.loads, lines) if "key" in row]

    def note(self, name: str, facts: Mapping[str, Any]) -> None:
        """Adds a line to the log."""
        self.storage.write(f"{PARTS}/{_LOG}{name}.jsonl", make_part([], facts))

    def _part(self, batch: int) -> str:
        return f"{PARTS}/{self._prefix}{batch:08}.jsonl"


def _batches_of(parts: Iterable[str]) -> set[int]:
    """The batches that parts of these names record."""
    return {int(name.partition(".")[0].split("-")[1]) for name in parts if not name.startswith(_LOG)}


def check_place(storage: Storage, output: OutputConfig, source: Source | None = None) -> bool:
    """Whether a place is made for pictures of this form; False: it is new. Raises ConfigError when it holds others.

    source: of features, where these are kept.
    """
    content = storage.read(PLACE)
    if content is None:
        return False
    wanted, found = _about(output, source), json.loads(content)
    if (found.get("format"), found.get("version")) != (FORMAT, VERSION):
        raise ConfigError(f"{storage.where}/{PLACE} is not of {FORMAT!r} version {VERSION}; choose another --out")
    if found != wanted:
        raise ConfigError(
            f"{storage.where} holds {_form(found)}, and this job makes {_form(wanted)}; choose another --out, or "
            "the same --format, --features and --shards"
        )
    return True


def open_place(storage: Storage, output: OutputConfig, source: Source | None = None) -> None:
    """Makes a place for pictures of this form, if it is none yet. Raises as check_place, and StorageError."""
    if not check_place(storage, output, source):
        storage.write(PLACE, (json.dumps(_about(output, source), indent=2) + "\n").encode())


def _about(output: OutputConfig, source: Source | None) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "pictures": output.format,
        "sharded": output.shard_size is not None,
        **({FEATURES: source._asdict()} if source else {}),
    }


def _form(place: Mapping[str, Any]) -> str:
    by = f" by {place[FEATURES]['identity']}" if FEATURES in place else ""
    return f"{place['pictures']} {'shards' if place['sharded'] else 'files'}{by}"


def find_record(storage: Storage, plan: Plan, rows: int, retry: bool = False) -> tuple[Record, bool]:
    """(The record of the unfinished job that is this one, or one of all that is to be drawn; whether it is there.)

    retry: draw also what failed before, or was not finite. Nothing is written.
    """
    found = _read_record(storage)
    if found and (found.plan, found.rows) == (plan.fingerprint, rows):
        return found, True
    return Record(plan.fingerprint, rows, spans(_wanted(storage, plan, retry))), False


def open_record(storage: Storage, plan: Plan, rows: int, output: OutputConfig, retry: bool = False) -> Record:
    """The record as find_record finds it, written if it is new.

    Another unfinished job is closed: what it has drawn stays, and what it has not is no longer wanted.
    """
    record, there = find_record(storage, plan, rows, retry)
    if there:
        return record
    settle(storage, plan)
    if output.shard_size is not None:
        size = max(1, round(output.shard_size / rows))
        record = record._replace(first_shard=shards_there(storage), shard_batches=size)
    if record.items:
        storage.write(RECORD, (json.dumps(record._asdict()) + "\n").encode())
    return record


def _read_record(storage: Storage) -> Record | None:
    """The record of the unfinished job, if there is one."""
    content = storage.read(RECORD)
    if content is None:
        return None
    told = json.loads(content)
    return Record(**{**told, "items": tuple((first, last) for first, last in told["items"])})


def _wanted(storage: Storage, plan: Plan, retry: bool) -> Items:
    """Numbers of the pictures of a plan that are not recorded, each key once."""
    known, ok = recorded(storage, plan.keys)
    return np.flatnonzero(plan.first & ~(ok if retry else known))


def settle(storage: Storage, plan: Plan) -> None:
    """Closes the unfinished job: everything drawn goes to its place, everything needed on the way is removed.

    Killed anywhere in between, it can be called again: only the record goes before the rest is safe in its place, and
    without it nobody counts on more pictures to come.
    """
    storage.remove([RECORD])
    parts = storage.names(PARTS)
    drop_staged(storage, _batches_of(parts))
    join_staged(storage)
    if parts:
        fold(storage, plan.keys)
        storage.remove(f"{PARTS}/{name}" for name in parts)
    storage.tidy()


def spans(items: Items) -> tuple[tuple[int, int], ...]:
    """Ascending numbers as runs (first, last)."""
    if not len(items):
        return ()
    ends = np.flatnonzero(np.diff(items) != 1)
    firsts, lasts = items[np.append(0, ends + 1)], items[np.append(ends, len(items) - 1)]
    return tuple((int(a), int(b)) for a, b in zip(firsts, lasts, strict=True))
