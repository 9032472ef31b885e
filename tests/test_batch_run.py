"""Runs: what is written, what is drawn again, what happens when something can't be drawn or kept."""

import dataclasses
import errno
import hashlib
import io
import itertools
import json
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from safetensors.numpy import load

from autolora_jax import ConfigError
from autolora_jax.batch import Drawing, OutputConfig, Pictures, StorageError, read_manifest
from autolora_jax.batch.manifest import COLUMNS
from autolora_jax.batch.plan import Batch, Row
from autolora_jax.batch.run import run
from autolora_jax.batch.storage import Bucket, Folder
from autolora_jax.pictures import read_settings
from tests.batch_jobs import SETTINGS, SIDE, draw, draw_all, open_fake, pixels, plan_of, small_job, tree

JPEG_ERROR = 60  # mean grey levels by which noise of 16 x 16 pixels may change; seen: 35


def counted(drawn: list[str]) -> Callable[[Sequence[Row], Batch], Drawing]:
    """`draw`, noting keys."""

    def note(rows: Sequence[Row], batch: Batch) -> Drawing:
        drawn.extend(row.key for row in rows)
        return draw(rows, batch)

    return note


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]


# ---- what is written -------------------------------------------------------------------------------------------------


def test_every_picture_is_a_file_with_a_row_in_the_plans_order(tmp_path: Path):
    work, summary = draw_all(small_job(), tmp_path)
    rows = rows_of(tmp_path)
    assert summary.ok == len(rows) == 30
    assert [row["key"] for row in rows] == [key.decode() for key in work.plan.keys]
    for i, row in enumerate(rows):
        content = (tmp_path / row["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == row["sha256"]
        planned = work.plan.row(i)
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), pixels(planned))
        assert (row["prompt"], row["seed"], row["status"]) == (planned.prompt, planned.seed, "ok")
        assert (row["width"], row["height"], row["guidance"], row["gamma"], row["w"]) == (16, 16, "autolora", 1.5, None)
        assert row["lora_scales"] == list(planned.recipe.scales) and list(row) == list(COLUMNS)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["batch.json", "images", "log.jsonl", "manifest.jsonl", "manifest.parquet"]
    )


