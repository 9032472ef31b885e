"""A worker of a fleet: an actor of Ray, which holds the model as long as it lives and draws the batches it is sent."""

import asyncio
import os
import queue
import socket
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from autolora_jax.batch.formats import open_features
from autolora_jax.batch.plan import Batch, Plan, make_plan
from autolora_jax.batch.run import OnBatch, RowOfManifest, Summary, draw_work
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.storage import open_storage
from autolora_jax.batch.work import Record, Work, enter, find_record
from autolora_jax.config import ConfigError
from autolora_jax.settings.jobs import Job

LOOK_EVERY = 0.05  # seconds between looks at what was sent, while there is nothing to begin


class Hello(NamedTuple):
    """A worker that is there. devices: how many it draws with."""

    host: str
    devices: int


class Studio:
    """What a fleet plans and draws with: pipelines."""

    def __init__(self, compilation_cache: str | None = None) -> None:
        """compilation_cache: as of draw_job."""
        self.compilation_cache = compilation_cache

    def plan(self, job: Job) -> Plan:
        return make_plan(job, Sources())

    def devices(self) -> int:
        """How many this worker has."""
        return jax.local_device_count()

    def draw(self, work: Work, batches: Iterable[Batch | None], on_batch: OnBatch) -> Summary:
        """Draws and records batches, as run.run does."""
        return draw_work(work, batches, compilation_cache=self.compilation_cache, on_batch=on_batch)


class Worker:
    """Draws in a thread of its own, batch after batch, so that the devices go from one to the next without a pause.

    Its methods are called by the driver, and what they raise is raised there.
    """

    def __init__(self, job: Job, out: str, folder: str, studio: Studio) -> None:
        """folder: the driver's, where its names of files are meant; used where it exists."""
        if Path(folder).is_dir():
            os.chdir(folder)
        self._job, self._out, self._studio = job, out, studio
        self._work: Work | None = None
        self._running: asyncio.Future[Summary] | None = None
        self._sent: queue.SimpleQueue[Batch] = queue.SimpleQueue()
        self._waiting: dict[str, asyncio.Future[list[RowOfManifest]]] = {}  # key of a batch's first picture -> rows
        self._leave, self._all_done = threading.Event(), True

    async def hello(self) -> Hello:
        return Hello(socket.gethostname(), self._studio.devices())

    async def open(self, record: Record, retry: bool) -> None:
        """Opens the driver's job, to draw it. Raises ConfigError when this is another one, or another place."""
        storage, plan, host = open_storage(self._out), self._studio.plan(self._job), socket.gethostname()
        if plan.fingerprint != record.plan:
            raise ConfigError(
                f"models, LoRAs or autolora-jax on {host} are not the driver's: install the same everywhere"
            )
        if record.items and find_record(storage, plan, record.rows, retry) != (record, True):
            raise ConfigError(
                f"{self._out} on {host} is not the driver's: a fleet on several machines needs a bucket (gs://…, "
                "s3://…) or a folder that all of them share"
            )
        self._work = enter(self._job, plan, storage, record, open_features(self._job.output, plan))
        loop = asyncio.get_running_loop()

        def recorded(rows: Sequence[RowOfManifest]) -> None:
            loop.call_soon_threadsafe(self._waiting.pop(rows[0]["key"]).set_result, list(rows))

        self._running = loop.run_in_executor(None, self._studio.draw, self._work, self._batches(), recorded)

    async def draw(self, number: int) -> list[RowOfManifest] | None:
        """A batch's rows of the manifest, once it is recorded; None: it was not begun before `leave`.

        Raises what drawing raised, be it of this or another batch: the worker is of no use any more.
        """
        assert self._work is not None and self._running is not None
        batch = self._work.batches[number]
        told: asyncio.Future[list[RowOfManifest]] = asyncio.get_running_loop().create_future()
        self._waiting[self._work.plan.row(int(batch.items[0])).key] = told
        self._sent.put(batch)
        either: set[asyncio.Future[Any]] = {told, self._running}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if told.done():
            return told.result()
        self._running.result()
        return None

    async def leave(self, all_done: bool) -> Summary:
        """Ends the drawing after the batches that have begun. all_done: there is no more work for anyone."""
        assert self._running is not None
        self._all_done = all_done
        self._leave.set()
        return await self._running

    def _batches(self) -> Iterator[Batch | None]:
        """What is sent, as it comes."""
        while not self._leave.is_set():
            try:
                yield self._sent.get(timeout=LOOK_EVERY)
            except queue.Empty:
                yield None
        if not self._all_done:
            raise KeyboardInterrupt  # as where one process draws alone: its run was stopped
