"""A job at its place: what is planned, what is done, what is to be drawn. Workers that share a place each open it."""

import dataclasses
import itertools
import os
from collections.abc import Sequence

import jax

from autolora_jax.batch.formats import FORMATS, Features, open_features
from autolora_jax.batch.ledger import Ledger, Record, open_place, open_record, settle
from autolora_jax.batch.plan import Batch, Plan, make_plan
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.storage import Storage, open_storage
from autolora_jax.batch.store import Shards, Store
from autolora_jax.settings.jobs import Job


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
        if len(self.ledger.done()) < len(self.batches):
            return False
        settle(self.storage, self.plan)
        return True


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
    open_place(storage, job.output, None if features is None else features.source)
    record = open_record(storage, plan, rows, job.output, retry)
    return enter(job, plan, storage, record, features)


def enter(job: Job, plan: Plan, storage: Storage, record: Record, features: Features | None = None) -> Work:
    """The work of a record."""
    ledger, batches = Ledger(storage, record), record.batches(plan)
    done, to = ledger.done(), (storage, FORMATS[job.output.format].suffix)
    shards = record.first_shard, record.shard_batches
    store = Shards(*to, *shards, len(batches), done) if record.shard_batches else Store(*to)
    return Work(job, plan, storage, ledger, store, batches, frozenset(done), features)
