"""One run at a time draws into a place: others are refused, and what was killed is taken over from."""

import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autolora_jax.batch import owner as owners
from autolora_jax.batch.owner import FILE, OwnedError, Owner, owning
from autolora_jax.batch.run import run
from autolora_jax.batch.storage import Bucket, Folder, Storage
from tests.batch_jobs import Runs, draw, draw_all, open_fake, small_job, tree

FAST = {"BEAT": 0.05, "LEASE": 0.5, "SETTLE": 0.1, "LOOK_EVERY": 0.02}  # seconds


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    for name, seconds in FAST.items():
        monkeypatch.setattr(owners, name, seconds)
    return Folder(tmp_path) if request.param == "folder" else Bucket(f"memory://owned-{tmp_path.name}")


def elsewhere(**changes: object) -> Owner:
    """A run of another machine."""
    return dataclasses.replace(Owner.new(), host="other", machine="another boot", **changes)  # type: ignore[arg-type]


def test_a_second_run_is_refused_and_told_of_the_first(storage: Storage):
    with owning(storage):
        said = rf"another run draws into .*: process {os.getpid()} on .*, since 20\d\d-"
        with pytest.raises(OwnedError, match=said) as e, owning(storage):
            raise AssertionError
        assert "Let it end, or stop it, and give the same command again" in str(e.value)
    assert storage.read(FILE) is None
    with owning(storage):
        pass


def test_a_run_of_another_machine_is_watched(storage: Storage):
    """While it gives signs of life it owns the place; then it is taken over from, whatever clocks say."""
    other = elsewhere(since="2999-01-01T00:00:00+00:00")
    owners._write(storage, other)
    alive = threading.Event()

    def beat() -> None:
        beats = 0
        while not alive.wait(0.1):
            beats += 1
            owners._write(storage, dataclasses.replace(other, beat=beats))

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(OwnedError, match="on other, since 2999"), owning(storage):
        raise AssertionError
    alive.set()
    thread.join()
    begun = time.monotonic()
    with pytest.warns(UserWarning, match="on other, since 2999.* until that is known to be over"), owning(storage):
        assert time.monotonic() - begun >= FAST["LEASE"]
        assert owners.owner_of(storage).host != "other"  # type: ignore[union-attr]


def test_a_run_that_was_killed_here_is_taken_over_from_at_once(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    before = dataclasses.replace(Owner.new(), pid=ended.pid, started=owners._started(ended.pid) or "")
    ended.wait()
    again = dataclasses.replace(Owner.new(), started="1")  # its number is another process's by now
    for one in (before, again):
        owners._write(Folder(tmp_path), one)
        begun = time.monotonic()
        with owning(Folder(tmp_path)):
            assert time.monotonic() - begun < 5


def test_jumping_clocks_change_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch):
    clock = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: clock.uniform(0, 4e9))
    with owning(storage) as owned:
        for _ in range(3):
            with pytest.raises(OwnedError), owning(storage):
                raise AssertionError
        time.sleep(4 * FAST["BEAT"])
        assert owned.owner.beat and not owned.lost


def test_a_run_that_slept_stops_and_leaves_the_place_to_its_heir(storage: Storage):
    with owning(storage) as owned:
        heir = elsewhere()
        owners._write(storage, heir)
        deadline = time.monotonic() + 10
        while not owned.lost and time.monotonic() < deadline:
            time.sleep(0.02)
        begun = []
        with pytest.raises(
            OwnedError, match=r"on other, since .* has taken .* over: this run had given no sign of life"
        ):
            begun += [*owned.checked([1, 2])]
    assert not begun and owners.owner_of(storage) == heir


def test_what_is_no_owner_is_ignored(storage: Storage):
    for content in (b"", b"{}", b"[1", b'{"host": 1}', b"null"):
        storage.write(FILE, content)
        with owning(storage):
            pass


def test_a_place_that_can_only_be_read_has_no_owner(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with owning(Folder(tmp_path / "file" / "out")):
        pass


def test_nothing_is_left_of_it(storage: Storage):
    with owning(storage):
        draw_all(small_job(), storage)
        time.sleep(3 * FAST["BEAT"])
    assert storage.names(".autolora") == []
    if isinstance(storage, Folder):
        assert not (storage.root / ".autolora").exists()


def test_an_unfinished_job_keeps_what_it_needs(storage: Storage):
    with owning(storage):
        work = open_fake(small_job(), storage)
        run(work, draw, work.todo[:3])
    assert open_fake(small_job(), storage).done == {0, 1, 2} and storage.read(FILE) is None


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Runs, Runs]]:
    pair = Runs(), Runs()
    yield pair
    for one in pair:
        one.close()


def test_two_at_once_draw_what_one_does(both: tuple[Runs, Runs], tmp_path: Path):
    """Whenever the second comes, and also if the first is killed: it is refused, or takes over."""
    first, second = both
    assert first.run(tmp_path / "whole", shard_size=12, owned=True) == 0
    files, clock, codes = tree(tmp_path / "whole"), random.Random(0), []
    for attempt in range(6):
        out = tmp_path / str(attempt)
        pid = first.begin(out=str(out), shard_size=12, owned=True)
        time.sleep(clock.uniform(0, 0.5))
        second.begin(out=str(out), shard_size=12, owned=True)
        if attempt % 2:
            os.kill(pid, signal.SIGKILL)
        codes += [first.end(), second.end()]
        assert {*codes} <= {0, OwnedError.EXIT_CODE, -signal.SIGKILL}
        assert first.run(out, shard_size=12, owned=True) == 0
        assert tree(out) == files
    assert OwnedError.EXIT_CODE in codes and 0 in codes
