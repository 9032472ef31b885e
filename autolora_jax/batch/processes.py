"""Many processes draw one job together: one on each host of a TPU slice, or one for each GPU of a cluster.

    process 0     opens the job ──▶ "work" ──▶ draws its part ──▶ waits for all "end"s, closes the job ──▶ "outcome"
    the others             wait for "work" ──▶ draw their parts ──▶ "end", wait for "outcome"

They agree once on what there is to do and then draw on their own devices: programs exchange nothing, and no process
waits for another before the end. What they say to each other is kept by the coordination service of jax.distributed.
One that is told to stop, or can't go on, says "left", and all stop after the batches that they have begun. One that
vanishes without a word is missed after LOST_AFTER seconds: JAX then ends the others, with exit code 134. Whatever
happens, the place says what is done, and the same command goes on, with as many processes as there are then.
"""

import collections
import dataclasses
import json
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import multihost  # JAX itself has no public name for the client of its service

from autolora_jax.batch.formats import open_features
from autolora_jax.batch.owner import OwnedError, owning
from autolora_jax.batch.plan import Batch, make_plan
from autolora_jax.batch.run import OnBatch, Summary, draw_work, together
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.storage import open_storage
from autolora_jax.batch.work import Work, check_place, enter, find_record, open_work, spans
from autolora_jax.config import ConfigError
from autolora_jax.progress import OnProgress
from autolora_jax.settings.jobs import Job

JOIN_WITHIN = 300  # seconds in which all processes must have come
LOST_AFTER = 100  # seconds without a sign of life
LOOK_EVERY = 0.5  # seconds
OnWork = Callable[[Work, Sequence[Batch]], None]


class PeerError(RuntimeError):
    """Another process of the job can't go on. Says which and why."""


# After these the same command goes on, and the other processes end as if they had been stopped.
_COMES_AGAIN = (KeyboardInterrupt, PeerError, OwnedError)


class Peers:
    """The processes of a job, as one of them knows them."""

    def __init__(self, number: int, count: int, client: Any) -> None:
        """number: of this process, count: of all; process_id and num_processes in JAX's words."""
        self.number, self.count, self._client = number, count, client
        self._job = 0

    def next_job(self) -> None:
        """What is said from now on is about another job. All processes draw the same jobs, in the same order."""
        self._job += 1

    def tell(self, what: str, message: Mapping[str, Any]) -> None:
        """Says something that all can hear from now on."""
        with _reachable():
            self._client.key_value_set(f"{self._folder(what)}{self.number}", json.dumps(message), allow_overwrite=True)

    def heard(self, what: str) -> dict[int, Any]:
        """What was said about this so far, by the processes' numbers."""
        with _reachable():
            told = self._client.key_value_dir_get(self._folder(what))
        return {int(key.rpartition("/")[2]): json.loads(message) for key, message in told}

    def wait(self, what: str, count: int = 1) -> dict[int, Any]:
        """The same, once so many have said it. Raises as `check` when one has left before."""
        while len(told := self.heard(what)) < count:
            self.check()
            time.sleep(LOOK_EVERY)  # in Python, where signals arrive
        return told

    def leave(self, error: BaseException | None = None) -> None:
        """Says that this process stops, and why if that is not because it was told to."""
        why = None if error is None or isinstance(error, _COMES_AGAIN) else str(error)
        self.tell("left", {"why": why, "host": socket.gethostname()})

    def check(self) -> None:
        """Raises PeerError when a process has left because it can't go on, KeyboardInterrupt when it was stopped."""
        left = self.heard("left")
        for number, told in left.items():
            if told["why"] is not None:
                raise PeerError(f"process {number} on {told['host']} stopped: {told['why']}")
        if left:
            raise KeyboardInterrupt

    def _folder(self, what: str) -> str:
        return f"autolora/{self._job}/{what}/"


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    join_within: int = JOIN_WITHIN,
    lost_after: int = LOST_AFTER,
) -> Peers:
    """Waits until all processes have come. To be called before anything asks JAX for devices.

    coordinator_address: host:port at which all reach process 0. What is None is asked of the cluster, as far as JAX
    knows it: Cloud TPU, GKE's TPUs, SLURM, Open MPI, Kubernetes with `jax[k8s]`.
    join_within, lost_after: seconds. JAX ends the process, with exit code 134, when not all have come by then, and
    later when one gives no sign of life for so long.
    Raises ConfigError when the cluster is none of these, or the numbers can't be.
    """
    asked = coordinator_address, num_processes, process_id
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from those who finish a batch
    jax.config.update("jax_cpu_collectives_implementation", None)  # processes exchange nothing
    try:
        jax.distributed.initialize(
            *asked,
            cluster_detection_method=None if None in asked else "deactivate",
            initialization_timeout=join_within,
            heartbeat_timeout_seconds=lost_after,
        )
    except ValueError as e:
        raise ConfigError(
            f"{str(e).rstrip('.')}. Cloud TPU, SLURM and Open MPI tell it by themselves; elsewhere give all of "
            "--coordinator-address HOST:PORT --num-processes N --process-id I"
        ) from None
    return Peers(jax.process_index(), jax.process_count(), multihost.get_jax_distributed_client())