def test_a_png_says_how_it_was_made(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    row = rows_of(tmp_path)[7]
    told = read_settings(tmp_path / row["file"])
    assert [told[name] for name in ("key", "prompt", "seed", "lora_scales", "size")] == [
        *(row[name] for name in ("key", "prompt", "seed", "lora_scales")),
        [SIDE, SIDE],
    ]
    with Image.open(tmp_path / row["file"]) as image:
        assert f"Steps: 2, Sampler: Euler, CFG scale: 5, Seed: {row['seed']}" in image.info["parameters"]


@pytest.mark.parametrize("form", ["webp", "jpeg"])
def test_webp_and_jpeg_say_so_where_a1111_looks(form: str, tmp_path: Path):
    job = dataclasses.replace(small_job(), output=OutputConfig(form))
    work, _ = draw_all(job, tmp_path)
    row = rows_of(tmp_path)[0]
    with Image.open(tmp_path / row["file"]) as image:
        assert image.format == form.upper()
        error = np.abs(np.int16(np.asarray(image.convert("RGB"))) - pixels(work.plan.row(0))).mean()
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert error < JPEG_ERROR
    assert comment.removeprefix(b"UNICODE\0").decode("utf-16-be").startswith("a cat <lora:a:0.5>\nSteps: 2")


def test_latents_are_kept_as_they_are(tmp_path: Path):
    latents = np.random.default_rng(0).standard_normal((4, 2, 2, 4), np.float32)

    def draw_latents(rows: Sequence[Row], batch: Batch) -> Drawing:
        return Drawing({}, lambda: Pictures(latents[: len(rows)], np.ones(len(rows), bool)))

    draw_all(dataclasses.replace(small_job(), output=OutputConfig("latent")), tmp_path, draw=draw_latents)
    content = (tmp_path / rows_of(tmp_path)[0]["file"]).read_bytes()
    np.testing.assert_array_equal(load(content)["latents"], latents[0])


def test_pandas_reads_the_results(tmp_path: Path):
    import pandas

    draw_all(small_job(), tmp_path)
    lines = pandas.read_json(tmp_path / "manifest.jsonl", lines=True)
    table = pandas.read_parquet(tmp_path / "manifest.parquet")
    assert list(table.columns) == list(lines.columns) == list(COLUMNS)
    assert len(table) == len(lines) == 30
    assert (table["key"] == lines["key"]).all() and (table["sha256"] == lines["sha256"]).all()
    strong = table[table["lora_scales"].str[0] == 1.0]
    assert len(strong) == 15 and all((tmp_path / file).is_file() for file in strong["file"])
    assert read_manifest(tmp_path) == rows_of(tmp_path)


def test_webdataset_reads_the_shards(tmp_path: Path):
    import webdataset

    work, _ = draw_all(small_job(shard_size=12), tmp_path)
    shards = sorted((tmp_path / "shards").iterdir())
    assert [shard.name for shard in shards] == [f"{i:06}.tar" for i in range(3)]
    samples = list(webdataset.WebDataset([str(s) for s in shards], shardshuffle=False).decode("rgb8"))
    by_key = {row["key"]: row for row in rows_of(tmp_path)}
    assert [len(by_key), len(samples), len({sample["__key__"] for sample in samples})] == [30] * 3
    items = {row.key: row for row in map(work.plan.row, range(30))}
    for sample in samples:
        key = sample["__key__"]
        np.testing.assert_array_equal(sample["png"], pixels(items[key]))
        assert sample["json"] == by_key[key]
        assert Path(sample["__url__"]).relative_to(tmp_path).as_posix() == by_key[key]["file"]
        assert by_key[key]["member"] == f"{key}.png"


def test_the_log_has_a_line_a_batch_and_one_a_run(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sorted(line["batch"] for line in lines if "batch" in line) == list(range(8))
    (whole,) = (line for line in lines if "run" in line)
    assert whole["ok"] == 30 and 0 <= whole["idle_share"] <= 1 and whole["overhead_per_picture"] > 0


# ---- what is drawn again ---------------------------------------------------------------------------------------------


def test_a_finished_job_draws_nothing_and_changes_nothing(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in tmp_path.rglob("*") if path.is_file()}
    drawn: list[str] = []
    draw_all(small_job(), tmp_path, draw=counted(drawn))
    assert drawn == []
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("shard_size", [None, 12])
@pytest.mark.parametrize(
    "more",
    [{"prompts": ("a house", *small_job().prompts)}, {"seeds": range(9)}, {"grid": {"lora_scale": [0.7, 1.0, 0.5]}}],
    ids=lambda more: next(iter(more)),
)
def test_more_prompts_seeds_or_settings_draw_only_what_is_new(more: dict, shard_size: int | None, tmp_path: Path):
    draw_all(small_job(shard_size), tmp_path)
    before, old = tree(tmp_path), {row["key"]: row for row in rows_of(tmp_path)}
    job, drawn = dataclasses.replace(small_job(shard_size), **more), []
    work, _ = draw_all(job, tmp_path, draw=counted(drawn))
    wanted = {key.decode() for key in work.plan.keys}
    assert sorted(drawn) == sorted(wanted - old.keys()) and drawn
    rows = rows_of(tmp_path)
    assert [row["key"] for row in rows] == [key.decode() for key in work.plan.keys]
    assert all(row == old.get(row["key"], row) for row in rows)
    pictures = {name: content for name, content in before.items() if name.startswith(("images", "shards"))}
    assert pictures.items() <= tree(tmp_path).items()


def test_another_job_joins_the_first_and_deletes_nothing(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    other = dataclasses.replace(small_job(), settings=dataclasses.replace(SETTINGS, clip_skip=1), seeds=(0,))
    before = tree(tmp_path)
    draw_all(other, tmp_path)
    keys = [key.decode() for job in (small_job(), other) for key in plan_of(job).keys]
    assert [row["key"] for row in rows_of(tmp_path)] == keys
    images = {name: content for name, content in before.items() if name.startswith("images")}
    assert images.items() <= tree(tmp_path).items()


@pytest.mark.parametrize("shard_size", [None, 12])
def test_another_job_closes_an_unfinished_one(shard_size: int | None, tmp_path: Path):
    work = open_fake(small_job(shard_size), tmp_path)
    commit = work.ledger.commit

    def until_the_fourth(batch: int, *rest: object) -> None:
        if batch > 3:
            raise StorageError("killed before batch 4 is recorded, whose pictures are kept")
        commit(batch, *rest)  # type: ignore[arg-type]

    work.ledger.commit = until_the_fourth  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="killed"):
        run(work, draw, work.todo[:6])
    longer, drawn = dataclasses.replace(small_job(shard_size), seeds=tuple(range(7))), []
    draw_all(longer, tmp_path, draw=counted(drawn))
    assert (len(drawn), len(rows_of(tmp_path))) == (42 - 15, 42)
    if shard_size:
        import webdataset

        shards = sorted(str(path) for path in (tmp_path / "shards").iterdir())
        keys = [sample["__key__"] for sample in webdataset.WebDataset(shards, shardshuffle=False)]
        assert sorted(keys) == sorted(row["key"] for row in rows_of(tmp_path))


def test_another_number_of_rows_goes_on_with_what_is_left(tmp_path: Path):
    work = open_fake(small_job(), tmp_path, rows=4)
    run(work, draw, work.todo[2:5])
    drawn: list[str] = []
    draw_all(small_job(), tmp_path, rows=8, draw=counted(drawn))
    assert len(drawn) == 30 - 11
    assert len(rows_of(tmp_path)) == 30


def test_workers_share_a_job_out(tmp_path: Path):
    """As machines do that know of each other's work by the place alone."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    draw_all(small_job(12), whole)
    first, second = open_fake(small_job(12), shared), open_fake(small_job(12), shared)
    # A shard's three batches go to one worker.
    shares = [[batch for batch in first.todo if batch.number // 3 % 2 == i] for i in (0, 1)]
    run(second, draw, shares[1])
    assert not second.finish()
    run(first, draw, shares[0])
    assert first.finish()
    assert tree(shared) == tree(whole)


def test_a_place_is_for_pictures_of_one_form(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    for output in (OutputConfig("webp"), OutputConfig(shard_size=12)):
        with pytest.raises(ConfigError, match="holds png files"):
            draw_all(dataclasses.replace(small_job(), output=output), tmp_path)
    (tmp_path / "batch.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not of 'autolora-jax batch' version 1"):
        draw_all(small_job(), tmp_path)


def test_a_damaged_manifest_is_said(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    with (tmp_path / "manifest.jsonl").open("a") as file:
        file.write('{"key": "half')
    with pytest.raises(StorageError, match=r"manifest.jsonl: line 31 is no row"):
        draw_all(small_job(), tmp_path)


# ---- what can't be drawn ---------------------------------------------------------------------------------------------


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
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this machine lets us mount nothing")
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
