"""Runs: what is written, and what is drawn again."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load

from autolora_jax import ConfigError
from autolora_jax.batch import Drawing, OutputConfig, StorageError, read_manifest, shard_files
from autolora_jax.batch import Pictures as Drawn
from autolora_jax.batch.manifest import ALONE, COLUMNS, fold
from autolora_jax.batch.plan import Batch, Row
from autolora_jax.batch.run import run
from autolora_jax.batch.work import Work
from autolora_jax.evaluation.pictures import Pictures
from autolora_jax.pictures import read_settings
from autolora_jax.settings import Lora
from tests.batch_jobs import (
    SETTINGS,
    SIDE,
    counted,
    draw,
    draw_all,
    open_fake,
    pixels,
    plan_of,
    rows_of,
    small_job,
    tree,
)

JPEG_ERROR = 60  # mean grey levels by which noise of 16 x 16 pixels may change; seen: 35


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
        return Drawing({}, lambda: Drawn(latents[: len(rows)], np.ones(len(rows), bool)))

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
    strong = table[table["lora_scale"] == 1.0]
    assert table.groupby(["lora", "lora_scale"]).size().sum() == 30
    assert len(strong) == 15 and all((tmp_path / file).is_file() for file in strong["file"])
    assert read_manifest(tmp_path) == rows_of(tmp_path)


def test_a_lora_alone_has_columns_of_its_own_also_in_rows_that_were_written_before_there_were_any(tmp_path: Path):
    import pandas

    pair = dataclasses.replace(SETTINGS, loras=(Lora("a", 0.5), Lora("b", 0.7)))
    for job in (small_job(), dataclasses.replace(small_job(), settings=pair, grid=())):
        draw_all(job, tmp_path)
    rows = rows_of(tmp_path)
    assert {(row["lora"], row["lora_scale"]) for row in rows} == {("a", 0.5), ("a", 1.0), (None, None)}
    pairs = sum(len(row["loras"]) == 2 for row in rows)
    lines = [{name: value for name, value in row.items() if name not in ALONE} for row in rows]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_manifest(tmp_path) == rows
    draw_all(dataclasses.replace(small_job(), prompts=("another",)), tmp_path)
    table = pandas.read_parquet(tmp_path / "manifest.parquet")
    assert list(table.columns) == list(COLUMNS) and table["lora_scale"].isna().sum() == pairs


def test_seeds_beyond_64_bits_with_a_sign_are_kept(tmp_path: Path):
    import pyarrow
    from pyarrow import parquet

    work, _ = draw_all(small_job(), tmp_path)
    path, seeds = tmp_path / "manifest.jsonl", [2**64 - 1, -(2**63), *range(28)]
    assert parquet.read_schema(tmp_path / "manifest.parquet").field("seed").type == pyarrow.int64()
    rows = [{**row, "seed": seed} for row, seed in zip(rows_of(tmp_path), seeds, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fold(work.storage, work.plan.keys)
    assert [row["seed"] for row in rows_of(tmp_path)] == seeds
    assert [int(seed) for seed in parquet.read_table(tmp_path / "manifest.parquet")["seed"].to_pylist()] == seeds


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
        assert sample["json"] == by_key[key] and sample["txt"] == by_key[key]["prompt"]
        assert Path(sample["__url__"]).relative_to(tmp_path).as_posix() == by_key[key]["file"]
        assert by_key[key]["member"] == f"{key}.png"


def test_shards_without_captions_go_on_with_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As version 0.1 wrote the first half of a job: what is read of its pictures is the same."""
    import webdataset

    work, beside = open_fake(small_job(shard_size=12), tmp_path), shard_files.beside
    with monkeypatch.context() as before:
        before.setattr(shard_files, "beside", lambda row: {"json": beside(row)["json"]})
        run(work, draw, work.todo[:5])
    _, summary = draw_all(small_job(shard_size=12), tmp_path)
    assert summary.ok == 30 - sum(len(batch.items) for batch in work.batches[:5])
    shards = sorted(str(path) for path in (tmp_path / "shards").iterdir())
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 30 and 0 < sum("txt" in sample for sample in samples) < 30
    prompts = {row["key"]: row["prompt"] for row in rows_of(tmp_path)}
    assert {
        picture.key.partition("/")[2].removesuffix(".png"): picture.fields["prompt"]
        for picture in Pictures(tmp_path / "shards")
    } == prompts


def test_the_log_has_a_line_a_batch_and_one_a_run(tmp_path: Path):
    draw_all(small_job(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert sorted(line["batch"] for line in lines if "batch" in line) == list(range(8))
    (whole,) = (line for line in lines if "run" in line)
    assert whole["ok"] == 30 and 0 <= whole["idle_share"] <= 1 and whole["overhead_per_picture"] > 0


# ---- what comes next -------------------------------------------------------------------------------------------------


class Told:
    """A `Draw` that is told what comes next. seen: numbers of batches drawn, and after "then", of those told of."""

    def __init__(self, work: Work) -> None:
        self.seen: list[str] = []
        self._numbers = {int(batch.items[0]): batch.number for batch in work.batches}

    def ahead(self, rows: Sequence[Row]) -> None:
        self.seen.append(f"then {self._numbers[rows[0].item]}")

    def __call__(self, rows: Sequence[Row], batch: Batch) -> Drawing:
        self.seen.append(str(batch.number))
        return draw(rows, batch)


def test_who_draws_is_told_what_comes_next(tmp_path: Path):
    work = open_fake(small_job(), tmp_path)
    told = Told(work)
    assert run(work, told).ok == 30
    assert told.seen == [*(each for i in range(7) for each in (f"then {i + 1}", str(i))), "7"]


def test_what_is_not_known_yet_is_not_waited_for(tmp_path: Path):
    work = open_fake(small_job(), tmp_path)
    told, (a, b, c, d, *_) = Told(work), work.todo
    assert run(work, told, iter([None, a, None, None, b, c, None, d])).ok == 15
    assert told.seen == ["0", "then 2", "1", "2", "3"]


def test_a_batch_is_not_taken_and_left(tmp_path: Path):
    """Whoever shares batches out stops a run in place of the next one."""
    work = open_fake(small_job(), tmp_path)
    told, taken = Told(work), []

    def until_stopped() -> Iterator[Batch]:
        for batch in work.todo[:4]:
            taken.append(batch.number)
            yield batch
        raise KeyboardInterrupt

    summary = run(work, told, until_stopped())
    assert summary.more and summary.ok == 15
    assert [number for number in told.seen if "then" not in number] == [str(number) for number in taken]


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
