"""The built-in model and its LoRAs: small, offline, without torch, and to diffusers the same as to us."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from autolora_jax import CFG, AutoLoRAPipeline
from autolora_jax.demo import LORAS, builtin

MOST_BYTES = 22.5e6
ALIKE = ("style", "character-autolora")  # of the same trainers as the others
AGREEMENT = 1e-4  # of latents up to 5, after eight steps; seen: 7e-6
WITHOUT_TORCH = """
import sys
for name in ("torch", "diffusers", "peft", "tensorflow"):
    sys.modules[name] = None  # importing it fails
from autolora_jax import AutoLoRA, AutoLoRAPipeline
pipe = AutoLoRAPipeline.from_pretrained()
pipe.load_lora("builtin:character")
print(pipe("a zib", num_inference_steps=2, height=32, width=32, output_type="np").images.shape)
"""


def test_the_library_runs_without_torch():
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 32, 32, 3)"


def test_it_ships_small_and_with_its_card():
    files = [path for name in ("builtin", *(f"builtin:{lora}" for lora in LORAS)) for path in _files(builtin(name))]
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    assert builtin("builtin").joinpath("README.md").is_file()


def _files(path):
    return [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]


def test_only_names_that_mean_it_are_taken(tmp_path, monkeypatch):
    assert builtin("stabilityai/sdxl") is None
    with pytest.raises(ValueError, match="builtin:character, builtin:style, "):
        builtin("builtin:zib")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "builtin").mkdir()
    assert builtin("builtin") is None  # a folder of that name is the user's


@pytest.mark.parametrize(
    "lora", [pytest.param(lora, marks=[pytest.mark.slow] * (lora in ALIKE)) for lora in (None, *LORAS)]
)
def test_diffusers_draws_the_same_from_the_same_noise(lora, tmp_path):
    import torch
    from diffusers import StableDiffusionXLPipeline

    theirs = StableDiffusionXLPipeline.from_pretrained(builtin("builtin"), torch_dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    mine = AutoLoRAPipeline.from_pretrained(dtype="float32", devices=jax.devices()[:1])
    if lora:
        file = builtin(f"builtin:{lora}")
        theirs.load_lora_weights(file.parent, weight_name=file.name)
        mine.load_lora(f"builtin:{lora}")
    prompt, steps, w = "a small red cat on the left in the forest at night", 8, 5.0
    made = mine(prompt, seeds=3, guidance=CFG(w), num_inference_steps=steps, noise="torch", output_type="latent")
    expected = theirs(
        prompt,
        generator=torch.Generator("cpu").manual_seed(3),
        guidance_scale=w,
        num_inference_steps=steps,
        output_type="latent",
    ).images
    np.testing.assert_allclose(made.images, expected.permute(0, 2, 3, 1).numpy(), atol=AGREEMENT)
