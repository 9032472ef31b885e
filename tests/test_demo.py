"""The built-in stand-in: a folder in the published layout that diffusers reads too, made without network or torch."""

import subprocess
import sys

import numpy as np
import pytest

from autolora_jax import AutoLoRAPipeline
from autolora_jax.demo import standin_lora, standin_model

WITHOUT_TORCH = """
import sys
for name in ("torch", "diffusers", "peft", "tensorflow"):
    sys.modules[name] = None  # importing it fails
from autolora_jax import AutoLoRA, AutoLoRAPipeline
from autolora_jax.demo import standin_lora
pipe = AutoLoRAPipeline.from_pretrained()
pipe.load_lora(standin_lora())
print(pipe("a cat", num_inference_steps=2, height=32, width=32, output_type="np").images.shape)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("AUTOLORA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_the_library_runs_without_torch():
    run = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "(1, 32, 32, 3)"


def test_standin_is_small_and_written_once():
    folder = standin_model()
    assert sum(f.stat().st_size for f in folder.rglob("*")) < 6e6
    before = {f: f.stat().st_mtime_ns for f in folder.rglob("*")}
    assert standin_model() == folder
    assert {f: f.stat().st_mtime_ns for f in folder.rglob("*")} == before


def test_diffusers_reads_the_standin():
    import torch
    from diffusers import StableDiffusionXLPipeline

    theirs = StableDiffusionXLPipeline.from_pretrained(standin_model(), torch_dtype=torch.float32)
    mine = AutoLoRAPipeline.from_pretrained(standin_model(), dtype="float32")
    hidden, _, pooled, _ = theirs.encode_prompt("a red fox!", do_classifier_free_guidance=False)
    told = mine.encode_prompt("a red fox!")["base"]
    np.testing.assert_allclose(told["encoder_hidden_states"][0, 1], hidden[0].detach(), atol=2e-5)
    np.testing.assert_allclose(told["text_embeds"][0, 1], pooled[0].detach(), atol=2e-5)
    theirs.load_lora_weights(standin_lora().parent, weight_name=standin_lora().name)
    report = mine.load_lora(standin_lora())
    assert report.modules["unet"] == sum("lora_A" in name for name, _ in theirs.unet.named_modules()) // 2
