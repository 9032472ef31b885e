"""Every picture, shard, row and count against the manifest; and what is wrong drawn again: that, and nothing else."""

import dataclasses
import hashlib
import io
import json
import random
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from autolora_jax import ConfigError
from autolora_jax.batch import OutputConfig, StorageError
from autolora_jax.batch.manifest import _OF_A_RUN, COLUMNS
from autolora_jax.batch.repair import Repair, mend
from autolora_jax.batch.run import run
from autolora_jax.batch.shard_files import Damage, end, header, member, walk
from autolora_jax.batch.storage import Bucket, Folder, Storage
from autolora_jax.batch.verify import Report, verify
from autolora_jax.settings import Job
from tests.batch_jobs import SHARDS, counted, draw, draw_all, open_fake, plan_of, rows_of, small_job, tree
from tests.test_batch_failures import poisoned


@pytest.fixture
def out(whole, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    for name, content in whole[1].items():
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_bytes(content)
    return tmp_path / "out"


def checked(out: Path | Storage, shard_size: int | None = None, **more: object) -> Report:
    return verify(out, plan=plan_of(small_job(shard_size)), **more)  # type: ignore[arg-type]


def mended(
    out: Path | Storage, shard_size: int | None, drawn: list[str] | None = None, job: Job | None = None
) -> Repair:
    """Verified and put right."""
    job, storage = job or small_job(shard_size), Folder(out) if isinstance(out, Path) else out
    found = verify(storage, plan=plan_of(job))
    return mend(job, plan_of(job), storage, found.troubles, 4, counted([] if drawn is None else drawn))


def test_what_is_whole_is_said_to_be(whole, out: Path):
    shard_size, files = whole
    progress: list[tuple[int, int]] = []
    found = checked(out, shard_size, on_progress=lambda *done: progress.append(done))
    assert (found.pictures, found.troubles, found.undrawn) == (30, [], 0)
    assert progress[0] == (0, 30) and progress[-1] == (30, 30)
    assert found.bytes >= sum(len(files[name]) for name in files if name.startswith("images"))
    assert verify(out).troubles == []  # without the job, too
    assert tree(out) == files
    drawn: list[str] = []
    assert mended(out, shard_size, drawn) == Repair() and drawn == [] and tree(out) == files


def test_headers_are_tarfiles():
    for name, size in (("a.png", 0), ("0123456789abcdef0123.safetensors", 123_456_789), ("x" * 99, 2**33 - 1)):
        info = tarfile.TarInfo(name)
        info.size = size
        assert header(name.encode(), size) == info.tobuf(tarfile.USTAR_FORMAT)


# ---- pictures that are files -----------------------------------------------------------------------------------------


def test_pictures_that_are_gone_cut_or_flipped_are_drawn_again_and_no_others(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    files, rows = tree(tmp_path), rows_of(tmp_path)
    gone, cut, flip, empty = (tmp_path / rows[i]["file"] for i in (2, 7, 11, 29))
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:-9])
    flip.write_bytes(flipped(flip.read_bytes(), 99))
    empty.write_bytes(b"")
    found = checked(tmp_path)
    assert {trouble.key for trouble in found.troubles} == {rows[i]["key"] for i in (2, 7, 11, 29)}
    assert str(found.troubles[0]) == f"{rows[2]['file']}: is not there"
    assert [trouble.why for trouble in found.troubles[1:]] == ["is not the picture that was recorded"] * 3
    assert [trouble.key for trouble in verify(tmp_path).troubles] == [trouble.key for trouble in found.troubles]
    drawn: list[str] = []
    assert mended(tmp_path, None, drawn).drawn == 4
    assert sorted(drawn) == sorted(rows[i]["key"] for i in (2, 7, 11, 29)) and tree(tmp_path) == files


# ---- shards ----------------------------------------------------------------------------------------------------------


def flipped(content: bytes, place: int, bit: int = 4) -> bytes:
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def members(shard: bytes) -> list[tarfile.TarInfo]:
    return list(tarfile.open(fileobj=io.BytesIO(shard)))


