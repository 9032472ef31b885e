"""A job that is killed at any moment, also inside writes, ends with the files of one that never was."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_jobs import Runs, tree

# How often each form of output is killed, by a clock and inside writes.
KILLS = [pytest.param(8, id="8"), pytest.param(50, id="50", marks=pytest.mark.slow)]
CRASHES = [pytest.param(6, id="6"), pytest.param(25, id="25", marks=pytest.mark.slow)]
SHARDS = 12  # pictures of a shard: three batches


@pytest.fixture(scope="module")
def runs() -> Iterator[Runs]:
    runs = Runs()
    yield runs
    runs.close()


@pytest.fixture(scope="module", params=[None, SHARDS], ids=["files", "shards"])
def whole(request: pytest.FixtureRequest, runs: Runs, tmp_path_factory: pytest.TempPathFactory):
    """(pictures of a shard, what an uninterrupted run leaves, how long it takes)."""
    out = tmp_path_factory.mktemp("whole")
    assert runs.run(out / "warm", shard_size=request.param) == 0
    begun = time.monotonic()
    assert runs.run(out / "out", shard_size=request.param) == 0
    seconds = time.monotonic() - begun
    files = tree(out / "out")
    assert files == tree(out / "warm")
    assert files["manifest.jsonl"].count(b'"status": "ok"') == 30
    assert not any(name.startswith(".autolora") for name in files)
    return request.param, files, seconds


@pytest.mark.parametrize("most", KILLS)
def test_killed_by_the_clock(runs: Runs, whole, tmp_path: Path, most: int):
    shard_size, files, seconds = whole
    clock, kills, places = random.Random(0), 0, 0
    while kills < most:
        out = tmp_path / str(places)
        places += 1
        # Later and later, or a place might never be finished.
        for attempt in range(1, 1000):
            after = clock.uniform(0, seconds * min(1.2, 0.2 * attempt))
            if runs.run(out, kill_after=after, shard_size=shard_size) == 0:
                break
            kills += 1
        assert tree(out) == files
    assert places > most // 25


@pytest.mark.parametrize("crashes", CRASHES)
def test_killed_inside_writes(runs: Runs, whole, tmp_path: Path, crashes: int):
    shard_size, files, _ = whole
    moments = 0
    while runs.run(tmp_path / "count" / str(moments), crash=moments, shard_size=shard_size) != 0:
        moments += 50
    assert moments > 100
    for moment in random.Random(1).sample(range(moments), crashes):
        out = tmp_path / str(moment)
        status = runs.run(out, crash=moment, shard_size=shard_size)
        assert status in (0, -signal.SIGKILL)  # threads share the moments: the last ones may not come
        if status:  # once more, in what is done when a run goes on
            runs.run(out, crash=moment % 17, shard_size=shard_size)
            assert runs.run(out, shard_size=shard_size) == 0
        assert tree(out) == files
