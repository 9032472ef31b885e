"""Jobs and runs of the command line whose pictures are made from others."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image

from autolora_jax import AutoLoRAPipeline
from autolora_jax.batch import Job, Prompt, Settings, draw_job, read_manifest, sources
from autolora_jax.batch.prompts import read_prompts
from autolora_jax.pictures import read_settings
from autolora_jax.settings import Lora, ModelConfig
from tests.batch_jobs import SETTINGS, plan_of
from tests.programs import autolora
from tests.reference_picture import masks, pictures

SIDE = 32
DEVICES = jax.devices()[:1]
DRAWN = Settings(model=ModelConfig(dtype="float32"), num_inference_steps=3)
DRAWN = dataclasses.replace(DRAWN, size=(SIDE, SIDE))  # that of a picture is looked at where nothing is drawn
LORA = "small:0.5.safetensors"
STRONG = {"strength": [0.7]}
TEN = dataclasses.replace(SETTINGS, num_inference_steps=10)


def small(folder: Path) -> Settings:
    """Of a small model with its LoRA."""
    model = dataclasses.replace(DRAWN.model, source=str(folder))
    return dataclasses.replace(DRAWN, model=model, loras=(Lora(str(folder / LORA)),))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """a.png, wide.png and their masks, and prompts.jsonl of every kind beside them."""
    for name, image, mask in (("a", (SIDE, SIDE), masks), ("b", (SIDE, SIDE), masks), ("wide", (43, SIDE), masks)):
        pictures(2, *image)[name == "b"].save(tmp_path / f"{name}.png")
        mask(1, *image)[0].save(tmp_path / f"{name}-mask.png")
    rows: list[dict[str, Any]] = [
        {"prompt": "a zib", "image": "a.png"},
        {"prompt": "a zib", "image": "a.png", "mask": "a-mask.png"},
        {"prompt": "a zib"},
        {"prompt": "a red cat", "image": str(tmp_path / "wide.png"), "id": "w"},
        {"prompt": "a zib", "image": "b.png"},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def job(folder: Path, **changes: Any) -> Job:
    return Job(prompt_file=str(folder / "prompts.jsonl"), **{"settings": DRAWN, "batch_size": 2, **changes})


def test_a_row_names_pictures_beside_its_file(folder: Path):
    prompts = read_prompts(str(folder / "prompts.jsonl"))
    wide = str(folder / "wide.png")
    assert [prompt.image for prompt in prompts] == [*[str(folder / "a.png")] * 2, None, wide, str(folder / "b.png")]
    assert prompts[1].mask == str(folder / "a-mask.png") and prompts[3].id == "w"


def test_keys_know_what_pictures_hold_and_not_their_names(folder: Path):
    def keys(*prompts: Prompt, **changes: Any) -> list[str]:
        plan = plan_of(Job(prompts, settings=TEN, **changes))
        return [plan.row(i).key for i in range(len(plan))]

    a, b, mask = (str(folder / name) for name in ("a.png", "b.png", "a-mask.png"))
    kinds = [Prompt("a"), Prompt("a", image=a), Prompt("a", image=b), Prompt("a", image=a, mask=mask)]
    kinds.append(Prompt("a", image=b, mask=mask))
    assert len({*keys(*kinds), *keys(*kinds[1:], grid={"strength": [0.5, 0.7]})}) == 5 + 8
    # Without a picture nothing is changed: not even by strength, which is for the others.
    assert keys(*kinds, grid={"strength": [0.5]})[0] == keys(Prompt("a"))[0]
    assert keys(kinds[1], grid={"strength": [0.3]}) == keys(kinds[1])
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes())
    assert keys(Prompt("a", image=str(folder / "c.png"))) == keys(kinds[1])
    (folder / "c.png").write_bytes((folder / "b.png").read_bytes())
    assert keys(Prompt("a", image=str(folder / "c.png"))) == keys(kinds[2])


def test_batches_hold_one_kind_and_size(folder: Path):
    plan = plan_of(job(folder, settings=dataclasses.replace(TEN, size=None), seeds=range(2)))
    assert [recipe.size for recipe in plan.recipes] == [(32, 32), (32, 32), (1024, 1024), (40, 32)]
    batches = plan.batches(np.arange(len(plan)), 4)
    rows = [plan.rows(batch) for batch in batches]
    kinds = [{(row.recipe.size, row.recipe.masked, row.base is None) for row in batch} for batch in rows]
    assert all(len(kind) == 1 for kind in kinds)
    assert [sorted({row.base.image.name for row in batch if row.base}) for batch in rows] == [
        ["a.png", "b.png"],
        ["a.png"],
        [],
        ["wide.png"],
    ]


def test_a_job_draws_what_a_call_draws_and_only_once(folder: Path, small_folder: Path, monkeypatch: pytest.MonkeyPatch):
    opened: list[str] = []
    read = sources.read_file
    monkeypatch.setattr(sources, "read_file", lambda *told: (opened.append(Path(told[1]).name), read(*told))[1])
    out, drawn = folder / "out", {"grid": STRONG, "settings": small(small_folder)}
    summary = draw_job(job(folder, **drawn), out, devices=DEVICES)
    assert (summary.ok, summary.failed) == (5, 0)
    assert sorted(opened) == ["a-mask.png", "a.png", "a.png", "b.png", "wide.png"]  # once for each picture
    rows = {(row["prompt"], row["image"], row["mask"]): row for row in read_manifest(out)}
    plain, masked = rows["a zib", "a.png", None], rows["a zib", "a.png", "a-mask.png"]
    assert plain["strength"] == 0.7 and plain["image_sha256"] == masked["image_sha256"] and masked["mask_sha256"]
    text, wide = rows["a zib", None, None], rows["a red cat", "wide.png", None]
    assert (text["strength"], text["image_sha256"], wide["width"], wide["id"]) == (None, None, 32, "w")
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=DEVICES)
    pipe.load_lora(small_folder / LORA)
    for row, given in ((plain, {}), (masked, {"mask_image": folder / "a-mask.png"})):
        asked = {"image": folder / "a.png", "strength": 0.7, "size": (SIDE, SIDE), "num_inference_steps": 3, **given}
        [picture] = pipe("a zib", **asked).images
        kept = np.asarray(Image.open(out / row["file"]))
        assert np.abs(np.asarray(picture).astype(int) - kept).max() <= 1  # batches of 1 and 2
    told = read_settings(out / masked["file"])
    assert (told["image"], told["mask_sha256"]) == ("a.png", masked["mask_sha256"])
    assert draw_job(job(folder, **drawn), out, devices=DEVICES).pictures == 0
    # Another picture of the same name is another picture; the rest stays.
    (folder / "b.png").write_bytes((folder / "wide.png").read_bytes())
    assert draw_job(job(folder, **drawn), out, devices=DEVICES).pictures == 1


def test_a_picture_that_changed_meanwhile_fails_alone(folder: Path, small_folder: Path):
    def replace(work: Any) -> None:
        (folder / "b.png").write_bytes((folder / "a.png").read_bytes())

    asked = job(folder, grid=STRONG, settings=small(small_folder))
    summary = draw_job(asked, folder / "out", devices=DEVICES, on_work=replace)
    assert (summary.ok, summary.failed) == (4, 1)
    [failed] = [row for row in read_manifest(folder / "out") if row["status"] == "failed"]
    assert failed["image"] == "b.png" and "is not what it was when the job was planned" in failed["reason"]


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no file": ({"image": "none.png"}, {}, "picture .*none.png can't be read: No such file"),
    "no picture": ({"image": "prompts.jsonl"}, {}, "image .*prompts.jsonl is no picture"),
    "a mask alone": ({"mask": "a-mask.png"}, {}, "the prompt 'a' has a mask .*a-mask.png, but no image"),
    "another mask": ({"image": "a.png", "mask": "wide-mask.png"}, {}, "wide-mask.png of image .* is 43x32 .* 32x32"),
    "strength of a row": ({"image": "a.png", "strength": 0.4}, {}, r"row 1: column 'strength' .*settings.strength=0.6"),
    "another name": ({"image": "a.png", "mask_image": "a.png"}, {}, "column 'mask_image' is not known; write 'mask'"),
    "no text": ({"image": 5}, {}, "row 1: image = 5 should be a text"),
    "strength of nothing": ({}, {"grid": {"strength": [0.4]}}, "settings.strength .* but no prompt has an image"),
    "no steps": ({"image": "a.png"}, {"grid": {"strength": [0.1]}}, "strength = 0.1 leaves none of 3 steps"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_job_is_refused_before_anything_is_loaded(name: str, folder: Path):
    row, changes, words = REFUSED[name]
    (folder / "prompts.jsonl").write_text(json.dumps({"prompt": "a", **row}) + "\n")
    with pytest.raises(ValueError, match=words):
        draw_job(job(folder, **changes), folder / "out", devices=DEVICES)
    assert not (folder / "out").exists()


def test_the_command_line_changes_a_picture(folder: Path, small_folder: Path):
    common = ["generate", small_folder, "--lora", small_folder / LORA, "--prompt", "a zib", "--seeds", "0,1"]
    common += ["--dtype", "float32", "--steps", 4, "--strength", 0.6]
    given = ["--image", folder / "wide.png", "--mask", folder / "wide-mask.png"]
    result = autolora(*common, *given, "--out", folder / "one")
    assert result.exit_code == 0, result.output
    first = sorted((folder / "one").glob("*.png"))
    with Image.open(first[0]) as image:
        assert image.size == (40, 32)
        line = image.info["parameters"]
        assert "Denoising strength: 0.6, " in line and "Image: wide.png, Image hash: " in line
    assert read_settings(first[0])["mask"] == "wide-mask.png"
    again = autolora("generate", "--config", folder / "one" / "config.json", "--out", folder / "two")
    assert again.exit_code == 0, again.output
    second = sorted((folder / "two").glob("*.png"))
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--image", "none.png"], "--image none.png can't be read: No such file"),
        (["--mask", "a-mask.png"], "--mask and --strength are of a picture"),
        (["--strength", "0.5"], "--mask and --strength are of a picture"),
        (["--image", "a.png", "--strength", "1.5"], "strength = 1.5 should be between 0 and 1"),
    ],
)
def test_the_command_line_refuses(given: list[str], words: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    result = autolora("generate", "--prompt", "a", *given, "--out", folder / "out")
    assert result.exit_code != 0 and words in " ".join(result.stderr.split())
    assert not list((folder / "out").glob("*")) if (folder / "out").exists() else True
