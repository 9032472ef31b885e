"""Sheets show every picture in its place, and say of every other why it is not there."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autolora_jax.batch import OutputConfig
from autolora_jax.batch.draw import Drawing, Pictures
from autolora_jax.experiments import sheets
from autolora_jax.experiments.experiment import Cell, Experiment, Sheet
from autolora_jax.experiments.sheets import picture_keys, write_sheets
from autolora_jax.grid import comparison_grid
from autolora_jax.settings.jobs import Job
from tests.batch_jobs import SETTINGS, SIDE, draw, draw_all, plan_of, rows_of

PROMPTS = ("a cat", "ein süßer Hund, γ", "a bird")
SEEDS = (3, 1, 4)
SCALES = (0.4, 0.8)


def experiment(*shown: Sheet, **output: Any) -> Experiment:
    cells = [
        Cell(method, scale, {"lora_scale": scale, **guidance})
        for method, guidance in (("LoRA", {}), ("AutoLoRA", {"guidance.gamma": 1.9}))
        for scale in SCALES
    ]
    alone = Cell("Other", None, {"lora_scale": 0.1})
    job = Job(prompts=PROMPTS, seeds=SEEDS, settings=SETTINGS, output=OutputConfig(**output))
    return Experiment("test", "Test", job, (*cells, alone), "LoRA scale", sheets=shown)


@pytest.fixture
def grids(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any, Any]]:
    """The grids that are made: (columns, rows, title)."""
    seen: list[tuple[Any, Any, Any]] = []

    def note(columns: Any, rows: Any = (), title: str = "") -> Image.Image:
        seen.append((columns, rows, title))
        return comparison_grid(columns, rows, title)

    monkeypatch.setattr(sheets, "comparison_grid", note)
    return seen


def tile(out: Path, key: str) -> bytes:
    row = next(row for row in rows_of(out) if row["key"] == key)
    return Image.open(out / row["file"]).tobytes()


def test_keys_are_those_of_the_plan():
    plan = plan_of(experiment().whole_job)
    keys = picture_keys(plan)
    told = {plan.row(i).key: plan.row(i) for i in range(len(plan))}
    assert len(keys) == 5 and sum(map(len, keys)) == len(plan)
    for cell, recipe in zip(keys, plan.recipes, strict=True):
        for (prompt, seed), key in cell.items():
            assert (told[key].prompt, told[key].seed, told[key].recipe) == (PROMPTS[prompt], seed, recipe)


def test_along_the_axis_every_prompt_and_seed_has_a_sheet(tmp_path: Path, grids: list[Any]):
    what = experiment(Sheet("axis", prompts=2, seeds=2, methods=("LoRA", "AutoLoRA")))
    draw_all(what.whole_job, tmp_path)
    keys = picture_keys(plan_of(what.whole_job))
    written = write_sheets(what, tmp_path, keys, tmp_path / "sheets")
    assert [path.name for path in written] == [
        f"sheet-00-prompt-00{p}-seed-{seed}.jpg" for p in (0, 1) for seed in SEEDS[:2]
    ]
    for (columns, rows, title), (p, seed) in zip(grids, [(0, 3), (0, 1), (1, 3), (1, 1)], strict=True):
        assert [*rows] == ["LoRA", "AutoLoRA"] and title.startswith(f"{PROMPTS[p]}, seed {seed}")
        assert [label for label, _ in columns] == ["LoRA scale 0.4", "LoRA scale 0.8"]
        for c, (_, column) in enumerate(columns):
            shown = [image.tobytes() for image in column]
            assert shown == [tile(tmp_path, keys[cell][p, seed]) for cell in (c, 2 + c)]
    with Image.open(written[2]) as image:
        assert image.format == "JPEG" and image.info["comment"].decode() == grids[2][2]


def test_cells_side_by_side_have_a_row_for_each_prompt_and_seed(tmp_path: Path, grids: list[Any]):
    what = experiment(Sheet("cell", prompts=2, seeds=3), Sheet("cell", seeds=2, methods=("Other",)))
    draw_all(what.whole_job, tmp_path)
    keys = picture_keys(plan_of(what.whole_job))
    assert [path.name for path in write_sheets(what, tmp_path, keys, tmp_path)] == ["sheet-00.jpg", "sheet-01.jpg"]
    (columns, rows, _), (others, other_rows, title) = grids
    assert [label for label, _ in columns][2:] == ["AutoLoRA, LoRA scale 0.4", "AutoLoRA, LoRA scale 0.8", "Other"]
    assert [*rows] == [f"{text}, seed {seed}" for text in PROMPTS[:2] for seed in SEEDS]
    assert columns[3][1][4].tobytes() == tile(tmp_path, keys[3][1, 1])
    assert [label for label, _ in others] == ["Other"] and [*other_rows] == ["seed 3", "seed 1"] and "a cat" in title


def test_a_method_without_a_place_on_the_axis_has_its_own_column(tmp_path: Path, grids: list[Any]):
    what = experiment(Sheet("axis"))
    draw_all(what.whole_job, tmp_path)
    write_sheets(what, tmp_path, picture_keys(plan_of(what.whole_job)), tmp_path)
    [(columns, rows, _)] = grids
    assert [label for label, _ in columns] == ["", "LoRA scale 0.4", "LoRA scale 0.8"]
    paper = Image.new("RGB", (SIDE, SIDE), "white").tobytes()
    blank = [[image.tobytes() == paper for image in column] for _, column in columns]
    assert [*rows] == ["LoRA", "AutoLoRA", "Other"] and blank == [[True, True, False], *[[False, False, True]] * 2]


def test_missing_pictures_leave_a_tile_that_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grids: list[Any]):
    what = experiment(Sheet("cell", prompts=1, seeds=3, methods=("LoRA",)))

    def some_nan(rows: Any, batch: Any) -> Drawing:
        ok = np.array([row.seed != 1 for row in rows])
        return Drawing({}, lambda: Pictures(draw(rows, batch).wait().arrays, ok))

    draw_all(what.whole_job, tmp_path, draw=some_nan)
    keys = picture_keys(plan_of(what.whole_job))
    drawn = {row["key"]: row for row in rows_of(tmp_path)}
    (tmp_path / drawn[keys[0][0, 3]]["file"]).write_bytes(b"no picture")
    (tmp_path / drawn[keys[1][0, 3]]["file"]).unlink()
    keys[0] = {**keys[0], (0, 4): "0" * 20}
    words: list[str] = []
    monkeypatch.setattr(sheets, "_empty", lambda size, why: words.append(why) or Image.new("RGB", size))
    write_sheets(what, tmp_path, keys, tmp_path)
    assert sorted(words) == ["not drawn yet", "not finite", "not readable"]
    [(columns, _, _)] = grids
    assert columns[1][1][2].tobytes() == tile(tmp_path, keys[1][0, 4])


def test_nothing_drawn_yet_is_a_sheet_of_empty_tiles(tmp_path: Path, grids: list[Any]):
    what = experiment(Sheet("cell"))
    [path] = write_sheets(what, tmp_path / "nowhere", picture_keys(plan_of(what.whole_job)), tmp_path)
    width, height = Image.open(path).size
    assert width > 5 * 256 and height > 256


@pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
def test_shards_show_what_files_do(tmp_path: Path, grids: list[Any], form: str):
    for name, size in (("files", None), ("shards", 4)):
        what = experiment(Sheet("cell", 2, 2), format=form, shard_size=size)
        draw_all(what.whole_job, tmp_path / name)
        write_sheets(what, tmp_path / name, picture_keys(plan_of(what.whole_job)), tmp_path)
    assert (tmp_path / "shards" / "shards").is_dir()
    files, shards = ([image.tobytes() for _, column in grid[0] for image in column] for grid in grids)
    assert files == shards and len(set(files)) == 5 * 4


def test_latents_can_not_be_shown(tmp_path: Path):
    what = experiment(Sheet("cell"), format="latent")
    with pytest.raises(ValueError, match="latents, which can't be shown; draw the batch as png"):
        keys = picture_keys(plan_of(what.whole_job))
        key = keys[0][0, 3]
        row = {"key": key, "status": "ok", "file": f"images/{key[:2]}/{key}.safetensors", "member": None}
        row |= {"sha256": "0" * 64, "prompt": "a cat"}
        (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
        write_sheets(what, tmp_path, keys, tmp_path)


def test_sheets_of_before_go(tmp_path: Path):
    what = experiment(Sheet("axis", seeds=2))
    keys = picture_keys(plan_of(what.whole_job))
    assert len(write_sheets(what, tmp_path, keys, tmp_path)) == 2
    (tmp_path / "mine.jpg").write_bytes(b"")
    [left] = write_sheets(dataclasses.replace(what, sheets=(Sheet("cell"),)), tmp_path, keys, tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.jpg")) == ["mine.jpg", left.name]
    assert write_sheets(dataclasses.replace(what, sheets=()), tmp_path, keys, tmp_path) == []


def test_tiles_are_small_and_of_one_size(tmp_path: Path):
    """Full-size pictures never stand in memory together, and other shapes get margins."""
    rows = []
    for i, (width, height) in enumerate([(1024, 1024)] * 3 + [(512, 1024)]):
        key, file = f"{i:020}", io.BytesIO()
        Image.new("RGB", (width, height), (200, 0, 0)).save(file, "PNG")
        (tmp_path / "images" / "00").mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / "00" / f"{key}.png").write_bytes(file.getvalue())
        told = {"key": key, "status": "ok", "file": f"images/00/{key}.png", "member": None, "sha256": "0" * 64}
        told |= {"prompt": "a cat", "width": width, "height": height}
        rows.append(json.dumps(told) + "\n")
    (tmp_path / "manifest.jsonl").write_text("".join(rows))
    shown = sheets.Tiles(tmp_path, {json.loads(row)["key"] for row in rows})
    assert shown.size == (512, 512) and {shown[json.loads(row)["key"]].size for row in rows} == {(512, 512)}
    narrow = shown[f"{3:020}"]
    assert narrow.getpixel((10, 256)) == (255, 255, 255) and narrow.getpixel((256, 256)) == (200, 0, 0)
    many = {f"{i:020}" for i in range(2000)}
    width, height = sheets.Tiles(tmp_path, many).size
    assert 100 < width == height < 150 and 2000 * width * height <= sheets.PIXELS
