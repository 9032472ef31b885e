"""What is cut, damaged, gone or foreign in a job's place: what counts no longer is drawn again, and nothing else."""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import pytest

from autolora_jax.batch import Drawing, StorageError, Summary, Work, draw_job
from autolora_jax.batch.plan import Batch, Row
from autolora_jax.batch.run import run
from tests.batch_jobs import SHARDS, counted, draw, draw_all, open_fake, plan_of, small_job, tree


def stopped(out: Path, shard_size: int | None, batches: int = 5) -> Path:
    """A job of which so many batches are done: of shards, the second is not joined yet. Its parts."""
    work = open_fake(small_job(shard_size), out)
    run(work, draw, work.todo[:batches])
    return out / ".autolora" / "parts"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def cut_between_rows(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))


def garbled(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"prompt": "', b'"prompt": ', 1))


def of_other_pictures(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[1:-1], lines[-1]]))


@pytest.mark.parametrize("damage", [cut, cut_between_rows, garbled, of_other_pictures])
def test_a_record_that_is_damaged_is_found_when_the_job_is_opened(
    damage: Callable[[Path], None], whole, tmp_path: Path
):
    shard_size, files = whole
    parts = stopped(tmp_path, shard_size)
    damage(next(parts.glob("*-00000004.jsonl")))
    with pytest.warns(UserWarning, match="1 finished batches are drawn again: 1 records are cut or damaged"):
        work = open_fake(small_job(shard_size), tmp_path)
    assert work.done == {0, 1, 2, 3}
    draw_all(small_job(shard_size), tmp_path)
    assert tree(tmp_path) == files


def test_a_job_that_closes_another_one_drops_its_damaged_records(whole, tmp_path: Path):
    shard_size, _ = whole
    cut(next(stopped(tmp_path, shard_size).glob("*-00000004.jsonl")))
    drawn: list[str] = []
    with pytest.warns(UserWarning, match="1 finished batches are drawn again"):
        draw_all(small_job(shard_size), tmp_path, rows=8, draw=counted(drawn))
    assert len(drawn) == 30 - 15


