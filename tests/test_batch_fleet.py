"""Fleets on a local Ray cluster: whoever vanishes, the job ends with the files of one process that drew it alone."""

import asyncio
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest

from autolora_jax import ConfigError
from autolora_jax.batch import Job, dispatch, draw_job, read_manifest
from autolora_jax.batch.cluster import room, usual_resources
from autolora_jax.batch.dispatch import ATTEMPTS, Dispatch
from autolora_jax.batch.fleet import FleetError, draw_fleet
from autolora_jax.batch.plan import Batch
from autolora_jax.batch.storage import StorageError
from autolora_jax.batch.worker import Worker
from autolora_jax.settings import changes
from tests.batch_jobs import draw_all, open_fake, plan_of, small_job, tree
from tests.fleet_jobs import FakeStudio
from tests.programs import autolora

MORE = 75
SHARD = 12  # pictures: three batches
ROOT = Path(__file__).parents[1]
PACE = 0.15  # seconds a batch takes where something has to happen meanwhile

JOB = """
from autolora_jax.batch import Job, Settings
from autolora_jax.settings import Lora, ModelConfig

def get_config():
    settings = Settings(
        model=ModelConfig(dtype="float32"), loras=(Lora("builtin:character"),), num_inference_steps=1, size=(32, 32)
    )
    return Job(prompts=("a zib", "a red cat"), seeds=range(4), settings=settings, batch_size=2)
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of a cluster with room for four workers, which this process is connected to."""
    import ray

    # Ray's sockets lie in it, and their paths may have 107 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    on_sigterm = signal.getsignal(signal.SIGTERM)  # Ray leaves one of its own
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")  # no token in the home folder
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # else workers hardly run beside other tests
        patch.setenv("PYTHONPATH", str(ROOT))  # of workers, whose studio is one of the tests'
        told = ray.init(
            num_cpus=4,
            resources={"odd": 1},
            include_dashboard=False,
            object_store_memory=80 * 2**20,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=folder,
        )
        yield told.address_info["address"]
        ray.shutdown()
    signal.signal(signal.SIGTERM, on_sigterm)
    shutil.rmtree(folder, ignore_errors=True)


def whole(folder: Path, shard_size: int | None = None) -> dict[str, bytes]:
    """What one process makes of the job."""
    draw_all(small_job(shard_size), folder)
    return tree(folder)


# ---- who draws what, without Ray -------------------------------------------------------------------------------------


def shares_of(*sizes: int) -> list[list[Batch]]:
    numbers = iter(range(sum(sizes)))
    return [[Batch(next(numbers), np.arange(0), 4) for _ in range(n)] for n in sizes]


def sent(board: Dispatch, worker: int) -> list[int]:
    """Sends all that a worker may be sent now."""
    batches = []
    while batch := board.next(worker):
        batches.append(batch.number)
    return batches


def test_shares_are_the_batches_of_a_shard(tmp_path: Path):
    work = open_fake(small_job(SHARD), tmp_path / "shards")
    assert [[batch.number for batch in share] for share in work.shares] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    some_done = dataclasses.replace(work, done=frozenset({0, 3, 4, 5}))
    assert [[batch.number for batch in share] for share in some_done.shares] == [[1, 2], [6, 7]]
    files = open_fake(small_job(), tmp_path / "files")
    assert [[batch.number for batch in share] for share in files.shares] == [[i] for i in range(8)]


def test_workers_are_sent_batches_ahead_and_shares_whole():
    board = Dispatch(2)
    board.put(shares_of(*[10] * 10))
    assert sent(board, 0) == [0, 1, 2, 3, 4, 5] and sent(board, 1) == [10, 11, 12, 13, 14, 15]
    board.done(0, 0)
    assert sent(board, 0) == [6] and sent(board, 1) == []
    near_the_end = Dispatch(2)
    near_the_end.put(shares_of(*[1] * 6))
    assert sent(near_the_end, 0) == [0, 1] and sent(near_the_end, 1) == [2, 3]


