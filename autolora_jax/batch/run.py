"""The run: begin a batch, and while the devices draw it, fetch, encode, write and record the ones before.

    main thread      draw(batch k+2), told of k+3 ──▶ waits for a place on the devices
    devices          batch k+1
    finishing        batch k: wait, take features (if those are kept), encode (many threads), save, record

So many batches are on their way at most that memory is bounded. An interruption lets those that have begun come to
their end; whatever stops the run, the next one draws what is not recorded.
"""

import dataclasses
import datetime
import hashlib
import math
import os
import socket
import statistics
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np

from autolora_jax.batch.draw import Artist, Draw, Drawing
from autolora_jax.batch.formats import FORMATS
from autolora_jax.batch.manifest import FAILED, NOT_FINITE, OK, SOURCES, make_row
from autolora_jax.batch.owner import owning
from autolora_jax.batch.plan import Batch, Row, make_plan
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.storage import StorageError, open_storage
from autolora_jax.batch.store import Picture
from autolora_jax.batch.work import Work, open_plan
from autolora_jax.compilation import keep_programs
from autolora_jax.evaluation.kept import FEATURES
from autolora_jax.progress import OnProgress
from autolora_jax.settings.jobs import Job

ON_DEVICES = 2  # batches that the devices have been given: one is drawn, one waits
ON_THE_WAY = 4  # batches begun and not recorded
ROUNDS = 3  # in which what is lost before it is in its place is drawn again
WRITERS = max(4, min(16, os.cpu_count() or 1))  # threads that encode and write
RowOfManifest = dict[str, Any]
OnBatch = Callable[[Sequence[RowOfManifest]], None]


class Moments(NamedTuple):
    """When a batch was begun, given to the devices, drawn and recorded; seconds of one clock.

    first: of its program or files, so that it waited for loading and compiling.
    """

    begun: float
    given: float
    drawn: float
    recorded: float
    first: bool


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run did.

    seconds: from its begin to its end. busy: of the devices. preparing: idle while files were loaded and programs
    compiled. idle: idle otherwise: encoding prompts, waiting for the disk.
    more: whether it was interrupted and pictures are left to draw. problem: why the first picture that failed did, or
    the first that was not finite. lacking: pictures of the finished job that have no file, whenever that was.
    """

    ok: int = 0
    failed: int = 0
    not_finite: int = 0
    seconds: float = 0.0
    busy: float = 0.0
    preparing: float = 0.0
    more: bool = False
    problem: str | None = None
    lacking: int = 0

    @property
    def pictures(self) -> int:
        return self.ok + self.failed + self.not_finite

    @property
    def idle(self) -> float:
        return max(0.0, self.seconds - self.busy - self.preparing)

    @property
    def idle_share(self) -> float:
        """Of the time that is not spent on preparing."""
        return self.idle / max(self.seconds - self.preparing, 1e-9)

    def facts(self) -> dict[str, Any]:
        """It as JSON values."""
        per_picture = self.idle / self.pictures if self.pictures else 0.0
        return dataclasses.asdict(self) | {"idle_share": self.idle_share, "overhead_per_picture": per_picture}


def together(summaries: Sequence[Summary], times: Callable[[list[Any]], Any] = statistics.fmean) -> Summary:
    """What processes did: pictures of all. times: what is made of theirs, which are at the same time: their means."""

    def by(kind: Callable[[list[Any]], Any], *names: str) -> dict[str, Any]:
        return {name: kind([getattr(summary, name) for summary in summaries]) for name in names}

    sums, means = by(sum, "ok", "failed", "not_finite"), by(times, "seconds", "busy", "preparing")
    problem = next((summary.problem for summary in summaries if summary.problem), None)
    return Summary(**sums, **means, **by(any, "more"), problem=problem)


class Tally:
    """What comes of a run, batch by batch. Rows are counted, not kept."""

    def __init__(self) -> None:
        self.moments: list[Moments] = []
        self._statuses: Counter[str] = Counter()
        self._problems: dict[str, tuple[float, str]] = {}  # status -> (when its batch was begun, the reason)

    def add(self, rows: Sequence[RowOfManifest], moments: Moments | None = None) -> None:
        """A recorded batch. moments: those of its drawing; None: it was drawn elsewhere."""
        self.moments += [moments] if moments else []
        begun = moments.begun if moments else 0.0
        self._statuses.update(row["status"] for row in rows)
        for row in rows:
            if row["reason"] and begun < self._problems.get(row["status"], (math.inf, ""))[0]:
                self._problems[row["status"]] = begun, row["reason"]

    def counts(self) -> dict[str, Any]:
        """What is no time of a summary."""
        problem = next((self._problems[status][1] for status in (FAILED, NOT_FINITE) if status in self._problems), None)
        return {status: self._statuses[status] for status in (OK, FAILED, NOT_FINITE)} | {"problem": problem}

    def summary(self, zero: float, more: bool) -> Summary:
        """zero: when the run began, on the moments' clock."""
        busy = preparing = 0.0
        free = zero  # since when the devices had nothing to draw
        for moments in sorted(self.moments):
            if moments.first:
                preparing += max(0.0, moments.given - free)
            busy += max(0.0, moments.drawn - max(moments.given, free))
            free = max(free, moments.drawn)
        seconds = time.monotonic() - zero
        return Summary(seconds=seconds, busy=busy, preparing=preparing, more=more, **self.counts())