# What is done to the second shard of twelve pictures -> how many of them have to be drawn again.
DAMAGES: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "a picture's bit": (lambda b: flipped(b, members(b)[3].offset_data + 50), 1),
    "a header's bit": (lambda b: flipped(b, members(b)[3].offset + 5), 1),
    "a row's header": (lambda b: flipped(b, members(b)[4].offset + 140), 0),
    "a row's bit": (lambda b: flipped(b, members(b)[4].offset_data + 50), 1),  # or it may be the manifest's
    "a prompt's bit": (lambda b: flipped(b, members(b)[5].offset_data), 0),
    "padding": (lambda b: flipped(b, members(b)[5].offset_data + 400), 0),
    "cut at a member": (lambda b: b[: members(b)[15].offset], 6),
    "cut in a picture": (lambda b: b[: members(b)[15].offset_data + 5], 6),
    "cut in the end": (lambda b: b[:-700], 0),
    "the end gone": (lambda b: b[: members(b)[-1].offset_data + 512], 0),
    "zeros": (lambda b: bytes(len(b)), 11),
    "zeros in the middle": (lambda b: b[: members(b)[9].offset] + bytes(3000) + b[members(b)[9].offset + 3000 :], 1),
    "empty": (lambda b: b"", 11),
    "no tar": (lambda b: b"no tar" * 1000, 11),
    "something behind": (lambda b: b + b"x" * 512, 0),
    "a member twice": (lambda b: b[: members(b)[3].offset] + b[: members(b)[3].offset] + b[members(b)[3].offset :], 0),
    "a member more": (lambda b: member("a.png", b"x") + b, 0),
    "two in another order": (lambda b: b, 0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_found_and_put_right(damage: str, tmp_path: Path):
    draw_all(small_job(SHARDS), tmp_path)
    files, path = tree(tmp_path), tmp_path / "shards" / "000001.tar"
    change, count = DAMAGES[damage]
    path.write_bytes(change(path.read_bytes()))
    found = checked(tmp_path, SHARDS)
    assert bool(found.troubles) == (path.read_bytes() != files["shards/000001.tar"])
    assert all(trouble.what.startswith("shards/000001.tar") for trouble in found.troubles)
    drawn: list[str] = []
    mended(tmp_path, SHARDS, drawn)
    assert len(drawn) == count and tree(tmp_path) == files


def test_a_shard_that_is_gone_is_drawn_again(tmp_path: Path):
    draw_all(small_job(SHARDS), tmp_path)
    files = tree(tmp_path)
    (tmp_path / "shards" / "000000.tar").unlink()
    drawn: list[str] = []
    mended(tmp_path, SHARDS, drawn)
    assert len(drawn) == 12 and tree(tmp_path) == files


def test_every_bit_of_a_place_counts(whole, out: Path):
    """But for those of manifest.parquet, of which keys are looked at: it is made of the manifest."""
    shard_size, files = whole
    chance = random.Random(0)
    names = [name for name in files if name.startswith(("images", "shards"))] + ["manifest.jsonl"] * 8
    for _ in range(40):
        name = chance.choice(names)
        place, bit = chance.randrange(len(files[name])), 1 << chance.randrange(8)
        (out / name).write_bytes(flipped(files[name], place, bit))
        found = checked(out, shard_size).troubles
        alone = shard_size is None and name == "manifest.jsonl"
        if alone and only_names_differ(files[name], (out / name).read_bytes()):
            (out / name).write_bytes(files[name])
            continue
        assert found, (name, place, bit)
        mended(out, shard_size)
        assert tree(out) == files, (name, place, bit)


def only_names_differ(before: bytes, after: bytes) -> bool:
    """Whether rows differ in what nothing else knows: names of files, which may change, and versions."""
    try:
        pairs = list(zip(map(json.loads, before.splitlines()), map(json.loads, after.splitlines()), strict=True))
    except ValueError:
        return False
    names = COLUMNS.keys() - _OF_A_RUN | {"sha256"}
    return all(one.keys() == other.keys() and all(one[n] == other[n] for n in names) for one, other in pairs)


# ---- rows ------------------------------------------------------------------------------------------------------------


def edited(change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def edit(out: Path) -> None:
        path = out / "manifest.jsonl"
        path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))

    return edit