def test_what_a_lost_worker_had_is_drawn_last_and_alone():
    board = Dispatch(2)
    board.put(shares_of(4, 2))
    assert sent(board, 0) == [0, 1]
    board.done(0, 0)
    assert sent(board, 0) == [2]
    board.lose(0, OSError(), by_error=False)
    assert sent(board, 1) == [3, 4]  # the rest of the share, then the next
    board.done(1, 3)
    assert sent(board, 1) == [5]
    board.done(1, 4)
    assert sent(board, 1) == []
    board.done(1, 5)
    assert sent(board, 1) == [1] and sent(board, 2) == [2]
    board.done(1, 1)
    board.done(2, 2)
    assert board.over and not board.given_up


def test_a_batch_that_ends_every_worker_is_given_up():
    board, why = Dispatch(1), [OSError(str(i)) for i in range(ATTEMPTS)]
    board.put(shares_of(1, 1))
    for worker in range(ATTEMPTS):
        assert not board.over
        for number in sent(board, worker):
            if number == 1:
                board.done(worker, 1)
        board.lose(worker, why[worker], by_error=worker % 2 == 0)
    assert board.over and board.given_up == {0: why[-1]} and board.hopeless is None


@pytest.mark.parametrize(("by_error", "most"), [(True, ATTEMPTS), (False, 2 * ATTEMPTS)])
def test_workers_that_end_whatever_they_draw_are_not_replaced_forever(by_error: bool, most: int):
    board = Dispatch(2)
    board.put(shares_of(*[1] * 1000))
    lost = 0
    while not board.over:
        assert sent(board, lost)
        board.lose(lost, OSError(), by_error)
        lost += 1
    assert lost == most and board.hopeless


def test_what_a_worker_needs_by_default():
    tpu, gpu, cpu = ({"Alive": True, "Resources": r} for r in ({"TPU": 4.0, "CPU": 96.0}, {"GPU": 8.0}, {"CPU": 3.0}))
    assert usual_resources([cpu, gpu, tpu]) == {"TPU": 4.0}
    assert usual_resources([cpu, gpu]) == {"GPU": 1.0}
    assert usual_resources([cpu]) == {"CPU": 1.0}
    assert [room(node, {"GPU": 2}) for node in (tpu, gpu, {**gpu, "Alive": False})] == [0, 4, 0]


