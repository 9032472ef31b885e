"""Several processes draw a job together, and end together: by jax.distributed on this machine."""

import dataclasses
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from autolora_jax import ConfigError
from autolora_jax.batch import Job, draw_job, read_manifest
from autolora_jax.batch.processes import check_weights, part
from autolora_jax.batch.run import Summary, together
from autolora_jax.settings import ModelConfig
from autolora_jax.settings.changes import load_preset
from tests.batch_jobs import draw_all, open_fake, small_job, tree
from tests.batch_processes import Machines, Told

LOST_AFTER = 4  # seconds; the default is longer
MORE, ABORTED = 75, -signal.SIGABRT


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    machines = Machines(2)
    yield machines
    machines.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[int | None, dict[str, bytes]]:
    """What one process leaves, by the size of shards."""
    out = tmp_path_factory.mktemp("whole")
    for size in (None, 12):
        draw_all(small_job(size), out / str(size))
    return {size: tree(out / str(size)) for size in (None, 12)}


def codes(told: list[Told]) -> list[int]:
    return [one.code for one in told]


def drawn(told: list[Told]) -> list[str]:
    """Keys, of all processes."""
    return sorted(key for one in told for key in one.drawn)


# ---- a job ends as if one process had drawn it -----------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [None, 12])
def test_two_processes_leave_what_one_does(machines: Machines, whole, shard_size: int | None, tmp_path: Path):
    told = machines.run(tmp_path, shard_size=shard_size, late=[0, 0.5])  # when the other one is done
    assert codes(told) == [0, 0], told
    assert tree(tmp_path / "out") == whole[shard_size]
    assert len(drawn(told)) == len(set(drawn(told))) == 30
    # A shard's batches are one process's: of 8 batches, 3 in a shard.
    assert [len(one.drawn) for one in told] == ([15, 15] if shard_size is None else [12, 18])
    assert told[0].stdout == f"30 pictures drawn into {tmp_path / 'out'}\n"
    assert "30 to draw in 8 batches, " in told[0].stderr
    assert (told[1].stdout, told[1].stderr) == ("", "")
    again = machines.run(tmp_path, shard_size=shard_size)
    assert (codes(again), drawn(again)) == ([0, 0], [])


JOB = """
from autolora_jax import NoGuidance
from autolora_jax.batch import Job, Settings
from autolora_jax.settings import ModelConfig

def get_config():
    settings = Settings(
        model=ModelConfig({folder!r}, "float32"),
        guidance=NoGuidance(),  # the smallest program, because compiling is what this waits for
        num_inference_steps=2,
        size=(32, 32),
    )
    return Job(prompts=("a cat", "süß, the 猫"), seeds=(0, 1, 2**40, 3), settings=settings, batch_size=1)
"""


def test_two_processes_of_four_devices_draw_what_eight_devices_do(
    machines: Machines, small_folder: Path, tmp_path: Path
):
    """Byte for byte, because each device draws as many at once; test_batch_pipeline compares eight devices with one."""
    file = tmp_path / "job.py"
    file.write_text(JOB.format(folder=str(small_folder)), encoding="utf-8")
    before = jax.config.jax_compilation_cache_dir
    try:
        draw_job(load_preset(file, Job), tmp_path / "eight")
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    told = machines.run(tmp_path, job=file.read_text(encoding="utf-8"), devices=4)
    assert codes(told) == [0, 0], told
    assert tree(tmp_path / "out") == tree(tmp_path / "eight")
    assert [row["status"] for row in read_manifest(tmp_path / "out")] == ["ok"] * 8
    runs = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines() if '"run"' in line]
    assert [(run["devices"], run["rows"], run["ok"]) for run in runs] == [("4 cpu", 4, 4)] * 2