def draw_together(
    job: Job,
    out: str | os.PathLike[str],
    peers: Peers,
    *,
    retry: bool = False,
    compilation_cache: str | os.PathLike[str] | None = None,
    on_work: OnWork | None = None,
    on_progress: OnProgress | None = None,
    on_batch: OnBatch | None = None,
) -> Summary:
    """As draw_job, by all processes, each of which calls this. All see the same `out`: a bucket or a shared folder.

    on_work: told what is to be done, and by this process. on_progress, on_batch: of this process alone.
    Returns what all have done. Raises as draw_job, and PeerError when another process can't go on.
    """
    peers.next_job()
    try:
        with owning(open_storage(out)) if peers.number == 0 else nullcontext() as owned:
            devices = _devices()
            work = _open(job, out, peers, devices, retry)
            batches = part(work, peers.number, peers.count)
            if on_work:
                on_work(work, batches)
            mine = _until_one_leaves(batches, peers)
            mine = owned.checked(mine) if owned else mine
            own = draw_work(work, mine, devices, compilation_cache, on_progress, on_batch)
            if not own.more:
                peers.tell("end", dataclasses.asdict(own))
                with suppress(KeyboardInterrupt):
                    if peers.number == 0:
                        ends = peers.wait("end", peers.count)
                        total = together([Summary(**ends[number]) for number in sorted(ends)])
                        peers.tell("outcome", dataclasses.asdict(dataclasses.replace(total, **work.outcome())))
                    return Summary(**peers.wait("outcome")[0])
        peers.leave()
        with suppress(KeyboardInterrupt):  # that one has left is no news
            peers.check()
        return dataclasses.replace(own, more=True)
    except BaseException as e:
        with suppress(PeerError):  # if it is process 0 that nobody hears any more
            peers.leave(e)
        raise


def part(work: Work, number: int, count: int) -> list[Batch]:
    """What one of so many processes draws of what is left: a stretch of the plan's order, as much work as any has.

    Neighbours share files and programs, so each process loads and compiles the least.
    """
    shares = work.shares
    costs = np.array([sum(_cost(work, batch) for batch in share) for share in shares], np.float64)
    middles = (np.cumsum(costs) - costs / 2) / max(costs.sum(), 1.0)
    drawn_by = np.floor(count * middles)
    return [batch for share, owner in zip(shares, drawn_by, strict=True) if owner == number for batch in share]


def _devices() -> list[jax.Device]:
    """This process's own. Raises ConfigError unless all have equally many: a job's batches have one size."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        told = ", ".join(f"process {number} has {count}" for number, count in sorted(counts.items()))
        raise ConfigError(f"all processes should have equally many devices, but {told}")
    return jax.local_devices()


def _open(job: Job, out: str | os.PathLike[str], peers: Peers, devices: Sequence[jax.Device], retry: bool) -> Work:
    """The job as process 0 finds it. Raises as open_work, and ConfigError when others find another job or place."""
    if peers.number == 0:
        work = open_work(job, out, devices, retry)
        check_weights(work, len(devices))
        items, numbers = work.ledger.record.items, np.array(sorted(work.done), np.int64)
        peers.tell("work", {"plan": work.plan.fingerprint, "items": items, "done": spans(numbers)})
        return work
    storage, plan = open_storage(out), make_plan(job, Sources())
    features = open_features(job.output, plan, devices)
    told = peers.wait("work")[0]
    if told["plan"] != plan.fingerprint:
        raise ConfigError(
            "the job is not process 0's: its file, prompts, models and LoRAs should be the same for all processes"
        )
    check_place(storage, job.output, features)
    record, there = find_record(storage, plan, job.batch_size * len(devices), retry)
    if there != bool(told["items"]) or [list(span) for span in record.items] != told["items"]:
        raise ConfigError(
            f"{storage.where} is not where process 0 writes to: use a bucket, or a folder that all machines share"
        )
    work = enter(job, plan, storage, record, features)
    done = frozenset(number for first, last in told["done"] for number in range(first, last + 1))
    return dataclasses.replace(work, done=done)  # others may have begun to draw since


def check_weights(work: Work, devices: int) -> None:
    """Raises ConfigError for weights that are split over more devices than a process has."""
    for shards in {recipe.load.model.config.weight_shards for recipe in work.plan.recipes}:
        if shards > devices:
            raise ConfigError(
                f"weight_shards = {shards} is more than the {devices} devices of a process: several processes can't "
                f"hold one copy of the weights together; use at most {devices}"
            )


def _cost(work: Work, batch: Batch) -> float:
    """How long a batch takes, in relation to others: rows are the same for all."""
    (number,) = work.plan.recipes_of(batch.items[:1])
    recipe = work.plan.recipes[int(number)]
    return float(recipe.evaluations * recipe.size[0] * recipe.size[1])


def _until_one_leaves(batches: Iterable[Batch], peers: Peers) -> Iterator[Batch]:
    """The batches; a KeyboardInterrupt in place of the next one as soon as a process has left."""
    for batch in batches:
        if peers.heard("left"):
            raise KeyboardInterrupt
        yield batch


@contextmanager
def _reachable() -> Iterator[None]:
    """Raises PeerError when the service, which is process 0's, does not answer."""
    try:
        yield
    except jax.errors.JaxRuntimeError as e:
        raise PeerError(f"process 0 can't be reached any more: {e}") from None
