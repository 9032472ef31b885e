"""`autolora batch`: plan, say what there is to do, draw, say what came out."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax

from autolora_jax.batch import Job, Summary, Work, draw_job, processes
from autolora_jax.batch.book import Trouble
from autolora_jax.batch.draw import Artist
from autolora_jax.batch.estimate import Calibration, Estimate, calibrate, estimate
from autolora_jax.batch.fleet import draw_fleet
from autolora_jax.batch.formats import FORMATS
from autolora_jax.batch.manifest import OK
from autolora_jax.batch.owner import owner_of
from autolora_jax.batch.plan import Batch as Planned
from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.processes import Peers
from autolora_jax.batch.repair import repair
from autolora_jax.batch.run import RowOfManifest
from autolora_jax.batch.sources import Sources
from autolora_jax.batch.storage import open_storage
from autolora_jax.batch.verify import verify
from autolora_jax.compilation import keep_programs
from autolora_jax.config import ConfigError
from autolora_jax.display import Display, say
from autolora_jax.settings.programs.batch import Batch
from autolora_jax.settings.programs.program import MORE
from autolora_jax.settings.programs.reproduce import Reproduce
from autolora_jax.weights.lora.metadata import listing

JOB = "job.json"  # what flags alone said, beside the pictures: a job's file like any other
MOST_PROBLEMS = 5  # that are said while drawing; all are in the manifest
MOST_TROUBLES = 20  # that are said of what a verification found
LACKING = 3  # exit code: pictures can't be drawn, or are not what they should be


class Counter:
    """Shows how far a job is, and keeps what it is where flags alone say it."""

    def __init__(self, display: Display, asked: Batch | Reproduce) -> None:
        self._display = display
        self._only_flags = isinstance(asked, Batch) and asked.job is None
        self.total = self._done = 0
        self.problems = 0

    def begin(self, work: Work, own: Sequence[Planned] | None = None) -> None:
        """draw_job's on_work. own: what this one of several processes draws of it, and counts."""
        if self._only_flags:
            content = json.dumps(work.job.to_table(), indent=2, ensure_ascii=False) + "\n"
            work.storage.write(JOB, content.encode())
        left = sum(len(batch.items) for batch in work.todo)
        self.total = left if own is None else sum(len(batch.items) for batch in own)
        wanted = len(work.plan) - work.plan.duplicates
        part = "" if own is None else f", {self.total} of them by this process, which counts its own"
        say(f"{wanted - left} of {wanted} pictures are there, {left} to draw in {len(work.todo)} batches{part}")
        if work.plan.duplicates:
            say(f"{work.plan.duplicates} more are wanted twice, and drawn once", "dim")

    def count(self, rows: Sequence[RowOfManifest]) -> None:
        """draw_job's on_batch."""
        self._done += len(rows)
        for row in (row for row in rows if row["status"] != OK):
            self.problems += 1
            if self.problems <= MOST_PROBLEMS:
                say(f"Warning: {row['prompt']!r}, seed {row['seed']}: {row['reason']}", "yellow")
        self._display.update("Draw", self._done, self.total, "pictures")


def run(asked: Batch) -> int:
    """Draws what is left of a job. MORE: it was stopped; LACKING: pictures have no file; 1: nothing could be drawn."""
    if asked.dry_run:
        print(describe(asked.settings, asked.out, asked))
        return 0
    if asked.verify:
        return check(asked)
    team = fleet(asked)
    address = asked.coordinator_address, asked.num_processes, asked.process_id
    peers = processes.join(*address) if asked.distributed or address != (None, None, None) else None
    summary = draw(asked.settings, asked.out, asked, peers, team)
    if summary.more:
        say("Stopped. What was begun is saved, and the same command goes on from there.", "yellow")
        return MORE
    if summary.pictures and not summary.ok:
        say(f"Error: none of {summary.pictures} pictures could be drawn. The first: {summary.problem}", "red")
        return 1
    if peers is None or peers.number == 0:
        print(f"{summary.ok} pictures drawn into {asked.out}")
    return LACKING if summary.lacking else 0


def check(asked: Batch) -> int:
    """Verifies a place, and repairs it if that is asked for. LACKING: something is wrong in the end; MORE: stopped."""
    plan = make_plan(asked.settings, Sources()) if asked.has_job else None
    if (owner := owner_of(open_storage(asked.out))) and owner.is_here is not False:
        say(
            f"{owner}, draws into {asked.out}, or was stopped: what it changes meanwhile may be told as wrong", "yellow"
        )
    with Display() as display:
        found = verify(asked.out, plan=plan, on_progress=display.row("Verify"))
    _say_all(found.troubles)
    print(f"{found.pictures:,} pictures checked in {asked.out}, {found.bytes / 1e9:.3g} GB: {_count(found.troubles)}")
    if found.unlisted:
        say(f"{found.unlisted:,} files of pictures stand in no row; the job says whether their rows are gone", "yellow")
    if found.undrawn:
        say(f"{found.undrawn:,} pictures of the job have no row: without --verify they are drawn", "yellow")
    if not asked.repair or not found.troubles:
        return LACKING if found.troubles or found.undrawn else 0
    wrong = len({trouble.key for trouble in found.troubles} - {None})
    with Display() as display:
        counter = Counter(display, asked)
        counter.total = wrong
        made = repair(
            asked.settings,
            asked.out,
            found,
            compilation_cache=asked.compilation_cache,
            on_progress=display,
            on_batch=counter.count,
        )
    _say_all(made.left)
    if made.forgotten:
        say(f"{made.forgotten} batches of the unfinished job are drawn with the rest: run it again", "yellow")
    print(f"{made.drawn:,} pictures drawn again in {asked.out}: {_count(made.left)} left")
    return MORE if made.more else LACKING if made.left or made.forgotten or found.undrawn else 0