def test_pieces_that_vanish_before_they_are_joined_are_drawn_again(tmp_path: Path):
    parts = stopped(tmp_path / "out", SHARDS)
    (parts.parent / "staged" / "000001-00000003.tar").unlink()
    with pytest.warns(UserWarning, match=r"1 finished batches .* pictures of 1 are gone from .*staged"):
        assert open_fake(small_job(SHARDS), tmp_path / "out").done == {0, 1, 2, 4}
    draw_all(small_job(SHARDS), tmp_path / "out")
    draw_all(small_job(SHARDS), tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_pieces_that_vanish_while_others_are_drawn_are_never_missing_from_a_shard(tmp_path: Path):
    """The job is not closed then; the next round draws them."""
    out = tmp_path / "out"

    def thief(rows: Sequence[Row], batch: Batch) -> Drawing:
        failed, wait = draw(rows, batch)

        def then() -> object:
            if batch.number == 5:
                (out / ".autolora" / "staged" / "000001-00000003.tar").unlink()
            return wait()

        return Drawing(failed, then)  # type: ignore[arg-type]

    work = open_fake(small_job(SHARDS), out)
    run(work, draw, work.todo[:5])
    work = open_fake(small_job(SHARDS), out)
    run(work, thief)
    assert not (out / "shards" / "000001.tar").exists() and not work.finish()
    drawn: list[str] = []
    draw_all(small_job(SHARDS), out, draw=counted(drawn))
    assert len(drawn) == 3
    draw_all(small_job(SHARDS), tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


def test_a_job_draws_what_vanished_in_another_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By itself, but not for ever: somebody else may be removing it."""
    module, out, thefts = sys.modules["autolora_jax.batch.run"], tmp_path / "out", iter([True, False])

    def draw_work(work: Work, batches: Iterable[Batch], *_: object) -> Summary:
        def stolen(batches: Iterable[Batch]) -> Iterator[Batch]:
            for batch in batches:
                if batch.number == 5 and next(thefts):
                    part = out / ".autolora" / "parts" / f"{work.ledger.record.name}-00000003.jsonl"
                    while not part.exists():  # it is drawn while this one is asked for
                        time.sleep(0.01)
                    (out / ".autolora" / "staged" / "000001-00000003.tar").unlink()
                yield batch

        return run(work, draw, stolen(batches))

    monkeypatch.setattr(module, "make_plan", lambda job, sources: plan_of(job))
    monkeypatch.setattr(module, "draw_work", draw_work)
    job = dataclasses.replace(small_job(SHARDS), batch_size=4)
    with pytest.warns(UserWarning, match=r"some of what was drawn was gone or damaged .*; it is drawn again"):
        summary = draw_job(job, out, devices=jax.devices()[:1])
    assert summary.ok > 30 and not summary.more and not summary.lacking
    draw_all(small_job(SHARDS), tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")

    monkeypatch.setattr(Work, "outcome", lambda work: {"more": True})
    with pytest.raises(StorageError, match="gone or damaged when the job was to be closed, 3 times"), pytest.warns():
        draw_job(job, out, devices=jax.devices()[:1])


def test_files_of_others_are_left_alone(whole, tmp_path: Path):
    """In every folder that is listed, while a job is drawn, closed and added to."""
    shard_size, files = whole
    parts = stopped(tmp_path, shard_size)
    foreign = [
        *(tmp_path / name for name in (".DS_Store", "notes.txt", "images/.DS_Store", "images/00/Thumbs.db")),
        *(tmp_path / "shards" / name for name in ("index.json", ".DS_Store", "a-b.tar", "1.tar", "000001.tar.part")),
        *(parts / name for name in (".DS_Store", "backup-of.jsonl", "a.jsonl", "0123-4.jsonl", "README")),
        *(parts.parent / "staged" / name for name in (".DS_Store", "index.json", "x-y.tar", "000001.tar")),
    ]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("[]")
    draw_all(small_job(shard_size), tmp_path)
    assert all(path.read_text() == "[]" for path in foreign)
    ours = {name: content for name, content in tree(tmp_path).items() if tmp_path / name not in foreign}
    assert ours == files
    drawn: list[str] = []
    draw_all(small_job(shard_size), tmp_path, draw=counted(drawn))
    assert drawn == []


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["missing", "empty"])
def test_a_manifest_that_is_gone_is_said(lose: Callable[[Path], object], tmp_path: Path):
    draw_all(small_job(), tmp_path / "files")
    files = tree(tmp_path / "files")
    lose(tmp_path / "files" / "manifest.jsonl")
    with pytest.warns(UserWarning, match=r"files holds pictures, but manifest.jsonl is missing or empty"):
        draw_all(small_job(), tmp_path / "files")
    assert tree(tmp_path / "files") == files

    draw_all(small_job(SHARDS), tmp_path / "shards")
    before = (tmp_path / "shards" / "manifest.jsonl").read_bytes()
    lose(tmp_path / "shards" / "manifest.jsonl")
    with pytest.raises(
        StorageError, match=r"shards/000000.tar, .* stand in no row of manifest.jsonl, which is missing"
    ):
        draw_all(small_job(SHARDS), tmp_path / "shards")
    (tmp_path / "shards" / "manifest.jsonl").write_bytes(before)
    drawn: list[str] = []
    draw_all(small_job(SHARDS), tmp_path / "shards", draw=counted(drawn))
    assert drawn == []


def test_a_manifest_that_was_cut_between_rows_is_said_where_shards_show_it(tmp_path: Path):
    draw_all(small_job(SHARDS), tmp_path)
    path = tmp_path / "manifest.jsonl"
    kept = [line for line in path.read_bytes().splitlines(keepends=True) if b"000002.tar" not in line]
    path.write_bytes(b"".join(kept))
    with pytest.raises(StorageError, match=r"shards/000002.tar stand in no row"):
        draw_all(small_job(SHARDS), tmp_path)


def test_nothing_is_written_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """TMPDIR may be small, and is of another disk."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    draw_all(small_job(SHARDS), tmp_path / "out")
    assert not [path for path in (tmp_path / "out").rglob("*") if ".autolora" in path.parts]
