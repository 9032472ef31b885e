"""Jobs without a model: sources that exist by name alone, pictures made of their keys, and runs that can be killed.

python -m tests.batch_jobs        # reads runs as JSON lines, forks one for each; see `Runs`
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from autolora_jax.batch.draw import Draw, Drawing, Pictures
from autolora_jax.batch.owner import OwnedError, owning
from autolora_jax.batch.plan import Batch, Plan, Row, make_plan
from autolora_jax.batch.run import Summary, run
from autolora_jax.batch.sources import File, Model, Sources, digest
from autolora_jax.batch.storage import Folder, Storage
from autolora_jax.batch.work import Work, open_plan
from autolora_jax.config import SchedulerConfig
from autolora_jax.settings import Job, Lora, ModelConfig, OutputConfig, Settings
from autolora_jax.weights.families import SD3, SDXL
from autolora_jax.weights.published import SD35_MEDIUM, SDXL_BASE

SIDE = 16
SETTINGS = Settings(loras=(Lora("a", 0.5),), num_inference_steps=2, size=(SIDE, SIDE))
RUN_ALONE = ("log.jsonl",)  # what differs from run to run


class FakeSources(Sources):
    """A model or LoRA of every name, known by it."""

    def model(self, config: ModelConfig) -> Model:
        name = config.source or "fake"
        if name.startswith("sd3"):
            flow = SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction")
            return Model(config, name, digest(name), SD3, SD35_MEDIUM, flow)
        return Model(config, name, digest(name), SDXL, SDXL_BASE, SchedulerConfig())

    def lora(self, source: str) -> File:
        return File(source, Path(source).stem, digest(source), digest(source)[:12])

    embedding = lora


def plan_of(job: Job) -> Plan:
    return make_plan(job, FakeSources())


def open_fake(job: Job, out: Path | Storage, rows: int = 4, retry: bool = False) -> Work:
    """As work.open_work does it."""
    return open_plan(job, plan_of(job), Folder(out) if isinstance(out, Path) else out, rows, retry=retry)


def pixels(row: Row) -> np.ndarray:
    """The picture of a key."""
    return np.random.default_rng(int(row.key, 16)).integers(0, 256, (SIDE, SIDE, 3), np.uint8)


def draw(rows: Sequence[Row], batch: Batch) -> Drawing:
    """A `Draw`."""
    assert 1 <= len(rows) <= batch.rows
    return Drawing({}, lambda: Pictures(np.stack([pixels(row) for row in rows]), np.ones(len(rows), bool)))


def draw_all(job: Job, out: Path | Storage, rows: int = 4, draw: Draw = draw, **options: Any) -> tuple[Work, Summary]:
    """Opens, draws what is left, finishes."""
    work = open_fake(job, out, rows, **options)
    summary = run(work, draw)
    assert summary.more or work.finish()
    return work, summary


def tree(out: Path) -> dict[str, bytes]:
    """All files but those that tell of the run alone."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    found = {path.relative_to(out).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if name not in RUN_ALONE and not name.startswith(".xla/")}


# ---- runs to be killed -----------------------------------------------------------------------------------------------


SHARDS = 12  # pictures of a shard of it: three batches


def small_job(shard_size: int | None = None) -> Job:
    """30 pictures in 8 batches of 4."""
    return Job(
        prompts=("a cat", "ein süßer Hund", "a bird"),
        seeds=tuple(range(5)),
        settings=SETTINGS,
        grid={"lora_scale": [0.5, 1.0]},
        output=OutputConfig(shard_size=shard_size),
    )


def slow_draw(rows: Sequence[Row], batch: Batch) -> Drawing:
    """Takes a few milliseconds, so that batches overlap as on devices."""
    failed, wait = draw(rows, batch)

    def later() -> Pictures:
        time.sleep(0.005)
        return wait()

    return Drawing(failed, later)


@contextmanager
def crash(at: int | None) -> Iterator[None]:
    """Kills this process at the so many-th moment of writing: half a file, before or after a rename or a removal."""
    moments, lock = itertools.count(), threading.Lock()

    def moment(half: int | None = None) -> None:
        with lock:
            if next(moments) == at:
                if half is not None:
                    os.ftruncate(half, os.fstat(half).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)

    def around(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **options: Any) -> Any:
            moment()
            result = function(*arguments, **options)
            moment()
            return result

        return called

    fsync = os.fsync

    def half_written(file: int) -> None:
        moment(file)
        fsync(file)

    os.fsync = half_written
    Path.replace, Path.unlink = around(Path.replace), around(Path.unlink)  # type: ignore[method-assign]
    yield


class Runs:
    """A process that forks one for every run: nothing is imported again."""

    def __init__(self, module: str = "tests.batch_jobs") -> None:
        """module: a program that calls `serve`."""
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=Path(__file__).parents[1],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, out: Path, kill_after: float | None = None, **order: Any) -> int:
        """Draws small_job; its exit status, negative: the signal that ended it. kill_after: seconds until SIGKILL."""
        pid = self.begin(out=str(out), **order)
        if kill_after is not None:
            time.sleep(kill_after)
            os.kill(pid, signal.SIGKILL)  # no one else's: it is waited for only in `end`
        return self.end()

    def begin(self, **order: Any) -> int:
        """Begins a run: its process id."""
        assert self._process.stdin and self._process.stdout
        print(json.dumps(order), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def end(self) -> int:
        """The exit status of the run that was begun, once it has ended."""
        assert self._process.stdin and self._process.stdout
        print("reap", file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def _obey(order: Mapping[str, Any]) -> int:
    out = Path(order["out"])
    try:
        with crash(order.get("crash")), owning(Folder(out)) if order.get("owned") else nullcontext():
            draw_all(small_job(order.get("shard_size")), out, draw=slow_draw)
    except OwnedError as e:
        (out.parent / f"{out.name}.refused").write_text(str(e))
        return OwnedError.EXIT_CODE
    return 0


def serve(obey: Callable[[Mapping[str, Any]], int | None]) -> None:
    """Forks a process for every order, whose exit status is what `obey` returns: none is 0."""
    import pyarrow.parquet  # noqa: F401  # once, not in every run

    for line in sys.stdin:
        if (pid := os.fork()) == 0:
            code = 1
            try:
                code = obey(json.loads(line)) or 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def counted(drawn: list[str]) -> Callable[[Sequence[Row], Batch], Drawing]:
    """`draw`, noting keys."""

    def note(rows: Sequence[Row], batch: Batch) -> Drawing:
        drawn.extend(row.key for row in rows)
        return draw(rows, batch)

    return note


def rows_of(out: Path) -> list[dict]:
    """The rows of a finished job's manifest."""
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    serve(_obey)
