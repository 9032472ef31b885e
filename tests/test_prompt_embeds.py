"""Embeddings in place of prompts: what encode_prompt gives draws what the texts draw, here and in diffusers."""

import copy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, PersonalizationGuidance
from autolora_jax.pictures import chunks
from autolora_jax.text.embeds import Embeds
from tests import reference_sd3
from tests.lora_reference import random_lora
from tests.parity import error

SAME = 1e-5  # of latents, relative to their maximum; seen: 0, the arrays are the texts' own
PARITY = 1e-5  # with diffusers; seen: 2.4e-6
CALL = dict(num_inference_steps=3, height=64, width=64, seeds=[1, 2**40], output_type="latent", noise="torch")
PROMPTS = ["a cat, the dog", "the mist"]


@pytest.fixture(scope="module")
def theirs(small_folder: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(small_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def tuned(small_folder: Path, theirs, tmp_path_factory: pytest.TempPathFactory) -> AutoLoRAPipeline:
    """With a LoRA of denoiser and text encoders."""
    lora = random_lora(theirs, seed=3, strength=0.5)
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(lora.save(tmp_path_factory.mktemp("lora") / "both.safetensors", "kohya_sgm"), 0.7)
    return pipe


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> tuple[AutoLoRAPipeline, StableDiffusion3Pipeline]:
    folder = tmp_path_factory.mktemp("sd3")
    theirs = reference_sd3.tiny_sd3(folder, "sd3")
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(folder)
    return AutoLoRAPipeline.from_pretrained(folder, dtype="float32", devices=jax.devices()[:1]), theirs


def latents(pipe: AutoLoRAPipeline, **call: Any) -> np.ndarray:
    return pipe(**{**CALL, "guidance": CFG(4.0), **call}).images


def test_they_draw_what_their_texts_draw(pipe, count_compilations):
    told = pipe.encode_prompt(PROMPTS, "the dog")
    assert [array.shape for array in told] == [(2, 77, 80), (2, 77, 80), (2, 48), (2, 48)]
    texts = latents(pipe, prompt=PROMPTS, negative_prompt="the dog")
    assert len(texts) == 4
    with count_compilations() as compiled:
        given = latents(pipe, **told._asdict())
    assert not compiled and error(given, texts) < SAME
    # A side may be text; one negative is for all; other arrays than numpy's are taken.
    positive = dict(prompt_embeds=jax.numpy.asarray(told.prompt_embeds), pooled_prompt_embeds=told.pooled_prompt_embeds)
    assert error(latents(pipe, **positive, negative_prompt="the dog"), texts) < SAME
    negative = dict(
        negative_prompt_embeds=torch.tensor(told.negative_prompt_embeds[:1]),
        negative_pooled_prompt_embeds=told.negative_pooled_prompt_embeds[:1].tolist(),
    )
    assert error(latents(pipe, prompt=PROMPTS, **negative), texts) < SAME
    zeros = latents(pipe, prompt=PROMPTS, negative_prompt=None)
    assert error(latents(pipe, **positive, negative_prompt=None), zeros) < SAME and error(zeros, texts) > 0.01
    pairs = latents(pipe, **told._asdict(), paired=True)
    assert error(pairs, texts[[0, 3]]) < SAME


def test_what_is_read_otherwise_is_given_too(pipe):
    for prompt, more in (("a cat", dict(clip_skip=1)), ("a (cat:1.4)", dict(prompt_chunks=2, prompt_syntax="a1111"))):
        texts = latents(pipe, prompt=prompt, **more)
        assert error(latents(pipe, **pipe.encode_prompt(prompt, **more)._asdict()), texts) < SAME


@pytest.mark.parametrize("family", ["sdxl", "sd3"])
def test_diffusers_draws_the_same_of_them(pipe, theirs, sd3, family: str):
    ours, pipe_of_torch = (pipe, theirs) if family == "sdxl" else sd3
    size = dict(height=64, width=64, num_inference_steps=3)
    read = dict(max_sequence_length=24) if family == "sd3" else {}
    texts = ["a cat, the dog"] * (1 if family == "sdxl" else 3)  # diffusers names one for each encoder of SD3
    encoded = pipe_of_torch.encode_prompt(*texts, negative_prompt="mist", **read)
    for told in (
        ours.encode_prompt("a cat, the dog", "mist", **read),
        Embeds(*(tensor.detach().numpy() for tensor in encoded)),
    ):
        expected = pipe_of_torch(
            **{name: torch.from_numpy(np.array(array)) for name, array in told._asdict().items()},
            **size,
            guidance_scale=4.0,
            generator=torch.Generator("cpu").manual_seed(1),
            output_type="latent",
        ).images
        mine = latents(ours, **told._asdict(), **size, seeds=1)
        assert error(mine, expected.permute(0, 2, 3, 1).numpy()) < PARITY
    assert error(mine, latents(ours, prompt="the mist", **size, **read, seeds=1)) > 0.01


def test_models_that_read_differently_are_given_their_own(tuned):
    rule = AutoLoRA(1.5, 3.0, 4.0)
    texts = latents(tuned, prompt="a cat", negative_prompt="mist", guidance=rule)
    lora, base = (tuned.encode_prompt("a cat", "mist", lora_scale=scale)._asdict() for scale in (None, 0.0))
    each = {name: {"base": base[name], "lora": lora[name]} for name in lora}
    assert error(latents(tuned, **each, guidance=rule), texts) < SAME
    with pytest.raises(
        ValueError, match=r"the LoRA has a part for the text encoders.*lora_scale=0.0.*base_text='lora'"
    ):
        latents(tuned, **lora, guidance=rule)
    shared = latents(tuned, prompt="a cat", negative_prompt="mist", guidance=rule, base_text="lora")
    assert error(latents(tuned, **lora, guidance=rule, base_text="lora"), shared) < SAME
    assert error(shared, texts) > 0.01
    # Where one model is asked, there is nothing to differ in.
    alone = latents(tuned, prompt="a cat", negative_prompt="mist")
    assert error(latents(tuned, **lora), alone) < SAME
    with pytest.raises(ValueError, match=r"prompt_embeds has \['base', 'lora'\], but the guidance asks for \['weak'"):
        latents(tuned, **each, guidance=PersonalizationGuidance(2.0, 0.5))


def test_pictures_tell_of_them(pipe, tmp_path: Path):
    told = pipe.encode_prompt(PROMPTS, "the dog")._asdict()
    out = pipe(**told, seeds=[1, 2], num_inference_steps=1, height=64, width=64)
    digests = [row["prompt_embeds"] for row in out.settings]
    assert digests[0] == digests[1] != digests[2] == digests[3] and len(digests[0]) == 12
    assert [out.settings[0][name] for name in ("prompt", "prompt_2", "negative_prompt")] == [None] * 3
    assert f"Prompt embeds: {digests[0]}, Negative prompt embeds: " in chunks(out.settings[0])["parameters"]
    assert out.save(tmp_path)[0].name == f"0000-seed1-embeds-{digests[0]}.png"
    assert out.grid().size[0] > 128 and f"embeds {digests[2]}" in (out._repr_html_() or "")


STATES, POOLED = np.zeros((2, 77, 80), np.float32), np.zeros((2, 48), np.float32)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(), "draw what"),
        (dict(prompt_embeds=STATES), "prompt_embeds is given, pooled_prompt_embeds is not"),
        (dict(pooled_prompt_embeds=POOLED), "pooled_prompt_embeds is given, prompt_embeds is not|draw what"),
        (
            dict(prompt="a cat", negative_pooled_prompt_embeds=POOLED),
            "negative_pooled_prompt_embeds is given, negative_prompt_embeds is not",
        ),
        (dict(prompt="a cat", prompt_embeds=STATES, pooled_prompt_embeds=POOLED), "prompt and prompt_embeds are both"),
        (dict(prompt_2="a cat", prompt_embeds=STATES, pooled_prompt_embeds=POOLED), "prompt_2 and prompt_embeds"),
        (
            dict(prompt="a", negative_prompt="b", negative_prompt_embeds=STATES, negative_pooled_prompt_embeds=POOLED),
            "negative_prompt and negative_prompt_embeds",
        ),
        (dict(prompt_embeds=STATES, pooled_prompt_embeds=POOLED, clip_skip=1), "clip_skip = 1 is of texts"),
        (dict(prompt_embeds=STATES[0], pooled_prompt_embeds=POOLED), r"shape \(77, 80\); expected \[prompts, tokens"),
        (dict(prompt_embeds=STATES, pooled_prompt_embeds=POOLED[:1]), "prompt_embeds is of 2 prompts, pooled.* of 1"),
        (dict(prompt_embeds=STATES[..., :9], pooled_prompt_embeds=POOLED), r"this model's are \[prompts, tokens, 80\]"),
        (dict(prompt_embeds=STATES * np.nan, pooled_prompt_embeds=POOLED), "prompt_embeds must be finite"),
        (dict(prompt_embeds="a cat", pooled_prompt_embeds=POOLED), "prompt_embeds can't be read as an array"),
        (dict(prompt_embeds={"own": STATES}, pooled_prompt_embeds=POOLED), r"\['own'\], which are no weights"),
        (dict(prompt_embeds={"base": STATES}, pooled_prompt_embeds=POOLED), "asks for .'lora'.: give 'lora'"),
        (dict(prompt_embeds=STATES[:, :70], pooled_prompt_embeds=POOLED), "has 70 tokens, the negative one 77"),
        (
            dict(prompt=["a"] * 3, negative_prompt_embeds=STATES, negative_pooled_prompt_embeds=POOLED),
            "negative_prompt_embeds is of 2 prompts for 3",
        ),
    ],
)
def test_what_can_not_be_told_is_refused(pipe, given: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        latents(pipe, **given)


def test_the_text_that_a_call_was_given_is_not_encoded(pipe, monkeypatch):
    told = copy.deepcopy(pipe.encode_prompt("a cat", "mist"))
    monkeypatch.setattr(
        pipe.text, "_begin", lambda readings: pytest.fail("nothing is left to read") if [*readings] else None
    )
    latents(pipe, **told._asdict())
