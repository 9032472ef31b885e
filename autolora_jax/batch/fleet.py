"""Fleets: workers that come and go, each with a model of its own, draw one job together. Ray starts and places them.

    driver      opens the job ──▶ sends numbers of batches, hears of recorded ones ──▶ closes the job
    workers     plan the same job, draw what they are sent, write it to the job's place

Workers share nothing but that place, so any of them may vanish at any moment: what it had not recorded is drawn by
another, and Ray starts a new one where there is room. Workers that join later, as clusters grow, get work as they come.
Jobs and rows travel as Ray sends Python objects, in pickles, among machines that trust each other anyway; files are
never read like that, and the job's file is executed by the driver alone.
"""

import dataclasses
import functools
import itertools
import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autolora_jax.batch.cluster import LOCAL, Resources, connected, options, room, said, usual_resources
from autolora_jax.batch.dispatch import ATTEMPTS, Dispatch
from autolora_jax.batch.owner import owning
from autolora_jax.batch.run import OnBatch, RowOfManifest, Summary, Tally, together
from autolora_jax.batch.storage import open_storage
from autolora_jax.batch.work import Work, find_record, open_plan
from autolora_jax.batch.worker import Hello, Studio, Worker
from autolora_jax.config import ConfigError
from autolora_jax.settings.jobs import Job

PATIENCE = 60.0  # seconds without any worker until that is said


class FleetError(RuntimeError):
    """Workers were lost again and again. Says with what, and what to do."""


def draw_fleet(
    job: Job,
    out: str | os.PathLike[str],
    *,
    address: str | None = None,
    workers: int | None = None,
    resources: Resources | None = None,
    retry: bool = False,
    compilation_cache: str | os.PathLike[str] | None = None,
    on_work: Callable[[Work], None] | None = None,
    on_batch: OnBatch | None = None,
    studio: Studio | None = None,
) -> Summary:
    """As draw_job, by workers of a Ray cluster.

    out: a place that all workers reach. address: of the cluster; "auto": the one that this machine belongs to; "local":
    one on this machine, for this call; None: the one that Ray is connected to already, else as Ray finds it.
    workers: at once; a cluster that scales makes room for them. Default: as many as it has room for now.
    resources: of each worker, such as {"TPU": 4} or {"GPU": 1, "CPU": 4}. Default: all TPUs of a machine, or a GPU, or
    a CPU, as the cluster has them. All workers must have equally many devices. Ray hides the others from JAX.
    studio: what workers draw with.

    Returns what all workers did; times are means over them. Raises as draw_job, and FleetError.
    """
    with connected(address) as ray:
        studio = studio or Studio(None if compilation_cache is None else str(compilation_cache))
        place = os.fspath(out) if "://" in os.fspath(out) else str(Path(out).absolute())
        plan = studio.plan(job)
        # The file of prompts is read once, here.
        job = dataclasses.replace(job, prompts=tuple(plan.prompts), prompt_file=None)
        storage = open_storage(place)
        with owning(storage) as owned:
            open_for = functools.partial(open_plan, job, plan, storage, retry=retry)
            if not find_record(storage, plan, 0, retry)[0].items:  # nobody needs to come
                work = open_for(rows=job.batch_size)
                if on_work:
                    on_work(work)
                return Summary(**work.outcome())
            nodes = ray.nodes()
            needs = resources or usual_resources(nodes)
            if min(needs.values()) <= 0:
                raise ConfigError(f"resources of a worker, {said(needs)}, should be above 0")
            fitting = sum(room(node, needs) for node in nodes)
            if not fitting and (address == LOCAL or not workers):
                raise ConfigError(f"no machine of the cluster has {said(needs)}, which a worker needs; see resources")
            actor = ray.remote(Worker).options(**options(needs))
            hire = functools.partial(actor.remote, ray.put(job), place, os.getcwd(), ray.put(studio))
            fleet = _Fleet(
                ray, hire, workers or fitting, open_for, job.batch_size, retry, on_work, on_batch, owned.check
            )
            return fleet.run(said(needs))