# What is done to the manifest -> what is said of it, and how many files have to be drawn again: shards hold the rows.
ROWS: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "no row": (edited(lambda rows: [*rows[:4], b"?" + rows[4], *rows[5:]]), "is no row of a manifest", 1),
    "cut": (edited(lambda rows: [*rows[:29], rows[29][:99]]), "is no row of a manifest", 1),
    "one gone": (edited(lambda rows: [*rows[:4], *rows[5:]]), "its row is missing from manifest.jsonl", 1),
    "twice": (edited(lambda rows: [*rows[:4], rows[4], *rows[4:]]), "stands there twice", 0),
    "another seed": (edited(lambda rows: [rows[0].replace(b'"seed": 0', b'"seed": 7'), *rows[1:]]), "says seed 7", 1),
    "all gone": (lambda out: (out / "manifest.jsonl").unlink(), "its row is missing from manifest.jsonl", 30),
    "another table": (lambda out: (out / "manifest.parquet").write_bytes(b"PAR1"), "can't be read", 0),
}


@pytest.mark.parametrize("damage", ROWS)
def test_rows_that_are_damaged_are_found_and_put_right(damage: str, whole, out: Path):
    shard_size, files = whole
    change, said, count = ROWS[damage]
    change(out)
    assert said in " ".join(map(str, checked(out, shard_size).troubles))
    drawn: list[str] = []
    mended(out, shard_size, drawn)
    assert tree(out) == files
    assert len(drawn) == (count if shard_size is None or damage == "another seed" else 0)