def draw_job(
    job: Job,
    out: str | os.PathLike[str],
    *,
    devices: Sequence[jax.Device] | None = None,
    retry: bool = False,
    compilation_cache: str | os.PathLike[str] | None = None,
    on_work: Callable[[Work], None] | None = None,
    on_progress: OnProgress | None = None,
    on_batch: OnBatch | None = None,
) -> Summary:
    """Draws what a job asks for and its place does not hold yet.

    out: a folder, or a URL that fsspec knows (gs://…, s3://…). A job that was stopped goes on; another one adds to it.
    devices: default all. retry: draw also what failed before, or was not finite.
    compilation_cache: where compiled programs are kept, see compilation.keep_programs.
    on_work: told what is to be done, before anything is loaded. on_progress: of loading. on_batch: rows as recorded.
    Raises ConfigError, WeightsError, ValueError for what can't be drawn, StorageError for what can't be kept, and
    OwnedError when another run draws there.
    """
    storage, plan, summaries = open_storage(out), make_plan(job, Sources()), list[Summary]()
    rows = job.batch_size * len(jax.devices() if devices is None else devices)
    with owning(storage) as owned:
        for _ in range(ROUNDS):
            work = open_plan(job, plan, storage, rows, devices, retry)
            if on_work:
                on_work(work)
            todo = owned.checked(work.todo)
            summaries.append(draw_work(work, todo, devices, compilation_cache, on_progress, on_batch))
            if summaries[-1].more:
                return together(summaries, sum)
            if not (outcome := work.outcome())["more"]:
                return dataclasses.replace(together(summaries, sum), **outcome)
            gone = f"{storage.where}: some of what was drawn was gone or damaged when the job was to be closed"
            warnings.warn(f"{gone}; it is drawn again", stacklevel=2)
    raise StorageError(
        f"{gone}, {ROUNDS} times. Does something else write or remove files there? The same command draws it again"
    )


def draw_work(
    work: Work,
    batches: Iterable[Batch | None] | None = None,
    devices: Sequence[jax.Device] | None = None,
    compilation_cache: str | os.PathLike[str] | None = None,
    on_progress: OnProgress | None = None,
    on_batch: OnBatch | None = None,
) -> Summary:
    """Draws batches of an opened job with pipelines: `run` for batches and on_batch, `draw_job` for the rest."""
    keep_programs(compilation_cache)
    artist = Artist(devices, FORMATS[work.job.output.format].latents, on_progress)
    used = jax.devices() if devices is None else devices
    about = {"devices": f"{len(used)} {used[0].device_kind}", "rows": work.ledger.record.rows}
    return run(work, artist, batches, on_batch, about)