@dataclasses.dataclass
class _Fleet:
    """A run, as the driver sees it. Workers have numbers; one that replaces another has a new one."""

    ray: Any
    hire_one: Callable[[], Any]
    workers: int
    open_for: Callable[..., Work]
    batch_size: int
    retry: bool
    on_work: Callable[[Work], None] | None
    on_batch: OnBatch | None
    check: Callable[[], None]  # raises what ends the run

    def __post_init__(self) -> None:
        self._work: Work | None = None
        self._dispatch = Dispatch(self.workers)
        self._numbers = itertools.count()
        self._actors: dict[int, Any] = {}
        self._ready: set[int] = set()  # workers that have opened the job
        self._calls: dict[Any, tuple[int, Callable[[Any], None]]] = {}  # call -> worker, what is done with its result
        self._leaving = False
        self._tally = Tally()
        self._summaries: list[Summary] = []

    def run(self, needs: str) -> Summary:
        """Draws all there is. needs: of a worker, for messages."""
        try:
            with suppress(KeyboardInterrupt):  # batches that have begun come to their end, and a second one is heeded
                self._draw_all(needs)
            more = not self._over
            self._let_leave(all_done=not more)
        finally:
            for worker in list(self._actors):
                self._drop(worker)
        self._raise_what_failed()
        outcome = self._work.outcome() if self._work and not more else {"more": more}
        return dataclasses.replace(together(self._summaries or [Summary()]), **outcome, **self._tally.counts())

    def _draw_all(self, needs: str) -> None:
        for _ in range(self.workers):
            self._hire()
        while not self._over:
            self.check()
            if not self._handle_next(PATIENCE) and not self._ready:
                self._warn(f"No worker has come yet: each needs {needs}, and `ray status` says what there is")
            self._send()

    @property
    def _over(self) -> bool:
        """Whether there is nothing left to do, or no use in it."""
        return self._dispatch.hopeless is not None or (self._work is not None and self._dispatch.over)

    def _hire(self) -> None:
        worker = next(self._numbers)
        self._actors[worker] = self.hire_one()
        self._call(worker, "hello", then=functools.partial(self._open, worker))

    def _call(self, worker: int, method: str, *arguments: Any, then: Callable[[Any], None]) -> None:
        self._calls[getattr(self._actors[worker], method).remote(*arguments)] = worker, then

    def _handle_next(self, patience: float | None) -> bool:
        """Waits for a call that returns, and acts on it. Whether one did."""
        returned, _ = self.ray.wait(list(self._calls), num_returns=1, timeout=patience)
        for reference in returned:
            worker, then = self._calls.pop(reference)
            if worker not in self._actors:  # what it has recorded was found in the ledger
                continue
            try:
                result = self.ray.get(reference)
            except self.ray.exceptions.RayError as e:
                self._on_error(worker, e)
            else:
                then(result)
        return bool(returned)

    def _open(self, worker: int, hello: Hello) -> None:
        """Lets a worker that has come open the job, which the first one's devices open here."""
        rows = self.batch_size * hello.devices
        if self._work is None:
            self._work = self.open_for(rows=rows)
            self._dispatch.put(self._work.shares)
            if self.on_work:
                self.on_work(self._work)
        record = self._work.ledger.record
        if rows == record.rows:
            return self._call(worker, "open", record, self.retry, then=lambda _: self._ready.add(worker))
        others = record.rows // self.batch_size
        self._refuse(
            worker,
            ConfigError(
                f"the worker on {hello.host} has {hello.devices} devices, and the first one had {others}: give each "
                "worker equally many, by --resources"
            ),
        )

    def _send(self) -> None:
        """Sends workers what they may be sent now."""
        for worker in self._ready:
            while batch := self._dispatch.next(worker):
                self._call(worker, "draw", batch.number, then=functools.partial(self._count, worker, batch.number))

    def _count(self, worker: int, number: int, rows: Sequence[RowOfManifest] | None) -> None:
        """A batch that is recorded; None: it was not begun."""
        if rows is None:
            return
        self._dispatch.done(worker, number)
        self._tally.add(rows)
        if self.on_batch:
            self.on_batch(rows)

    def _on_error(self, worker: int, error: Any) -> None:
        """A worker's method raised something, or the worker is gone."""
        by_error = isinstance(error, self.ray.exceptions.RayTaskError)
        why = error.cause if by_error else error
        if getattr(error, "actor_init_failed", False):
            self._refuse(worker, FleetError(f"a worker can't start: {_last_line(error)}"))
        elif by_error and worker not in self._ready:
            self._refuse(worker, why)
        else:
            self._lose(worker, why, by_error)

    def _lose(self, worker: int, why: BaseException, by_error: bool) -> None:
        """A worker is of no use any more, and another may be."""
        self._drop(worker)
        for number in self._dispatch.sent(worker):
            if self._work and (rows := self._work.ledger.rows(number)):  # recorded, and then there was nobody to say so
                self._count(worker, number, rows)
        self._dispatch.lose(worker, why, by_error)
        if not self._leaving and not self._over:
            self._hire()

    def _refuse(self, worker: int, why: BaseException) -> None:
        """A worker can't draw this job where it is, nor could another one. Raises that if nobody else is left."""
        self._drop(worker)
        if not self._actors:
            raise why
        self._warn(f"The fleet is one worker smaller: {why}")

    def _drop(self, worker: int) -> None:
        self.ray.kill(self._actors.pop(worker))
        self._ready.discard(worker)

    def _raise_what_failed(self) -> None:
        """Raises what ended workers that had the same batch, or no matter what batch; all others are done."""
        why, told = self._dispatch.hopeless, "No batch was done in between: the next worker would end like them"
        if why is None:
            if not self._dispatch.given_up or self._work is None:
                return
            number, why = next(iter(self._dispatch.given_up.items()))
            batch, others = self._work.batches[number], len(self._dispatch.given_up) - 1
            first = self._work.plan.row(int(batch.items[0]))
            told = (
                f"They had batch {number}, {len(batch.items)} pictures from {first.prompt!r}, seed {first.seed} on. "
                + (f"It was like that with {others} other batches. " if others else "")
                + "The rest is done, and the same command tries again"
            )
        if isinstance(why, self.ray.exceptions.RayError):
            text = f"{ATTEMPTS} or more workers vanished, one after another. {told}. Ray says: {_last_line(why)}"
            raise FleetError(text) from why
        why.add_note(f"{ATTEMPTS} or more workers ended with this, one after another. {told}")
        raise why

    def _warn(self, text: str) -> None:
        warnings.warn(text, stacklevel=2)

    def _let_leave(self, all_done: bool) -> None:
        """Waits for workers to end what they have begun."""
        self._leaving = True
        for worker in set(self._actors) - self._ready:
            self._drop(worker)
        for worker in self._ready:
            self._call(worker, "leave", all_done, then=self._summaries.append)
        while any(worker in self._ready for worker, _ in self._calls.values()):
            self._handle_next(None)


def _last_line(error: BaseException) -> str:
    """Of what Ray says, where the cause stands."""
    return str(error).strip().splitlines()[-1]
