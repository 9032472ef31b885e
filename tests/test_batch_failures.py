"""Runs in which something can't be drawn or kept: poison, devices, interruptions, full disks, buckets."""

import errno
import itertools
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from autolora_jax import ConfigError
from autolora_jax.batch import Drawing, Pictures, StorageError
from autolora_jax.batch.plan import Batch, Row
from autolora_jax.batch.run import run
from autolora_jax.batch.storage import Bucket, Folder
from tests.batch_jobs import (
    counted,
    draw,
    draw_all,
    open_fake,
    pixels,
    rows_of,
    small_job,
    tree,
)


def poisoned(rows: Sequence[Row], batch: Batch) -> Drawing:
    """As `draw`, but for the second prompt, whose text is poison, and seed 3, which is not finite."""
    failed = {i: "TypeError: no text" for i, row in enumerate(rows) if row.prompt.startswith("ein")}
    drawn = [row for i, row in enumerate(rows) if i not in failed]
    arrays = np.stack([pixels(row) for row in drawn]) if drawn else np.zeros((0,))
    return Drawing(failed, lambda: Pictures(arrays, np.array([row.seed != 3 for row in drawn], bool)))


@pytest.mark.parametrize("shard_size", [None, 12])
def test_poison_and_nan_are_recorded_and_stop_nothing(shard_size: int | None, tmp_path: Path):
    _, summary = draw_all(small_job(shard_size), tmp_path, draw=poisoned)
    assert (summary.ok, summary.failed, summary.not_finite) == (16, 10, 4)
    assert summary.problem == "TypeError: no text"
    for row in rows_of(tmp_path):
        bad = "failed" if row["prompt"].startswith("ein") else "not_finite" if row["seed"] == 3 else "ok"
        assert row["status"] == bad
        assert (row["file"] is None) == (row["sha256"] is None) == (bad != "ok") == (row["reason"] is not None)
    drawn: list[str] = []
    draw_all(small_job(shard_size), tmp_path, draw=counted(drawn))
    assert drawn == []


def test_retry_draws_what_failed_and_records_it_anew(tmp_path: Path):
    draw_all(small_job(), tmp_path, draw=poisoned)
    keys, drawn = [row["key"] for row in rows_of(tmp_path)], []
    draw_all(small_job(), tmp_path, draw=counted(drawn), retry=True)
    assert len(drawn) == 14
    assert {row["status"] for row in rows_of(tmp_path)} == {"ok"}
    assert [row["key"] for row in rows_of(tmp_path)] == keys


def test_an_error_of_the_device_stops_the_run_and_loses_nothing(tmp_path: Path):
    def fails_later(rows: Sequence[Row], batch: Batch) -> Drawing:
        failed, drawn = draw(rows, batch)

        def wait() -> Pictures:
            if batch.number >= 4:
                raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")
            if batch.number == 3:
                time.sleep(0.3)  # it is finished when the run has ended
            return drawn()

        return Drawing(failed, wait)

    work = open_fake(small_job(), tmp_path)
    with pytest.raises(RuntimeError, match="RESOURCE_EXHAUSTED"):
        run(work, fails_later)
    assert open_fake(small_job(), tmp_path).done == {0, 1, 2, 3}
    draw_all(small_job(), tmp_path)
    draw_all(small_job(), tmp_path / "whole")
    assert (
        tree(tmp_path / "whole").items()
        <= {name.removeprefix("whole/"): content for name, content in tree(tmp_path).items()}.items()
    )


# ---- interruptions ---------------------------------------------------------------------------------------------------


def test_an_interruption_ends_what_was_begun(tmp_path: Path):
    def interrupted(rows: Sequence[Row], batch: Batch) -> Drawing:
        if batch.number == 3:
            signal.raise_signal(signal.SIGINT)
        return draw(rows, batch)

    work = open_fake(small_job(), tmp_path)
    summary = run(work, interrupted)
    assert summary.more and summary.ok == 12
    assert not work.finish()
    again = open_fake(small_job(), tmp_path)
    assert again.done == {0, 1, 2}
    draw_all(small_job(), tmp_path)
    draw_all(small_job(), tmp_path / "whole")
    assert (tmp_path / "manifest.jsonl").read_bytes() == (tmp_path / "whole" / "manifest.jsonl").read_bytes()


def test_an_interruption_of_the_last_batches_is_none(tmp_path: Path):
    def interrupted(rows: Sequence[Row], batch: Batch) -> Drawing:
        failed, wait = draw(rows, batch)

        def interrupt() -> Pictures:
            if batch.number == 7:
                time.sleep(0.1)  # until this one, too, has been begun
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            return wait()

        return Drawing(failed, interrupt)

    work = open_fake(small_job(), tmp_path)
    assert not run(work, interrupted).more
    assert work.finish()


def test_few_batches_are_on_their_way_at_once(tmp_path: Path):
    """However slow the disk: pictures do not pile up in memory."""
    open_, most, lock = 0, 0, threading.Lock()

    def count(rows: Sequence[Row], batch: Batch) -> Drawing:
        nonlocal open_, most
        with lock:
            open_ += 1
            most = max(most, open_)
        return draw(rows, batch)

    work = open_fake(small_job(), tmp_path, rows=1)
    commit = work.ledger.commit

    def slow(*arguments: object) -> None:
        nonlocal open_
        threading.Event().wait(0.01)
        commit(*arguments)  # type: ignore[arg-type]
        with lock:
            open_ -= 1

    work.ledger.commit = slow  # type: ignore[method-assign]
    run(work, count)
    assert 2 <= most <= 5  # one more is begun while the oldest is being counted