def test_pictures_of_other_jobs_are_left_and_said(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    other = dataclasses.replace(small_job(), prompts=("another",), grid=())
    draw_all(other, tmp_path)
    rows = rows_of(tmp_path)
    (tmp_path / rows[3]["file"]).unlink()
    (tmp_path / rows[-1]["file"]).unlink()
    left = mended(tmp_path, None, job=other).left
    assert [trouble.key for trouble in left] == [rows[3]["key"]]
    assert mended(tmp_path, None).left == () and verify(tmp_path).troubles == []


def test_places_without_rows_are_not_taken_for_whole_ones(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no job of autolora batch; check --out"):
        verify(tmp_path)
    draw_all(small_job(), tmp_path)
    path = tmp_path / "manifest.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:20]))
    assert verify(tmp_path).unlisted == 10
    path.write_bytes(b"")
    assert str(verify(tmp_path).troubles[0]) == "manifest.jsonl: is missing, or empty"
    path.write_bytes(b"".join(lines))
    (tmp_path / "batch.json").unlink()
    assert str(verify(tmp_path).troubles[0]) == "batch.json: is not there"


def test_pictures_that_have_no_row_yet_are_counted(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    longer = dataclasses.replace(small_job(), seeds=range(7))
    found = verify(tmp_path, plan=plan_of(longer))
    assert (found.pictures, found.undrawn, found.troubles) == (30, 12, [])


# ---- while a job is unfinished ---------------------------------------------------------------------------------------


def test_an_unfinished_job_is_checked_as_far_as_it_is(whole, tmp_path: Path):
    shard_size, files = whole
    work = open_fake(small_job(shard_size), tmp_path)
    run(work, draw, work.todo[:5])
    before = tree(tmp_path)
    found = checked(tmp_path, shard_size)
    assert (found.pictures, found.troubles, found.undrawn) == (19, [], 11) and tree(tmp_path) == before
    name = next(name for name in before if name.startswith(("images", ".autolora/staged")))
    (tmp_path / name).write_bytes(flipped(before[name], 600 if shard_size else 99))
    assert checked(tmp_path, shard_size).troubles
    mended(tmp_path, shard_size)
    drawn: list[str] = []
    draw_all(small_job(shard_size), tmp_path, draw=counted(drawn))
    assert tree(tmp_path) == files and len(drawn) == (14 if shard_size else 11)
    assert checked(tmp_path, shard_size).troubles == []


# ---- going on, and elsewhere -----------------------------------------------------------------------------------------


def test_a_verification_that_was_stopped_goes_on(whole, out: Path, monkeypatch: pytest.MonkeyPatch):
    module = sys.modules["autolora_jax.batch.verify"]  # whose name in the package is the function's
    monkeypatch.setattr(module, "SAVE_EVERY", -1.0)
    monkeypatch.setattr(module, "TOGETHER", 4)
    shard_size, files = whole
    path = out / next(name for name in files if name.startswith(("images", "shards")))
    path.write_bytes(flipped(path.read_bytes(), 700))
    seen: list[int] = []

    def until_twelve(done: int, total: int) -> None:
        seen.append(done)
        if done >= 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checked(out, shard_size, on_progress=until_twelve)
    first = max(seen)
    seen.clear()
    found = checked(out, shard_size, on_progress=lambda done, total: seen.append(done))
    assert seen[0] >= first - 4 and seen[-1] == 30 and len(found.troubles) == 1
    assert not (out / ".autolora").exists()
    (out / "manifest.jsonl").write_bytes((out / "manifest.jsonl").read_bytes() + b"\n")
    assert checked(out, shard_size).troubles  # of other rows nothing is taken over


@pytest.mark.parametrize("shard_size", [None, SHARDS])
def test_a_bucket_is_verified_and_put_right(shard_size: int | None):
    bucket = Bucket(f"memory://verified-{shard_size}")
    draw_all(small_job(shard_size), bucket)
    fs, root = fsspec.core.url_to_fs(bucket.where)

    def contents() -> dict[str, bytes]:
        return {name: fs.cat_file(name) for name in fs.find(root) if not name.endswith("log.jsonl")}

    before = contents()
    assert checked(bucket, shard_size).troubles == [] and contents() == before
    name = next(name for name in before if "/images/" in name or "/shards/" in name)
    fs.pipe_file(name, flipped(before[name], 700))
    assert len(checked(bucket, shard_size).troubles) == 1
    drawn: list[str] = []
    mended(bucket, shard_size, drawn)
    assert len(drawn) == 1 and contents() == before


def test_a_place_that_can_only_be_read_is_verified(whole, out: Path, monkeypatch: pytest.MonkeyPatch):
    shard_size, _ = whole

    def refuse(*_: object) -> None:
        raise StorageError("read-only file system")

    for name in ("scratch", "writing", "write", "remove"):
        monkeypatch.setattr(Folder, name, refuse)
    assert checked(out, shard_size).troubles == []


def test_pictures_that_failed_have_rows_and_no_files(tmp_path: Path):
    draw_all(small_job(), tmp_path, draw=poisoned)
    found = checked(tmp_path)
    assert (found.pictures, found.troubles) == (16, [])


def test_other_forms_are_verified(tmp_path: Path):
    draw_all(dataclasses.replace(small_job(), output=OutputConfig("webp", shard_size=5)), tmp_path)
    assert verify(tmp_path).troubles == [] and verify(tmp_path).pictures == 30


def test_walking_goes_on_behind_damage(tmp_path: Path):
    shard = b"".join(member(f"{i}.png", bytes([i]) * 700) for i in range(4))
    shard += end(len(shard))
    (tmp_path / "shard").write_bytes(flipped(shard, 1536 + 5))
    (tmp_path / "piece").write_bytes(shard[: -len(end(len(shard)))])
    with (tmp_path / "shard").open("rb") as opened:
        found = list(walk(opened))
    assert [each.name for each in found if not isinstance(each, Damage)] == ["0.png", "2.png", "3.png"]
    assert [each.start for each in found if isinstance(each, Damage)] == [1536]
    assert [hashlib.sha256(each.content).digest() for each in found if not isinstance(each, Damage)] == [
        hashlib.sha256(bytes([i]) * 700).digest() for i in (0, 2, 3)
    ]
    with (tmp_path / "piece").open("rb") as opened:
        assert not [each for each in walk(opened, whole=False) if isinstance(each, Damage)]