def _say_all(troubles: Sequence[Trouble]) -> None:
    for trouble in troubles[:MOST_TROUBLES]:
        say(str(trouble), "yellow")
    if len(troubles) > MOST_TROUBLES:
        say(f"… and {len(troubles) - MOST_TROUBLES:,} more", "yellow")


def _count(troubles: Sequence[Trouble]) -> str:
    return f"{len(troubles):,} wrong" if troubles else "nothing wrong"


def fleet(asked: Batch) -> Mapping[str, Any] | None:
    """The fleet that draws the job, as arguments of draw_fleet; None: there is none. Raises ConfigError."""
    if asked.ray is None:
        if asked.workers is not None or asked.resources:
            raise ConfigError("--workers and --resources are those of a fleet: --ray auto, or --ray local")
        return None
    if asked.workers is not None and asked.workers < 1:
        raise ConfigError(f"--workers {asked.workers} should be at least 1")
    jax.config.update("jax_platforms", "cpu")  # this machine's chips are for the workers
    resources = dict(map(_resource, asked.resources)) or None
    return {"address": asked.ray, "workers": asked.workers, "resources": resources}


def _resource(text: str) -> tuple[str, float]:
    name, _, amount = text.partition("=")
    try:
        return name, float(amount)
    except ValueError:
        raise ConfigError(f"--resources {text!r} should be NAME=AMOUNT, such as TPU=4, GPU=1 or CPU=8") from None


def draw(
    job: Job,
    out: str,
    asked: Batch | Reproduce,
    peers: Peers | None = None,
    fleet: Mapping[str, Any] | None = None,
) -> Summary:
    """Draws what is left of a job: alone, or as one of many processes, of which only the first says how far it is, or
    by a fleet.

    Raises as draw_job, draw_together and draw_fleet.
    """
    if peers and fleet:
        raise ConfigError("--ray starts workers by itself: leave --distributed and its addresses out")
    quiet = peers is not None and peers.number > 0
    with Display() as display:
        counter = Counter(display, asked)
        options: dict[str, Any] = {"retry": asked.retry, "compilation_cache": asked.compilation_cache}
        if not quiet:
            options |= {"on_work": counter.begin, "on_batch": counter.count}
        if fleet:
            summary = draw_fleet(job, out, **fleet, **options)
        else:
            options["on_progress"] = None if quiet else display  # of loading, which is a fleet's workers'
            draw_here = partial(processes.draw_together, peers=peers) if peers else draw_job
            summary = draw_here(job, out, **options)
    if quiet:
        return summary
    if missing := summary.lacking or summary.failed + summary.not_finite:
        say(f"{missing} pictures are recorded without a file; --retry draws them again", "yellow")
    if summary.pictures:
        say(tell(summary), "dim")
    return summary


def tell(summary: Summary) -> str:
    """What a run did with its time."""
    idle = f"devices idle {summary.idle_share:.1%} of the time, {summary.idle / summary.pictures:.3g} s a picture"
    return f"{summary.seconds:.0f} s, {summary.preparing:.0f} of them loading and compiling; else {idle}"


def describe(job: Job, out: str, asked: Batch | Reproduce, sources: Sources | None = None) -> str:
    """A job's plan and what it takes. Writes nothing to `out`. Raises as draw_job."""
    keep_programs(asked.compilation_cache)
    plan, rows = make_plan(job, sources or Sources()), job.batch_size * jax.device_count()
    told, batches = estimate(job, plan, open_storage(out), rows, asked.retry)
    calibration = None
    if asked.calibrate and batches:
        with Display() as display:
            artist = Artist(None, FORMATS[job.output.format].latents, display)
            calibration = calibrate(plan, batches[0], artist)
    return listing(f"Plan of {out}", _lines(job, told, rows, calibration))


def _lines(job: Job, told: Estimate, rows: int, calibration: Calibration | None) -> list[tuple[str, str]]:
    twice = f", {told.duplicates} of them wanted twice" if told.duplicates else ""
    lines = [
        ("pictures", f"{told.pictures:,}{twice}"),
        ("finished", f"{told.finished:,}"),
        ("to draw", f"{told.todo:,} in {told.batches:,} batches of {rows} ({told.padding:,} rows of padding)"),
        ("programs", f"{told.programs} to compile at most"),
        ("evaluations", f"{told.evaluations:,} of the denoiser"),
        ("arithmetic", f"{told.flop:.3g} FLOP"),
        ("disk", f"about {told.bytes / 1e9:.2g} GB as {job.output.format}"),
    ]
    if calibration:
        rate = f"{calibration.flop_rate / 1e12:.3g} TFLOP/s, {calibration.prepare:.0f} s to load and compile"
        lines.append(("time", f"about {_duration(calibration.seconds(told))} on {jax.device_count()} devices ({rate})"))
    return lines


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