# ---- and when it does not end ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("told_to_stop", [0, 1])
def test_one_that_is_told_to_stop_stops_all(machines: Machines, told_to_stop: int, tmp_path: Path):
    ends = [None, None]
    ends[told_to_stop] = [signal.SIGTERM, 1]
    stopped = machines.run(tmp_path, seeds=15, ends=ends, pause=0.2)  # 12 batches each
    assert codes(stopped) == [MORE, MORE], stopped
    assert all("the same command goes on from there" in one.stderr for one in stopped)
    assert len(stopped[told_to_stop].drawn) == 4 and 4 <= len(stopped[1 - told_to_stop].drawn) < 40
    goes_on = machines.run(tmp_path, seeds=15)
    assert codes(goes_on) == [0, 0], goes_on
    assert drawn([*stopped, *goes_on]) == sorted(row["key"] for row in read_manifest(tmp_path / "out"))
    draw_all(dataclasses.replace(small_job(), seeds=range(15)), tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("killed", [0, 1])
def test_one_that_vanishes_ends_all_in_bounded_time(machines: Machines, whole, killed: int, tmp_path: Path):
    ends = [None, None]
    ends[killed] = [signal.SIGKILL, 3]
    begun = time.monotonic()
    broken = machines.run(tmp_path, ends=ends, pause=0.2, lost_after=LOST_AFTER)
    seconds = time.monotonic() - begun
    assert [codes(broken)[i] for i in (killed, 1 - killed)] == [-signal.SIGKILL, ABORTED], broken
    assert seconds < LOST_AFTER + 30  # starting and drawing included; seen: 6, of which 4 are LOST_AFTER
    assert "another task died" in broken[1 - killed].stderr
    recorded = {row["key"] for row in read_manifest(tmp_path / "out")}
    assert 4 <= len(recorded) < 30
    # One machine alone goes on.
    (alone,) = machines.run(tmp_path, count=1)
    assert alone.code == 0, alone
    assert not recorded & set(alone.drawn) and len(recorded) + len(alone.drawn) == 30
    assert tree(tmp_path / "out") == whole[None]


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"seeds": [5, 6]}, "the job is not process 0's"),
        ({"devices": [1, 2]}, "equally many devices, but process 0 has 1, process 1 has 2"),
        ({"out": ["{folder}/a", "{folder}/b"]}, "b is not where process 0 writes to: use a bucket"),
        ({"shard_size": [None, 12]}, "holds png files, and this job makes png shards"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_processes_that_do_not_agree_say_so(machines: Machines, order: dict, words: str, tmp_path: Path):
    order = {name: [str(v).format(folder=tmp_path) if name == "out" else v for v in vs] for name, vs in order.items()}
    told = machines.run(tmp_path, **order, pause=0.2)
    assert codes(told) == [1, 1], told
    assert all(words in one.stderr for one in told)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--distributed", "coordinator_address should be defined. Cloud TPU, SLURM and Open MPI tell it by themselves"),
        ("--coordinator-address 127.0.0.1:1 --num-processes 2 --process-id 2", "Got process_id=2, num_processes=2. "),
    ],
    ids=["nowhere", "too many"],
)
def test_processes_that_cannot_join_say_why(machines: Machines, flags: str, words: str, tmp_path: Path):
    (told,) = machines.run(tmp_path, count=1, flags=flags)
    assert told.code == 1 and words in told.stderr, told


def test_another_number_of_devices_goes_on_with_what_is_left(machines: Machines, tmp_path: Path):
    stopped = machines.run(tmp_path, ends=[[signal.SIGTERM, 2], None], pause=0.2)
    goes_on = machines.run(tmp_path, devices=2)  # batches of 8
    assert (codes(stopped), codes(goes_on)) == ([MORE, MORE], [0, 0]), (stopped, goes_on)
    keys = [row["key"] for row in read_manifest(tmp_path / "out")]
    assert drawn([*stopped, *goes_on]) == sorted(keys) and len(keys) == 30


# ---- who draws what --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [None, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 7, 40])
def test_parts_are_stretches_of_about_the_same_work(count: int, shard_size: int | None, tmp_path: Path):
    grid = [{"sampler.steps": [2]}, {"sampler.steps": [6], "size": [(16, 32), (32, 32)]}]
    job = dataclasses.replace(small_job(shard_size), seeds=range(40), grid=grid)
    work = open_fake(job, tmp_path)
    parts = [part(work, number, count) for number in range(count)]
    assert [batch.number for own in parts for batch in own] == [batch.number for batch in work.todo]
    shares = [{batch.number // (2 if shard_size else 1) for batch in own} for own in parts]
    assert sum(map(len, shares)) == len(set().union(*shares))

    def cost(own: list) -> float:
        recipes = [work.plan.row(int(batch.items[0])).recipe for batch in own]
        return sum(recipe.evaluations * recipe.size[0] * recipe.size[1] for recipe in recipes)

    costs, largest = [cost(own) for own in parts], max(cost(share) for share in work.shares)
    assert max(costs) <= sum(costs) / count + largest


def test_nothing_left_is_shared_out(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    assert part(open_fake(small_job(), tmp_path), 1, 3) == []


def test_weights_are_not_split_over_processes(tmp_path: Path):
    settings = dataclasses.replace(small_job().settings, model=ModelConfig("fake", weight_shards=8))
    work = open_fake(dataclasses.replace(small_job(), settings=settings), tmp_path)
    check_weights(work, 8)
    with pytest.raises(ConfigError, match=r"weight_shards = 8 is more than the 4 devices of a process"):
        check_weights(work, 4)


def test_summaries_add_up():
    one = Summary(ok=3, failed=1, seconds=4.0, busy=2.0, preparing=1.0)
    two = Summary(ok=2, not_finite=1, seconds=8.0, busy=6.0, preparing=1.0, problem="why")
    both = together([one, two])
    assert both == Summary(5, 1, 1, 6.0, 4.0, 1.0, False, "why")
    assert both.idle_share == (one.idle + two.idle) / (one.seconds + two.seconds - 2.0)
