"""The recipe of the built-in model, a few steps of every round: it makes a model that draws, and goes on exactly."""

import dataclasses
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from autolora_jax import CFG, AutoLoRAPipeline
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.sharding import data_mesh
from autolora_jax.weights.lora.files import read_lora
from recipes.builtin import __main__ as recipe
from recipes.builtin import autoencoder, base, classifier, look, loras, networks, pictures, stages
from recipes.builtin.console import Console
from recipes.builtin.damage import blurred, to_bytes
from recipes.builtin.words import sample_scene
from recipes.builtin.world import draw

pytestmark = pytest.mark.slow  # minutes of compiling, for programs that are run once a model
STEPS, PICTURES = 6, 12
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
# Of every kind of round one; they begin with the first, as the plan does.
ROUNDS = {
    autoencoder: tuple(
        plan._replace(steps=2) for plan in (autoencoder.ROUNDS[0], autoencoder.ROUNDS[2], autoencoder.ROUNDS[4])
    ),
    classifier: (classifier.ROUNDS[0]._replace(steps=2),),
    base: (base.ROUNDS[0]._replace(steps=STEPS),),
}
PLAN = ("autoencoder", "classifier", "autoencoder", "base", "autoencoder")


@pytest.fixture(scope="module", autouse=True)
def small():
    """Few steps of few pictures on one device, written down at every second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "ProcessPoolExecutor", lambda **_: ThreadPoolExecutor())  # a process costs seconds
        one = jax.devices()[:1]
        patch.setitem(networks.NETWORKS, "unet", SHALLOW)
        patch.setattr(stages, "data_mesh", partial(data_mesh, one))
        patch.setattr(stages, "SAVE_EVERY", 2)
        patch.setattr(AutoLoRAPipeline, "from_pretrained", partial(AutoLoRAPipeline.from_pretrained, devices=one))
        for stage, rounds in ROUNDS.items():
            patch.setattr(stage, "ROUNDS", rounds)
            patch.setattr(stage, "ROWS", 2)
        patch.setattr(classifier, "measured", partial(classifier.measured, count=120))
        optimizer = dataclasses.replace(loras.CONFIG.optimizer, warmup_steps=1)
        few = dataclasses.replace(loras.CONFIG, optimizer=optimizer, batch_size=1)
        short = {name: recipe._replace(steps=2) for name, recipe in loras.RECIPES.items()}
        patch.setattr(loras, "RECIPES", short)
        patch.setattr(loras, "CONFIG", few)
        patch.setattr(recipe, "PLAN", PLAN)
        yield


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, stages.Stage]]:
    """(work folder, folder of the stages, autoencoders before and after the round of the decoder alone)."""
    work, folder = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("stages")
    recipe.train(work, folder, len(PLAN) - 1, PICTURES)
    before = stages.load("autoencoder", folder)
    recipe.train(work, folder, len(PLAN), PICTURES)
    after = stages.load("autoencoder", folder)
    assert before and after
    return work, folder, {"before": before, "after": after}


def test_it_makes_a_model_and_its_loras(made: tuple[Path, Path, dict], tmp_path: Path):
    work, folder, _ = made
    recipe.finish(tmp_path, work, folder)
    pipe = AutoLoRAPipeline.from_pretrained(tmp_path / "model", dtype="float32", devices=jax.devices()[:1])
    for name, lora in loras.RECIPES.items():
        report = pipe.load_lora(tmp_path / "loras" / f"{name}.safetensors")
        assert lora.trigger in report.trigger_words
        assert set(report.modules) == {"unet", "text_encoder", "text_encoder_2"}
    call = dict(num_inference_steps=2, guidance=CFG(2.0), output_type="latent")
    latents = pipe("a red cat", height=32, width=32, **call).images
    assert np.isfinite(latents).all() and latents.shape == (1, 4, 4, 16)
    header = read_lora(tmp_path / "loras" / "style.safetensors", pipe.lora_targets()).metadata
    assert header["ss_sd_model_name"] == "builtin"
    assert set(json.loads((tmp_path / "classifier.json").read_text())["accuracy"]) >= {"clean", "pixel art"}


def test_what_it_has_come_to_can_be_seen(made: tuple[Path, Path, dict], tmp_path: Path):
    found = look.look(made[1], tmp_path / "sheet.png", 2, 2.0, 2)
    assert Image.open(tmp_path / "sheet.png").size == (2 * 2 * 128, 2 * 3 * 128)  # drawn, autoencoded, imagined
    assert 0.1 < found["error"] < 1 and found["sharpness"] > 0  # hardly trained
    drawn = np.asarray(draw(sample_scene(np.random.default_rng(0)), np.random.default_rng(0)))[None]
    soft = to_bytes(blurred(drawn.astype(np.float32), np.ones(1)))
    assert look.fidelity(drawn, drawn) == {"error": 0, "sharpness": 1}
    assert look.fidelity(drawn, soft)["sharpness"] < 0.8


def test_a_round_of_the_decoder_leaves_the_latents_alone(made: tuple[Path, Path, dict]):
    before, after = (made[2][when].weights["vae"] for when in ("before", "after"))
    for part in before:
        same = jax.tree.map(np.array_equal, before[part], after[part])
        assert jax.tree.all(same) == (part not in autoencoder.DECODING), part


def test_a_round_that_was_stopped_goes_on_to_the_same_weights(
    made: tuple[Path, Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """By its checkpoints exactly; from the stage's files alone, in a clean checkout, for the steps that are left."""
    work, folder, _ = made
    shutil.copytree(work, tmp_path / "work", ignore=shutil.ignore_patterns("base-*"))
    shutil.copytree(folder, tmp_path / "stages", ignore=shutil.ignore_patterns("base.*"))
    go_on = partial(base.train, count=PICTURES, rounds=1)

    def stops(_: Console, report) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Console, "show", stops)
        with pytest.raises(KeyboardInterrupt):
            go_on(tmp_path / "work", tmp_path / "stages")
    stage = stages.load("base", tmp_path / "stages")
    assert stage and (stage.round, stage.step) == (0, 2)
    shutil.copytree(tmp_path / "stages", tmp_path / "committed")
    seen = []
    monkeypatch.setattr(Console, "show", lambda _, report: seen.append((report.step, report.steps)))
    resumed = go_on(tmp_path / "work", tmp_path / "stages")
    assert seen == [(5, STEPS), (STEPS, STEPS)]
    whole = stages.load("base", folder)
    assert whole and (whole.round, whole.step) == (resumed.round, resumed.step) == (1, 0)
    jax.tree.map(np.testing.assert_array_equal, resumed.weights, whole.weights)

    seen.clear()
    elsewhere = go_on(tmp_path / "elsewhere", tmp_path / "committed")
    assert seen == [(i, 4) for i in (1, 2, 3, 4)] and elsewhere.round == 1


