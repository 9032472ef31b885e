"""What is computed once before training: latents on disk, prompts as what the denoiser reads or as tokens."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from autolora_jax import AutoLoRAPipeline
from autolora_jax.text.sdxl import ENCODERS
from autolora_jax.training import DataConfig, LoraConfig, TrainConfig, cache, hashes
from autolora_jax.training import data as training_data
from autolora_jax.training.buckets import load_pixels
from autolora_jax.training.data import TrainingData, open_data
from autolora_jax.training.dataset import DatasetError
from autolora_jax.weights.files import sha256_of
from recipes.builtin.world import character_set, write_folder
from tests.parity import error

LATENTS = 2e-5  # of the reference's maximum; seen: 4e-6
PROMPTS = 5e-6  # seen: 5e-7

CONFIG = TrainConfig(data=DataConfig(resolution=64, max_aspect=1.0, flip=True))


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def theirs(small_folder: Path) -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(small_folder)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two of them, one not square."""
    drawn = character_set(2, size=96)
    drawn[1] = drawn[1][0].resize((96, 70)), "a cat"
    write_folder(drawn, tmp_path / "pictures")
    for path in (tmp_path / "pictures").glob("*.png"):
        Image.open(path).copy().save(path, compress_level=0)  # whatever they show, as many bytes
    return tmp_path / "pictures"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one for every picture that is encoded."""
    calls: list[str] = []
    real = cache._encode
    monkeypatch.setattr(cache, "_encode", lambda *args: calls.append("") or real(*args))
    return calls


def open_(pipe: AutoLoRAPipeline, pictures: Path, config: TrainConfig = CONFIG, **more: Any) -> TrainingData:
    return open_data(pipe, pictures, pictures.parent / "latents", config, more.get("tell", lambda progress: None))


def other_pixel(path: Path) -> None:
    """Another picture in as many bytes, of the same time; and back."""
    stat, pixels = path.stat(), np.array(Image.open(path))
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path, compress_level=0)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size


# ---- latents ---------------------------------------------------------------------------------------------------------


def test_cached_latents_are_diffusers_scaled_latents(pipe, theirs, pictures):
    data = open_(pipe, pictures)
    for index, example in enumerate(data.examples):
        for flip in (False, True):
            latent = data.latents.load(index, flip)
            pixels = torch.from_numpy(load_pixels(example, data.latents.crops[index], flip).copy())
            with torch.no_grad():
                expected = theirs.vae.encode(pixels.permute(2, 0, 1)[None] / 127.5 - 1).latent_dist
            scale = theirs.vae.config.scaling_factor
            assert error(latent["mean"][None], expected.mean * scale) < LATENTS
            assert error(latent["std"][None], expected.std * scale) < LATENTS
            assert latent["mean"].dtype == latent["std"].dtype == np.float32


def test_a_second_run_encodes_nothing(pipe, pictures, encoded):
    told = []
    open_(pipe, pictures, tell=told.append)
    assert len(encoded) == 4  # two pictures and their mirrored forms
    assert [(p.done, p.total) for p in told if p.stage == "latents"] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    open_(pipe, pictures)
    assert len(encoded) == 4
    open_(pipe, pictures, dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, flip=False), seed=3))
    assert len(encoded) == 4


def test_what_changes_a_latent_has_it_encoded_again(pipe, pictures, encoded):
    first = open_(pipe, pictures)
    before = first.latents.load(0, False)
    os.utime(first.examples[0].path, ns=(1, 1))
    assert open_(pipe, pictures).digest() == first.digest() and len(encoded) == 4
    other_pixel(first.examples[0].path)
    changed = open_(pipe, pictures)
    assert changed.digest() != first.digest() and changed.digest(by_size=True) == first.digest(by_size=True)
    assert len(encoded) == 4 + 2
    smaller = dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, resolution=48))
    open_(pipe, pictures, smaller)
    assert len(encoded) == 6 + 4
    other = dataclasses.replace(first.latents, fingerprint=cache.fingerprint(pipe.vae, {"another": np.ones(1)}))
    other_pixel(first.examples[0].path)  # as it was
    assert list(other.fill(pipe.vae, pipe.params["vae"], (False,))) == [1, 2]
    assert len(encoded) == 10 + 2
    np.testing.assert_array_equal(other.load(0, False)["mean"], before["mean"])


def test_pictures_are_hashed_once(pipe, pictures, monkeypatch):
    read: list[Path] = []
    monkeypatch.setattr(hashes, "sha256_of", lambda path: read.append(path) or sha256_of(path))
    first = open_(pipe, pictures)
    assert len(read) == 2 and open_(pipe, pictures).digest() == first.digest() and len(read) == 2
    (pictures.parent / "pictures.json").write_text('{"half')
    assert open_(pipe, pictures).digest() == first.digest() and len(read) == 4
    other_pixel(first.examples[1].path)
    assert open_(pipe, pictures).digest() != first.digest() and len(read) == 5


def test_latents_are_of_the_picture_that_was_hashed(pipe, pictures, monkeypatch):
    def then_changed(path: Path) -> str:
        found = sha256_of(path)
        other_pixel(path)
        return found

    monkeypatch.setattr(hashes, "sha256_of", then_changed)
    with pytest.raises(DatasetError, match="is not the picture that it was a moment ago"):
        open_(pipe, pictures)
    assert list((pictures.parent / "latents").iterdir()) == []


def test_a_picture_that_changes_during_a_run_does_not_stop_it(pipe, pictures):
    data = open_(pipe, pictures)
    data.examples[0].path.unlink()
    os.utime(data.examples[1].path, ns=(1, 1))
    batch_at = data.batches(dataclasses.replace(CONFIG, batch_size=2), devices=1)
    assert {batch_at(step)["mean"].shape for step in range(4)} == {(1, 2, 8, 8, 4)}


@pytest.mark.parametrize("kept", [0, 20, -1])
def test_a_file_that_was_cut_short_is_made_again(pipe, pictures, encoded, kept: int):
    data = open_(pipe, pictures)
    expected = data.latents.load(1, True)
    path = data.latents._path(1, True)
    path.write_bytes(path.read_bytes()[:kept])
    np.testing.assert_equal(open_(pipe, pictures).latents.load(1, True), expected)
    assert len(encoded) == 5
    assert not [p for p in (pictures.parent / "latents").iterdir() if p.suffix != ".safetensors"]


def test_latents_that_are_not_finite_are_refused_by_name(pipe, pictures, monkeypatch):
    nothing = np.full((1, 8, 8, 4), np.nan, np.float32)
    monkeypatch.setattr(cache, "_encode", lambda *_: (nothing, nothing))
    with pytest.raises(DatasetError, match=r"\.png can't be trained on, 1 problem:\n.*not finite.*in float32"):
        open_(pipe, pictures)
    assert list((pictures.parent / "latents").iterdir()) == []


# ---- prompts ---------------------------------------------------------------------------------------------------------


def test_embedded_prompts_are_what_diffusers_tells_its_denoiser(pipe, theirs, pictures):
    data = open_(pipe, pictures)
    assert data.embedded and set(data.prompts) == {"", *(e.caption for e in data.examples)}
    for caption, prompt in data.prompts.items():
        with torch.no_grad():
            hidden, _, pooled, _ = theirs.encode_prompt(caption, do_classifier_free_guidance=False)
        assert error(prompt["encoder_hidden_states"][None], hidden) < PROMPTS
        assert error(prompt["text_embeds"][None], pooled) < PROMPTS


@pytest.mark.parametrize("why", ["encoders learn", "many captions"])
def test_tokens_are_kept_where_embeddings_can_not_be(pipe, theirs, pictures, monkeypatch, why: str):
    config = CONFIG
    if why == "encoders learn":
        config = dataclasses.replace(CONFIG, lora=LoraConfig(text_encoders=True))
    else:
        monkeypatch.setattr(training_data, "MOST_EMBEDDED", 2)
    data = open_(pipe, pictures, config)
    assert not data.embedded
    for name, tokenizer in zip(ENCODERS, (theirs.tokenizer, theirs.tokenizer_2), strict=True):
        for caption, prompt in data.prompts.items():
            np.testing.assert_array_equal(
                prompt[name], tokenizer(caption, padding="max_length", max_length=77).input_ids
            )


# ---- batches ---------------------------------------------------------------------------------------------------------


def test_batches_are_a_function_of_the_step_and_draw_no_number_twice(pipe, pictures):
    data = open_(pipe, pictures)
    config = dataclasses.replace(CONFIG, batch_size=2, gradient_accumulation_steps=3)
    batch_at = data.batches(config, devices=2)
    batches = [batch_at(step) for step in range(4)]
    for step in (2, 0):
        np.testing.assert_equal(data.batches(config, devices=2)(step), batches[step])
    assert batches[0]["mean"].shape == (3, 4, 8, 8, 4) and batches[0]["sizes"]["time_ids"].shape == (3, 4, 6)
    drawn = np.concatenate([batch["draw"].ravel() for batch in batches])
    np.testing.assert_array_equal(drawn, np.arange(4 * 12))
    known = [data.latents.load(i, flip)["mean"] for i in range(2) for flip in (False, True)]
    seen = [sum(np.array_equal(x, row) for b in batches for row in b["mean"].reshape(-1, 8, 8, 4)) for x in known]
    assert sum(seen) == 48 and min(seen) > 4  # pictures and their mirrored forms, about as often


def test_rows_belong_together(pipe, pictures):
    """A row's latents, size conditioning and prompt are one picture's."""
    data = open_(pipe, pictures)
    batch = data.batches(dataclasses.replace(CONFIG, batch_size=4), devices=1)(0)
    for k in range(4):
        (index, flip) = next(
            (i, f)
            for i in range(2)
            for f in (False, True)
            if np.array_equal(data.latents.load(i, f)["mean"], batch["mean"][0, k])
        )
        np.testing.assert_array_equal(batch["sizes"]["time_ids"][0, k], data.latents.crops[index].time_ids(flip))
        expected = data.prompts[data.examples[index].caption]["text_embeds"]
        np.testing.assert_array_equal(batch["prompt"]["text_embeds"][0, k], expected)
