"""What the base model is told: by its own text encoders, or by the LoRA's."""

from pathlib import Path

import jax
import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from autolora_jax import AutoLoRA, AutoLoRAPipeline, NoGuidance, PersonalizationGuidance
from autolora_jax.canvas import Canvas
from autolora_jax.config import SchedulerConfig
from autolora_jax.lora import Loaded, LoraReport
from autolora_jax.request import Request
from autolora_jax.settings import Call
from autolora_jax.settings.rules import Rule
from tests.lora_reference import random_lora
from tests.parity import error

LATENTS = 1e-5  # seen: 6e-8
CALL = dict(num_inference_steps=2, height=32, width=64, seeds=[1, 2], output_type="latent")
PROMPT = ("a cat, the dog", "mist")


@pytest.fixture(scope="module")
def pipe(small_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> AutoLoRAPipeline:
    """With a LoRA of the text encoders alone."""
    theirs = StableDiffusionXLPipeline.from_pretrained(small_folder)
    lora = random_lora(theirs, seed=3, components=("text_encoder", "text_encoder_2"))
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    pipe.load_lora(lora.save(tmp_path_factory.mktemp("lora") / "text.safetensors", "kohya_sgm"), 0.7)
    return pipe


def latents(pipe: AutoLoRAPipeline, rule: Rule, **more) -> np.ndarray:
    return pipe(*PROMPT, **{**CALL, "guidance": rule, **more}).images


def test_the_base_branches_read_what_they_are_to(pipe):
    own, shared = (pipe.conditioning(*PROMPT, clip_skip=1, base_text=base_text) for base_text in ("base", "lora"))
    for name, array in own["lora"].items():
        np.testing.assert_array_equal(shared["lora"][name], array)
        np.testing.assert_array_equal(shared["base"][name], array)
    for name in ("encoder_hidden_states", "text_embeds"):
        assert error(own["base"][name], own["lora"][name]) > 0.1


def test_a_lora_of_the_text_alone_then_leaves_nothing_to_compare(pipe, count_compilations):
    """Both models are one, so AutoLoRA is the LoRA alone; the same program draws with both texts."""
    alone, rule = latents(pipe, NoGuidance()), AutoLoRA(2.5, 1.0, 1.0)
    own = pipe(*PROMPT, **CALL, guidance=rule)
    with count_compilations() as compiled:
        shared = pipe(*PROMPT, **CALL, guidance=rule, base_text="lora")
    assert not compiled
    assert error(shared.images, alone) < LATENTS
    assert error(own.images, alone) > 1e-2
    assert [out.settings[0]["base_text"] for out in (own, shared)] == ["base", "lora"]
    # Each picture has its own scale.
    mixed = latents(pipe, rule, base_text="lora", lora_scale=[0.0, 0.9])
    assert error(mixed, latents(pipe, NoGuidance(), lora_scale=[0.0, 0.9])) < LATENTS


@pytest.mark.parametrize(
    ("rule", "kinds"),
    [
        (AutoLoRA(1.5, 5.0, 5.0), {"base", "lora"}),
        (AutoLoRA(0.0, 5.0, 5.0), {"base"}),  # no LoRA branch to take the scale from
        (PersonalizationGuidance(3.0, 0.5), {"weak", "lora"}),  # no base branch: the weaker LoRA has its own text
    ],
)
@pytest.mark.parametrize("base_text", ["base", "lora"])
def test_every_kind_has_its_scales(rule: Rule, kinds: set[str], base_text: str):
    call = Call("a cat", seeds=(0, 1), guidance=rule, num_inference_steps=4, lora_scale=[0.4, 0.8], base_text=base_text)
    request = Request.of(
        call,
        Canvas(8, 1, 1, 4, 5.0, SchedulerConfig()),
        [Loaded(LoraReport("made here", "in memory", {}, {}, {}, 0, (), {}))],
    )
    lora = np.array([[0.4], [0.8]], np.float32)
    denoiser = {"base": 0 * lora, "weak": 0.5 * lora, "lora": lora}
    read = {**denoiser, "base": denoiser[base_text]}
    assert request.scales.keys() == request.text_scales.keys() == kinds
    for kind in kinds:
        np.testing.assert_array_equal(request.scales[kind][:, 0], denoiser[kind])
        np.testing.assert_array_equal(request.text_scales[kind], read[kind])


def test_others_are_refused(pipe):
    for call in (pipe, pipe.conditioning):
        with pytest.raises(ValueError, match="base_text = 'lore' is not known"):
            call("a cat", base_text="lore")