def test_workers_that_could_not_draw_the_same_are_refused(tmp_path: Path):
    record, studio = open_fake(small_job(), tmp_path / "out").ledger.record, FakeStudio(tmp_path / "notes")

    def opened(job: Job, out: str) -> None:
        opening = Worker(job, str(tmp_path / out), str(tmp_path), studio).open(record, retry=False)
        with ThreadPoolExecutor(1) as pool:  # in this thread the browser of other tests may have a loop running
            pool.submit(asyncio.run, opening).result()

    with pytest.raises(ConfigError, match=r"is not the driver's: a fleet on several machines needs a bucket"):
        opened(small_job(), "elsewhere")
    with pytest.raises(ConfigError, match=r"are not the driver's: install the same everywhere"):
        opened(dataclasses.replace(small_job(), seeds=(1,)), "out")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--workers", "2"], "are those of a fleet: --ray auto"),
        (["--ray", "auto", "--workers", "0"], "--workers 0 should be at least 1"),
        (["--ray", "auto", "--resources", "TPU"], "should be NAME=AMOUNT, such as TPU=4"),
        (["--ray", "auto"], "a fleet needs Ray: pip install 'autolora-jax[ray]'"),
    ],
)
def test_flags_of_fleets(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    file = tmp_path / "job.py"
    file.write_text(JOB)
    result = autolora("batch", file, "--out", tmp_path / "out", *arguments)
    assert result.exit_code == 1 and words in result.stderr


# ---- with Ray --------------------------------------------------------------------------------------------------------


def killer(studio: FakeStudio) -> Callable[[Sequence[dict]], None]:
    """An on_batch that kills the worker of the batch that was begun first, once."""
    killed: list[int] = []

    def on_batch(rows: Sequence[dict]) -> None:
        if not killed:
            killed.append(min(studio.noted())[1])
            os.kill(killed[0], signal.SIGKILL)

    return on_batch


def test_a_worker_killed_midway_changes_nothing(address: str, tmp_path: Path):
    studio, told = FakeStudio(tmp_path / "notes", PACE), []
    kill = killer(studio)
    out = tmp_path / "out"

    def on_batch(rows: Sequence[dict]) -> None:
        told.extend(row["key"] for row in rows)
        kill(rows)

    summary = draw_fleet(small_job(SHARD), out, workers=2, studio=studio, on_batch=on_batch)
    assert (summary.ok, summary.more) == (30, False)
    begun = [number for number, _ in studio.noted()]
    assert set(begun) == set(range(8)) and len(begun) > 8  # some were drawn again, by another
    assert sorted(told) == sorted(key.decode() for key in plan_of(small_job()).keys)  # each once
    assert tree(out) == whole(tmp_path / "whole", SHARD)
    again = draw_fleet(small_job(SHARD), out, studio=studio)
    assert again.pictures == 0


def test_batches_that_end_their_workers_do_not_stop_the_others(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dispatch, "ATTEMPTS", 2)  # for the time that it takes
    studio, out = FakeStudio(tmp_path / "notes", deadly=(3,)), tmp_path / "out"
    with pytest.raises(FleetError, match=r"batch 3, 3 pictures from 'a bird', seed 2 on. The rest is done"):
        draw_fleet(small_job(), out, workers=2, studio=studio)
    assert len(read_manifest(out)) == 27
    assert [number for number, _ in studio.noted()].count(3) == 2
    faulty = FakeStudio(tmp_path / "more", faulty=(3,))
    with pytest.raises(StorageError, match="batch 3 can't be kept") as raised:
        draw_fleet(small_job(), out, workers=1, studio=faulty)
    assert "the same command tries again" in raised.value.__notes__[0]
    draw_all(small_job(), out)
    assert tree(out) == whole(tmp_path / "whole")


def test_a_driver_that_is_killed_or_stopped_goes_on(address: str, tmp_path: Path):
    notes, out = tmp_path / "notes", tmp_path / "out"

    def driver(pace: float, stop: int | None = None) -> int:
        """Its exit code. stop: sent when it is told of a batch: workers of an earlier one may still record some."""
        command = [sys.executable, "-m", "tests.fleet_jobs", address, str(out), str(notes), str(pace)]
        process = subprocess.Popen(command, cwd=ROOT)
        while stop and not Path(f"{notes}.{process.pid}").exists() and process.poll() is None:
            time.sleep(0.02)
        if stop:
            process.send_signal(stop)
        return process.wait()

    assert driver(3 * PACE, signal.SIGKILL) == -signal.SIGKILL
    assert driver(3 * PACE, signal.SIGTERM) == MORE
    # Workers of the killed driver record what they have begun: how much is left is a matter of the machine.
    assert len(open_fake(small_job(), out).todo) < 6
    assert driver(0.0) == 0
    assert tree(out) == whole(tmp_path / "whole")


def test_a_worker_with_other_devices_is_refused(address: str, tmp_path: Path):
    studio, out = FakeStudio(tmp_path / "notes", PACE, device_counts=(1, 2)), tmp_path / "out"
    with pytest.warns(UserWarning, match="has 2 devices, and the first one had 1: give each worker equally many"):
        summary = draw_fleet(small_job(), out, workers=2, studio=studio)
    assert summary.ok == 30 and len({process for _, process in studio.noted()}) == 1
    assert tree(out) == whole(tmp_path / "whole")


def test_what_a_cluster_has_no_room_for_is_said(address: str, tmp_path: Path):
    for resources, words in (({"TPU": 4}, "no machine of the cluster has 4 TPU"), ({"CPU": 0}, "should be above 0")):
        with pytest.raises(ConfigError, match=words):
            draw_fleet(small_job(), tmp_path, resources=resources, studio=FakeStudio(tmp_path / "notes"))


def test_the_command_draws_with_the_built_in_model(address: str, tmp_path: Path):
    file, out, alone = tmp_path / "job.py", tmp_path / "out", tmp_path / "alone"
    file.write_text(JOB)
    result = autolora("batch", file, "--out", out, "--ray", address, "--workers", 2, "--resources", "CPU=1")
    assert result.exit_code == 0, result.output
    assert result.stdout == f"8 pictures drawn into {out}\n"
    assert "0 of 8 pictures are there, 8 to draw in 4 batches" in result.stderr
    draw_job(changes.load_preset(file, Job), alone, devices=jax.devices()[:1])
    assert tree(out) == tree(alone)
    assert "drawn into" in autolora("batch", file, "--out", out, "--ray", address).stdout
