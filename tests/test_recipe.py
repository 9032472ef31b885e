"""The recipe of the built-in model, a few steps of every stage: it makes a model that draws, and goes on exactly."""

import dataclasses
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

from autolora_jax import CFG, AutoLoRAPipeline
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.sharding import data_mesh
from autolora_jax.weights.lora.files import read_lora
from recipes.builtin import autoencoder, base, loras, networks, pictures
from recipes.builtin.__main__ import make
from recipes.builtin.console import Console

pytestmark = pytest.mark.slow  # minutes of compiling, for programs that are run once a model
STEPS, ROWS, PICTURES = 4, 2, 12
# The denoiser without its deepest level: compiling is what this waits for.
SHALLOW = UNet2DConditionModel(
    config=dataclasses.replace(
        networks.UNET,
        block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(1, 2),
    )
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """(work folder, folder with model/ and loras/) of a recipe of very few steps."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "ProcessPoolExecutor", ThreadPoolExecutor)  # this process has threads: never fork it
        one = jax.devices()[:1]
        patch.setitem(networks.NETWORKS, "unet", SHALLOW)
        for stage in (autoencoder, base):
            patch.setattr(stage, "data_mesh", partial(data_mesh, one))
        patch.setattr(AutoLoRAPipeline, "from_pretrained", partial(AutoLoRAPipeline.from_pretrained, devices=one))
        optimizer = dataclasses.replace(loras.CONFIG.optimizer, warmup_steps=1)
        few = dataclasses.replace(loras.CONFIG, optimizer=optimizer, steps=2, batch_size=1)
        patch.setattr(loras, "CONFIG", few)
        make(work, out, [1, 1], STEPS, ROWS, PICTURES)
        yield work, out


def test_it_makes_a_model_and_its_loras(made: tuple[Path, Path]):
    _, out = made
    pipe = AutoLoRAPipeline.from_pretrained(out / "model", dtype="float32", devices=jax.devices()[:1])
    for name, recipe in loras.RECIPES.items():
        report = pipe.load_lora(out / "loras" / f"{name}.safetensors")
        assert recipe.trigger in report.trigger_words
        assert set(report.modules) == {"unet", "text_encoder", "text_encoder_2"}
    call = dict(num_inference_steps=2, guidance=CFG(2.0), output_type="latent")
    latents = pipe("a red cat", height=32, width=32, **call).images
    assert np.isfinite(latents).all() and latents.shape == (1, 4, 4, 8)
    header = read_lora(out / "loras" / "style.safetensors", pipe.lora_targets()).metadata
    assert header["ss_sd_model_name"] == "builtin"


def test_a_stage_that_was_stopped_goes_on_to_the_same_weights(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    work, _ = made
    shutil.copytree(work, tmp_path / "work", ignore=shutil.ignore_patterns("base"))
    vae = autoencoder.train(tmp_path / "work", [1, 1], 8, PICTURES)  # from its checkpoints
    data = base.corpus(tmp_path / "work", vae, PICTURES)

    def stops(_: Console, report) -> None:
        if report.step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Console, "show", stops)
        with pytest.raises(KeyboardInterrupt):
            base.train(tmp_path / "work", data, STEPS, ROWS)
    seen = []
    monkeypatch.setattr(Console, "show", lambda _, report: seen.append(report.step))
    resumed = base.train(tmp_path / "work", data, STEPS, ROWS)
    assert seen and seen[0] > 2 and seen[-1] == STEPS
    whole = base.train(work, data, STEPS, ROWS)
    for a, b in zip(jax.tree.leaves(resumed.average), jax.tree.leaves(whole.average), strict=True):
        np.testing.assert_array_equal(a, b)