def run(
    work: Work,
    draw: Draw,
    batches: Iterable[Batch | None] | None = None,
    on_batch: OnBatch | None = None,
    about: Mapping[str, Any] | None = None,
) -> Summary:
    """Draws batches and records them, each for itself.

    batches: of work.batches, asked for one by one; default: all that are not done. Several workers may share them out.
        None among them: the next one is not known yet, and what is recorded meanwhile is told.
    on_batch: called from this thread with the rows of the manifest of each batch that is recorded.
    about: the machine, for the log.
    Raises what `draw` raises, and StorageError; batches that were recorded before stay so.
    """
    started, zero = datetime.datetime.now(datetime.UTC), time.monotonic()
    tally = Tally()
    running: set[Future[tuple[list[RowOfManifest], Moments]]] = set()
    on_devices = threading.Semaphore(ON_DEVICES)
    all_begun = False
    tell: Callable[[Sequence[Row]], None] | None = getattr(draw, "ahead", None)

    def collect(most: int) -> None:
        """Takes the results of finished batches, and waits until at most `most` are running; raises their errors."""
        while finished := {future for future in running if future.done()} or (
            wait(running, return_when=FIRST_COMPLETED).done if len(running) > most else set()
        ):
            for future in finished:
                running.remove(future)
                rows, moments = future.result()
                tally.add(rows, moments)
                if on_batch:
                    on_batch(rows)

    # Whatever ends the run, batches that have begun are finished first, by writers that are still there.
    with ThreadPoolExecutor(WRITERS) as writers, ThreadPoolExecutor(ON_THE_WAY) as finishing:
        kind: Any = None
        try:
            for batch, following in with_next(work.todo if batches is None else batches):
                collect(ON_THE_WAY - 1)
                if batch is None:
                    continue
                on_devices.acquire()
                rows, begun = work.plan.rows(batch), time.monotonic()
                if following is not None and tell is not None:
                    tell(work.plan.rows(following))
                before, kind = kind, (rows[0].recipe.load.names, rows[0].recipe.program)
                drawing = draw(rows, batch)
                moments = Moments(begun, time.monotonic(), 0.0, 0.0, kind != before)
                task = finishing.submit(_finish, work, batch, rows, drawing, moments, on_devices, writers)
                running.add(task)
            all_begun = True
            collect(0)
        except KeyboardInterrupt:  # reaches this thread alone: batches that have begun come to their end in theirs
            collect(0)
    summary = tally.summary(zero, more=not all_begun)
    if tally.moments:
        when, of = started.isoformat(timespec="milliseconds"), {SOURCES: work.plan.sources}
        facts = {"run": when, "host": socket.gethostname(), **(about or {}), **of}
        work.ledger.note(f"{started:%Y%m%dT%H%M%S%f}-{os.getpid()}", {**facts, **summary.facts()})
    return summary


def with_next(batches: Iterable[Batch | None]) -> Iterator[tuple[Batch | None, Batch | None]]:
    """Each batch and, if it is known by then, the one that comes after it.

    Whatever ends the batches, the last one that they gave is given before.
    """
    source = iter(batches)
    for batch in source:
        while batch is not None:
            try:
                following = next(source, None)
            except BaseException:
                yield batch, None
                raise
            yield batch, following
            batch = following
        yield None, None


def _finish(
    work: Work,
    batch: Batch,
    rows: Sequence[Row],
    drawing: Drawing,
    moments: Moments,
    on_devices: threading.Semaphore,
    writers: ThreadPoolExecutor,
) -> tuple[list[RowOfManifest], Moments]:
    """Waits for a batch's pictures, keeps and records them."""
    try:
        pictures = drawing.wait()
    finally:
        on_devices.release()
    moments = moments._replace(drawn=time.monotonic())
    output, form = work.job.output, FORMATS[work.job.output.format]

    def encode(number: int, array: np.ndarray) -> Picture:
        row = rows[number]
        by = {FEATURES: work.features.source._asdict()} if work.features else {}
        content = form.encode(array, row.settings | by, output.quality)
        place = work.store.place(batch.number, number, row.key)
        told = make_row(row, OK, **place._asdict(), sha256=hashlib.sha256(content).hexdigest())
        return Picture(place, content, told)

    drawn = [i for i in range(len(rows)) if i not in drawing.failed]
    good = [i for i, finite in zip(drawn, pictures.finite, strict=True) if finite]
    arrays = [array for array, finite in zip(pictures.arrays, pictures.finite, strict=True) if finite]
    if work.features:
        arrays = list(work.features.of(arrays, writers))
    kept = list(writers.map(encode, good, arrays))
    work.store.save(batch.number, kept, writers)
    told = {i: picture.row for i, picture in zip(good, kept, strict=True)}
    told |= {i: make_row(rows[i], FAILED, reason=why) for i, why in drawing.failed.items()}
    missing = "NaN or infinite values; lower guidance or LoRA scales, or dtype float32, may help"
    ordered = [told.get(i) or make_row(row, NOT_FINITE, reason=missing) for i, row in enumerate(rows)]
    facts = {
        "batch": batch.number,
        "pictures": len(rows),
        "host": socket.gethostname(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
        "seconds_to_begin": moments.given - moments.begun,
        "seconds_to_draw": moments.drawn - moments.given,
        "seconds_to_keep": time.monotonic() - moments.drawn,
    }
    work.ledger.commit(batch.number, ordered, facts)
    work.ledger.forget(work.store.committed(batch.number))
    return ordered, moments._replace(recorded=time.monotonic())