# ---- what can't be kept ----------------------------------------------------------------------------------------------


class FullFolder(Folder):
    """A disk with room for so many files."""

    def __init__(self, root: Path, room: int) -> None:
        super().__init__(root)
        self._room = itertools.count(room, -1)

    @contextmanager
    def writing(self, name: str) -> Iterator[IO[bytes]]:
        full = next(self._room) <= 0
        with super().writing(name) as file:
            yield file
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 1, 7, 19])
@pytest.mark.parametrize("shard_size", [None, 12])
def test_a_full_disk_stops_the_run_and_loses_nothing(room: int, shard_size: int | None, tmp_path: Path):
    out = tmp_path / "out"
    full = FullFolder(out, room)
    with pytest.raises(StorageError, match=r"can't be written: No space left on device\. What is finished is safe"):
        draw_all(small_job(shard_size), full)
    assert not [path for path in (out / ".autolora" / "unfinished").glob("*")]
    draw_all(small_job(shard_size), out)
    draw_all(small_job(shard_size), tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 112 KiB: less than 30 pictures of a page, more than the five batches that may be unfinished."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=112k", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as e:
        said = getattr(e, "stderr", b"").decode().strip() or str(e)
        pytest.skip(
            f"`mount -t tmpfs -o size=112k tmpfs {disk}` needs root and a kernel that allows it; it said: {said}"
        )
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, tmp_path: Path):
    with pytest.raises(StorageError, match="No space left on device"):
        draw_all(small_job(), small_disk)
    subprocess.run(["mount", "-o", "remount,size=16m", small_disk], check=True)
    drawn: list[str] = []
    draw_all(small_job(), small_disk, draw=counted(drawn))
    draw_all(small_job(), tmp_path / "whole")
    assert 0 < len(drawn) < 30
    assert tree(small_disk) == tree(tmp_path / "whole")


def test_an_unwritable_folder_is_said_before_anything_is_drawn(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written: Not a directory"):
        open_fake(small_job(), tmp_path / "file" / "out")


class Flaky(MemoryFileSystem):
    """A bucket whose writes fail so many times, each time half way."""

    protocol = "flaky"
    failures = 0

    def pipe_file(self, path: str, value: bytes, **options: object) -> None:
        self._fail()
        super().pipe_file(path, value, **options)

    def put_file(self, lpath: str, rpath: str, **options: object) -> None:
        self._fail()
        super().put_file(lpath, rpath, **options)

    def _fail(self) -> None:
        if Flaky.failures > 0:
            Flaky.failures -= 1
            raise ConnectionError("the network is down")


fsspec.register_implementation("flaky", Flaky, clobber=True)


def contents(bucket: Bucket) -> dict[str, bytes]:
    fs, root = fsspec.core.url_to_fs(bucket.where)
    files = {name.removeprefix(root).strip("/"): fs.cat_file(name) for name in fs.find(root)}
    return {name: content for name, content in files.items() if name != "log.jsonl"}


@pytest.mark.parametrize("shard_size", [None, 12])
def test_a_bucket_holds_what_a_folder_does(shard_size: int | None, tmp_path: Path):
    bucket = Bucket(f"flaky://whole-{shard_size}/", patience=(0.0,) * 8)
    Flaky.failures = 7
    draw_all(small_job(shard_size), bucket)
    draw_all(small_job(shard_size), tmp_path)
    assert contents(bucket) == tree(tmp_path)


def test_a_bucket_that_stays_away_stops_the_run_and_loses_nothing(tmp_path: Path):
    bucket = Bucket("flaky://away", patience=(0.0, 0.0))
    work = open_fake(small_job(), bucket)

    def goes_away(rows: Sequence[Row], batch: Batch) -> Drawing:
        if batch.number == 4:
            Flaky.failures = 10_000
        return draw(rows, batch)

    with pytest.raises(StorageError, match=r"flaky://away/.* can't be written: ConnectionError: the network is down"):
        run(work, goes_away)
    Flaky.failures = 0
    drawn: list[str] = []
    done = open_fake(small_job(), bucket).done
    draw_all(small_job(), bucket, draw=counted(drawn))
    assert done and len(drawn) == sum(len(batch.items) for batch in work.batches if batch.number not in done)
    draw_all(small_job(), tmp_path)
    assert contents(bucket) == tree(tmp_path)


def test_a_bucket_that_may_not_be_written_is_said_at_once():
    class Forbidden(MemoryFileSystem):
        protocol = "forbidden"

        def pipe_file(self, *_: object, **__: object) -> None:
            raise PermissionError("403")

    fsspec.register_implementation("forbidden", Forbidden, clobber=True)
    with pytest.raises(StorageError, match="PermissionError: 403"):
        open_fake(small_job(), Bucket("forbidden://bucket"))


def test_an_unknown_kind_of_bucket_is_said():
    with pytest.raises(ConfigError, match="nowhere://bucket can't be used"):
        Bucket("nowhere://bucket")
