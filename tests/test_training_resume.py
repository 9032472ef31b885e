"""Whole LoRA runs: stopped and resumed, refused, broken; and what diffusers makes of the file."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from autolora_jax import AutoLoRAPipeline
from autolora_jax.config import ConfigError
from autolora_jax.lora import at_scale
from autolora_jax.training import DataConfig, LoraConfig, OptimizerConfig, TrainConfig, TrainProgress, train_lora
from autolora_jax.training.data import open_data
from autolora_jax.training.loop import TrainingError
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.files import read_lora
from recipes.builtin.world import character_set, write_folder
from tests.parity import channels_first, error, normal

PREDICTION = 2e-5  # of the reference's maximum; seen: 1.3e-6

# Every kind of layer, few of each, and both text encoders: one compiled step serves all tests. (Of kohya files with
# other projections of text encoders but no out_proj, diffusers 0.42 drops those without a word.)
KINDS = (r"mid_block\..*(to_|ff\.|proj_in|conv1|time_emb)", r"conv_shortcut|samplers", r"add_", r"out_proj|mlp\.fc1")
CONFIG = TrainConfig(
    lora=LoraConfig(rank=2, alpha=3.0, targets=KINDS, text_encoders=True),
    data=DataConfig(resolution=64, max_aspect=1.0, flip=True),
    optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=1),
    steps=6,
    save_every=2,
)
NAME = "zib.safetensors"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four of them: two steps an epoch."""
    folder = tmp_path_factory.mktemp("pictures")
    write_folder(character_set(4, size=64), folder)
    return folder


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    """On two of the eight devices."""
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def whole(pipe: AutoLoRAPipeline, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The LoRA of a run that was never stopped; its work folder is beside it."""
    out = tmp_path_factory.mktemp("whole") / NAME
    train_lora(pipe, pictures, out, CONFIG)
    return out


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    """Where the LoRA of a run would be that was killed after its checkpoint of step 4."""
    shutil.copytree(whole.with_suffix(".train"), tmp_path / "zib.train")
    shutil.rmtree(tmp_path / "zib.train" / "checkpoints" / "6")
    return tmp_path / NAME


def steps(out: Path) -> list[int]:
    return sorted(int(p.name) for p in (out.with_suffix(".train") / "checkpoints").iterdir() if p.name.isdecimal())


def at(step: int, act: Callable[[], Any]) -> Callable[[TrainProgress], None]:
    """An `on_progress` that acts when it is told of this step."""

    def on_progress(progress: TrainProgress) -> None:
        if (progress.stage, progress.done) == ("train", step):
            act()

    return on_progress


def interrupt() -> None:
    raise KeyboardInterrupt


# ---- stopping and going on -------------------------------------------------------------------------------------------


def test_an_interrupted_run_goes_on_to_the_same_file(pipe, pictures, whole, tmp_path):
    out = tmp_path / NAME
    with pytest.raises(KeyboardInterrupt):
        train_lora(pipe, pictures, out, CONFIG, on_progress=at(2, interrupt))
    assert not out.exists() and steps(out) == [2]
    with pytest.raises(KeyboardInterrupt):
        train_lora(pipe, pictures, out, CONFIG, on_progress=at(4, interrupt))
    told: list[TrainProgress] = []
    report = train_lora(pipe, pictures, out, CONFIG, on_progress=told.append)
    assert [p.done for p in told if p.stage == "train"] == [5, 6]
    assert out.read_bytes() == whole.read_bytes()
    assert report.modules.keys() == {"unet", "text_encoder", "text_encoder_2"}


def test_a_killed_run_goes_on_from_an_older_checkpoint(pipe, pictures, whole, copied, count_compilations):
    def compiled_by_then() -> None:
        assert compiled == []

    with count_compilations() as compiled:
        train_lora(pipe, pictures, copied, CONFIG, on_progress=at(6, compiled_by_then))
    assert copied.read_bytes() == whole.read_bytes()


def test_what_is_not_of_the_numbers_may_change(pipe, pictures, whole, copied):
    """Where checkpoints are due, and how the file is written."""
    train_lora(pipe, pictures, copied, dataclasses.replace(CONFIG, save_every=100), metadata={"author": "me"})
    ours, expected = load_file(copied), load_file(whole)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(seed=1), "seed was 0, is 1"),
        (dict(lora=dataclasses.replace(CONFIG.lora, alpha=1.0)), "lora.alpha was 3.0, is 1.0"),
        (dict(optimizer=dataclasses.replace(CONFIG.optimizer, beta2=0.9)), "optimizer.beta2 was 0.999, is 0.9"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused(pipe, pictures, copied, change: dict[str, Any], words: str):
    with pytest.raises(ConfigError, match=f"other settings: {words}. Resume it with its own"):
        train_lora(pipe, pictures, copied, dataclasses.replace(CONFIG, **change))
    assert steps(copied) == [4] and not copied.exists()


def test_other_pictures_models_and_devices_are_refused(pipe, pictures, small_folder, copied, tmp_path):
    other = tmp_path / "pictures"
    shutil.copytree(pictures, other)
    next(other.glob("*.txt")).write_text("a dog")
    with pytest.raises(ConfigError, match="pictures was"):
        train_lora(pipe, other, copied, CONFIG)
    one = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    with pytest.raises(ConfigError, match="devices was 2, is 1"):
        train_lora(one, pictures, copied, CONFIG)
    kernel = one.params["unet"]["conv_in"]["kernel"]
    one.params["unet"]["conv_in"] = {**one.params["unet"]["conv_in"], "kernel": kernel + 1e-3}
    with pytest.raises(ConfigError, match="weights was"):
        train_lora(one, pictures, copied, CONFIG)


# ---- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_and_earlier_checkpoints_stay(pipe, pictures, copied):
    """As damaged latents give it, or a learning rate beyond reason."""
    for path in (copied.with_suffix(".train") / "latents").iterdir():
        save_file({name: value * np.float32(np.nan) for name, value in load_file(path).items()}, path)
    with pytest.raises(TrainingError, match="the loss of step 5 is nan; lower the learning rate"):
        train_lora(pipe, pictures, copied, CONFIG)
    assert steps(copied) == [4] and not copied.exists()


def test_a_damaged_checkpoint_is_said_and_the_one_before_goes_on(pipe, pictures, whole, copied):
    newest = "zib.train/checkpoints/6"
    shutil.copytree(whole.parent / newest, copied.parent / newest)
    for path in (copied.parent / newest).rglob("d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    finished: list[int] = []
    with pytest.warns(
        UserWarning, match=r"step 6 in .* can't be read .* as unreadable-6, and training goes on from step 4"
    ):
        train_lora(pipe, pictures, copied, CONFIG, on_start=lambda summary: finished.append(summary.finished))
    assert finished == [4] and copied.read_bytes() == whole.read_bytes() and steps(copied) == [4, 6]


def test_checkpoints_none_of_which_can_be_read_are_kept(pipe, pictures, copied):
    for path in copied.with_suffix(".train").rglob("checkpoints/*/default/d/*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(WeightsError, match=r"step 4 in .* can't be read, and there is none before it: "):
        train_lora(pipe, pictures, copied, CONFIG)
    assert steps(copied) == [4]


def test_a_picture_of_the_same_size_is_another_picture(pipe, pictures, copied, tmp_path):
    """Also where the checkpoint is of a version that looked at sizes, as long as it is the same."""
    other = tmp_path / "pictures"
    shutil.copytree(pictures, other)
    settings = copied.with_suffix(".train") / "checkpoints" / "settings.json"
    now = json.loads(settings.read_text())
    data = open_data(pipe, other, tmp_path / "latents", CONFIG, lambda progress: None)
    settings.write_text(json.dumps({**now, "pictures": data.digest(by_size=True)}))
    train_lora(pipe, other, copied, CONFIG)
    assert json.loads(settings.read_text()) == now
    picture = next(other.glob("*.png"))
    picture.write_bytes(picture.read_bytes()[:-12] + picture.read_bytes()[-12:-4] + bytes(4))  # the end's checksum
    with pytest.raises(ConfigError, match="pictures was"):
        train_lora(pipe, other, copied, CONFIG)


def test_what_would_fail_in_the_end_fails_in_the_beginning(pipe, pictures, tmp_path):
    (tmp_path / "file").write_text("")
    told: list[TrainProgress] = []

    def train(out: Path, **more: Any) -> None:
        train_lora(pipe, pictures, out, CONFIG, on_progress=told.append, **more)

    with pytest.raises(WeightsError, match=r"file/work can't be written: .*; choose another folder"):
        train(tmp_path / NAME, work=tmp_path / "file" / "work")
    with pytest.raises(WeightsError, match="file can't be written"):
        train(tmp_path / "file" / NAME)
    with pytest.raises(ValueError, match=r"should be a file that ends in \.safetensors"):
        train(tmp_path / "zib.bin")
    with pytest.raises(ValueError, match="dialect 'onnx' is not known; choose one of kohya, peft"):
        train(tmp_path / NAME, dialect="onnx")
    with pytest.raises(ConfigError, match=r"targets .* are found in no layer of them; add 'attention'"):
        lora = LoraConfig(targets=("cross_attention",), text_encoders=True)
        train_lora(pipe, pictures, tmp_path / NAME, TrainConfig(lora=lora), on_progress=told.append)
    assert told == []


def test_loras_that_are_loaded_are_not_trained_on(pipe, pictures, whole, tmp_path):
    pipe.load_lora(whole)
    try:
        with pytest.raises(ValueError, match=r"unload_lora\(\) first"):
            train_lora(pipe, pictures, tmp_path / NAME, CONFIG)
    finally:
        pipe.unload_lora()


# ---- the file --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def as_peft(pipe: AutoLoRAPipeline, pictures: Path, whole: Path) -> Path:
    """The finished run's LoRA, written once more."""
    out = whole.with_name("peft.safetensors")
    train_lora(pipe, pictures, out, CONFIG, work=whole.with_suffix(".train"), dialect="peft")
    return out


def test_both_dialects_hold_the_same_lora(pipe, whole, as_peft):
    """Every layer that was to learn did, with the scale that it was trained at."""
    one, other = (read_lora(path, pipe.lora_targets()) for path in (whole, as_peft))
    assert one.layers.keys() == other.layers.keys()
    for layer, change in one.layers.items():
        for half in ("down", "up"):
            np.testing.assert_array_equal(getattr(change.matrix, half), getattr(other.layers[layer].matrix, half))
        assert change.matrix.scale == other.layers[layer].matrix.scale == 1
    idle = [layer for layer, change in one.layers.items() if not change.matrix.up.any()]
    last = f"layers_{pipe.text.encoders['text_encoder'].config.num_hidden_layers - 1}/"
    assert {layer.component for layer in idle} == {"text_encoder"} and all(last in layer.path for layer in idle)


def test_the_header_tells_of_the_training(whole):
    with safe_open(whole, "np") as file:
        header = file.metadata()
    assert header["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert header["modelspec.prediction_type"] == "epsilon"
    assert header["modelspec.title"] == "zib"
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("2", "3.0")
    assert (header["ss_num_train_images"], header["ss_steps"], header["ss_total_batch_size"]) == ("4", "6", "2")
    assert header["ss_base_model_version"] == "sdxl_base_v1-0"
    tags = json.loads(header["ss_tag_frequency"])["training"]
    assert sum(tags.values()) == 4 and header["modelspec.trigger_phrase"] in tags


@pytest.fixture(scope="module")
def ours(pipe: AutoLoRAPipeline, whole: Path) -> dict[str, np.ndarray]:
    """What the pipeline says with the LoRA: prompt embeddings, and the denoiser's prediction."""
    pipe.load_lora(whole)
    told = pipe.conditioning("a zib, the dog", "")["lora"]
    positive = {name: jnp.asarray(value[:, 1]) for name, value in told.items()}
    sample, t = jnp.asarray(normal(1, 1, 8, 8, 4)), jnp.float32([321])
    predict = jax.jit(pipe.denoiser.apply)
    prediction, base = (
        predict({"params": pipe.params["unet"], "lora": at_scale(pipe._delta["unet"], scale)}, sample, t, **positive)
        for scale in np.float32([[1], [0]])
    )
    pipe.unload_lora()
    assert error(prediction, base) > 1e-2  # the LoRA visibly changes it, or agreement would prove nothing
    return {name: np.array(value) for name, value in {**positive, "prediction": prediction}.items()}


@pytest.mark.parametrize("dialect", ["kohya", "peft"])
def test_diffusers_loads_the_file_and_predicts_the_same(small_folder, whole, as_peft, ours, dialect: str):
    theirs = StableDiffusionXLPipeline.from_pretrained(small_folder)
    file = {"kohya": whole, "peft": as_peft}[dialect]
    theirs.load_lora_weights(file.parent, weight_name=file.name)
    with torch.no_grad():
        hidden, _, pooled, _ = theirs.encode_prompt("a zib, the dog", do_classifier_free_guidance=False)
        told = {"text_embeds": pooled, "time_ids": torch.from_numpy(ours["time_ids"])}
        sample = channels_first(normal(1, 1, 8, 8, 4))
        prediction = theirs.unet(sample, torch.tensor([321]), hidden, added_cond_kwargs=told).sample
    assert error(ours["encoder_hidden_states"], hidden) < PREDICTION
    assert error(ours["text_embeds"], pooled) < PREDICTION
    assert error(ours["prediction"], prediction) < PREDICTION