def test_critic_and_autoencoder_learn_from_their_own_terms():
    """In one pass: the critic from its contest alone, the autoencoder also from being told apart."""
    tiny = dataclasses.replace(networks.VAE, block_out_channels=(8, 8), latent_channels=2)
    vae = networks.AutoencoderKL(config=tiny)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    params = {
        "vae": vae.init(jax.random.key(0), jax.numpy.zeros((1, 32, 32, 3)))["params"],
        "critic": autoencoder.begin()["critic"],
    }
    frozen = {"seed": np.int32(0), "encoder": {}, "eye": classifier.begin()}
    batch = jax.tree.map(jax.numpy.asarray, {"pixels": pixels, "draw": np.arange(2, dtype=np.int32)})

    def gradients(adversarial: float, of: str):
        loss = autoencoder.AutoencoderLoss(vae, adversarial, 0.5)

        def mean(params):
            losses, metrics = loss(params, frozen, batch)
            return {"loss": losses, **metrics}[of].mean()

        return jax.jit(jax.grad(mean))(params)

    with_it, without, contest = (gradients(*which) for which in ((0.5, "loss"), (0.0, "loss"), (0.5, "tells")))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-7), with_it["critic"], contest["critic"])
    assert all(not leaf.any() for leaf in jax.tree.leaves((without["critic"], contest["vae"])))
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), with_it["vae"], without["vae"])
    assert max(jax.tree.leaves(moved)) > 1e-3
