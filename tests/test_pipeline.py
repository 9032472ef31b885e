"""Whole runs against PyTorch: guidance × scheduler × dialect, and the laws a pipeline must keep."""

from pathlib import Path

import jax
import numpy as np
import pytest
from diffusers import StableDiffusionXLPipeline

from autolora_jax import CFG, AutoGuidance, AutoLoRA, AutoLoRAPipeline, NoGuidance, PersonalizationGuidance
from tests import reference_run
from tests.lora_reference import RandomLora, random_lora

# Final latents, of the reference's maximum. torch itself is within 4e-6 of float64; tanh for erf GELU moves them 4e-4.
LATENTS = 5e-5
CALL = dict(prompt="a cat, the dog", negative_prompt="mist", height=96, width=128, num_inference_steps=6)
SEEDS = [3, 2**40 + 5]


@pytest.fixture(scope="module")
def lora(tiny_pipeline: StableDiffusionXLPipeline) -> RandomLora:
    return random_lora(tiny_pipeline, seed=1, convolutions=True)


@pytest.fixture(scope="module")
def lora_file(lora: RandomLora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora.save(tmp_path_factory.mktemp("lora") / "kohya.safetensors", "kohya_sgm")


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path, lora_file: Path) -> AutoLoRAPipeline:
    """Ours, float32, on two of the eight devices, with the LoRA."""
    pipe = AutoLoRAPipeline.from_pretrained(tiny_folder, dtype="float32", devices=jax.devices()[:2])
    pipe.load_lora(lora_file)
    return pipe


def torch_latents(pipe: StableDiffusionXLPipeline, lora: RandomLora, rule, scheduler="euler", **more) -> np.ndarray:
    """[seeds h w c]"""
    call = {**CALL, **more}
    call["steps"] = call.pop("num_inference_steps")
    return np.stack([reference_run.run(pipe, lora, rule, scheduler=scheduler, seed=s, **call) for s in SEEDS])


def our_latents(pipe: AutoLoRAPipeline, rule, **more) -> np.ndarray:
    return pipe(**{**CALL, "seeds": SEEDS, "guidance": rule, "noise": "torch", "output_type": "latent", **more}).images


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


RULES = {
    "lora": NoGuidance(),
    "cfg": CFG(4.0),
    "autolora": AutoLoRA(1.5, 3.0, 4.0),
    "autolora-without-cfg": AutoLoRA(1.5, 1.0, 1.0),
    "autoguidance": AutoGuidance(1.8),
    "personalization": PersonalizationGuidance(3.0, 0.4),
    "interval": AutoLoRA(1.5, 3.0, 4.0, start=0.2, stop=0.7),
}


@pytest.mark.parametrize("rule", RULES)
def test_guidance_matches_torch(pipe, tiny_pipeline, lora, rule: str):
    seen = error(our_latents(pipe, RULES[rule]), torch_latents(tiny_pipeline, lora, RULES[rule]))
    assert seen < LATENTS


@pytest.mark.parametrize("rule", ["cfg", "autolora"])
@pytest.mark.parametrize("scheduler", [s for s in reference_run.SCHEDULERS if s != "euler"])
def test_schedulers_match_torch(pipe, tiny_pipeline, lora, scheduler: str, rule: str):
    ours = our_latents(pipe, RULES[rule], scheduler=scheduler)
    assert error(ours, torch_latents(tiny_pipeline, lora, RULES[rule], scheduler)) < LATENTS
