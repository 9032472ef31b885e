"""Nothing is recorded under a key that isn't its own: what is loaded is hashed as it is loaded."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from autolora_jax.batch import Artist, Job, Settings, draw_job, read_manifest
from autolora_jax.batch.plan import Plan, make_plan
from autolora_jax.batch.sources import Sources
from autolora_jax.settings import Lora, ModelConfig
from autolora_jax.weights import convert_checkpoint, orbax_folder
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.reads import Reads

LORA, WORD = "small:0.5.safetensors", "word.safetensors"
DEVICES = jax.devices()[:1]


@pytest.fixture
def folder(small_folder: Path, tmp_path: Path) -> Path:
    """A model, a LoRA and an embedding that may be changed."""
    folder = tmp_path / "model"
    shutil.copytree(small_folder, folder)
    configs = (json.loads((folder / name / "config.json").read_text()) for name in ("text_encoder", "text_encoder_2"))
    widths = zip(("clip_l", "clip_g"), (config["hidden_size"] for config in configs), strict=True)
    save_file({part: np.ones((1, width), np.float32) for part, width in widths}, folder / WORD)
    return folder


def plan(folder: Path, *loras: str) -> Plan:
    settings = Settings(
        model=ModelConfig(str(folder), "float32"),
        loras=tuple(Lora(str(folder / name)) for name in loras or (LORA,)),
        embeddings=(str(folder / WORD),),
        num_inference_steps=2,
        size=(32, 32),
    )
    return make_plan(Job(prompts=("a cat",), seeds=(0,), settings=settings), Sources())


def flip(path: Path) -> None:
    """Another value of the last tensor, and the same size, time and name."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def more(path: Path) -> None:
    """Other text that means the same to whoever reads it."""
    path.write_text(path.read_text() + "\n")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (LORA, flip),
        (WORD, flip),
        ("unet/diffusion_pytorch_model.safetensors", flip),
        ("vae/diffusion_pytorch_model.safetensors", flip),
        ("text_encoder_2/model.safetensors", flip),
        ("tokenizer/vocab.json", more),
        ("tokenizer_2/merges.txt", more),
    ],
)
def test_what_is_not_what_was_planned_is_named_and_draws_nothing(
    name: str, change: Callable[[Path], None], folder: Path
):
    load = plan(folder).recipes[0].load
    change(folder / name)
    with pytest.raises(WeightsError, match=f"{name}: not what it was when the job was planned"):
        Artist(DEVICES).pipeline(load)


def test_a_config_that_says_something_else_is_named(folder: Path):
    load = plan(folder).recipes[0].load
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    with pytest.raises(WeightsError, match=r"model \(scheduler\): not what it was"):
        Artist(DEVICES).pipeline(load)


def test_the_bytes_count_that_were_read_and_not_those_of_the_name(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """A file that is there for the loading alone, and then the planned one again."""
    path, aside = folder / LORA, folder / "aside"
    load = plan(folder).recipes[0].load
    shutil.copy2(path, aside)
    flip(aside)
    os.replace(path, folder / "planned")
    os.replace(aside, path)
    hashed = Reads.sha256s

    def back(reads: Reads) -> list[tuple[Path, str]]:
        os.replace(folder / "planned", path)
        return hashed(reads)

    monkeypatch.setattr(Reads, "sha256s", back)
    with pytest.raises(WeightsError, match=f"{LORA}: not what it was"):
        Artist(DEVICES).pipeline(load)


def test_a_converted_folder_is_hashed_too(folder: Path, monkeypatch: pytest.MonkeyPatch):
    out = convert_checkpoint(folder, folder.parent / "converted", "float32")
    for name in (LORA, WORD):
        shutil.copy2(folder / name, out / name)
    load = plan(out).recipes[0].load
    biggest = max((out / "unet/orbax").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    restored = orbax_folder.OrbaxWeights.load

    def then_changed(weights: orbax_folder.OrbaxWeights, *rest: object) -> object:
        found = restored(weights, *rest)
        if weights.path.parent.name == "unet":
            flip(biggest)
        return found

    monkeypatch.setattr(orbax_folder.OrbaxWeights, "load", then_changed)
    with pytest.raises(WeightsError, match=f"{biggest.name}: not what it was"):
        Artist(DEVICES).pipeline(load)


def test_a_lora_that_is_replaced_after_planning_is_recorded_as_what_it_is(folder: Path, tmp_path: Path):
    """The second of two, before it is loaded: none of its pictures is recorded, and a resume finds only true rows."""
    other = "other.safetensors"
    shutil.copy2(folder / LORA, folder / other)
    flip(folder / other)
    settings = Settings(model=ModelConfig(str(folder), "float32"), num_inference_steps=2, size=(32, 32))
    grid = {"loras": [[Lora(str(folder / LORA))], [Lora(str(folder / other))]]}
    job = Job(prompts=("a cat",), seeds=(0, 1), settings=settings, grid=grid, batch_size=1)
    out = tmp_path / "out"
    with pytest.raises(WeightsError, match=f"{other}: not what it was"):
        draw_job(job, out, devices=DEVICES, on_work=lambda work: shutil.copy2(folder / LORA, folder / other))
    first = Sources().lora(str(folder / LORA)).sha256
    assert {tuple(row["lora_sha256"]) for row in read_manifest(out)} == {(first,)}
    draw_job(job, out, devices=DEVICES)
    assert {tuple(row["lora_sha256"]) for row in read_manifest(out) if row["status"] == "ok"} == {(first,)}


def test_an_artist_that_draws_another_plan_looks_again(folder: Path):
    artist, before = Artist(DEVICES), plan(folder).recipes[0].load
    pipe = artist.pipeline(before)
    assert artist.pipeline(plan(folder).recipes[0].load) is pipe
    values = load_file(folder / LORA)
    save_file({name: 2 * value for name, value in values.items()}, folder / LORA)
    after = plan(folder).recipes[0].load
    assert after.names == before.names
    told = pipe.reports
    assert artist.pipeline(after) is pipe and pipe.reports is not told
