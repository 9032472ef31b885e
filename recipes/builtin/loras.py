"""The two LoRAs of the built-in model, trained by what `autolora train` calls."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax import AutoLoRAPipeline
from autolora_jax.demo.world import character_set, style_set, write_folder
from autolora_jax.training import LoraConfig, LossConfig, OptimizerConfig, TrainConfig, TrainProgress, train_lora
from recipes.builtin.networks import SIZE


class Recipe(NamedTuple):
    """What a LoRA is trained on, and how."""

    pictures: Callable[..., list[Any]]
    trigger: str
    config: TrainConfig


# Twelve pictures of a creature, always in the desert at sunset; four dozen of everything as pixel art.
RECIPES = {
    "character": Recipe(
        character_set,
        "a zib",
        TrainConfig(
            lora=LoraConfig(rank=8, targets=("attention",)),
            loss=LossConfig(caption_dropout=0.1, min_snr_gamma=None),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
            steps=400,
            batch_size=4,
            sample_every=0,
        ),
    ),
    "style": Recipe(
        style_set,
        "pixel art",
        TrainConfig(
            lora=LoraConfig(rank=8, targets=("attention", "feed_forward")),
            loss=LossConfig(caption_dropout=0.1, min_snr_gamma=None),
            optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=20),
            steps=400,
            batch_size=4,
            sample_every=0,
        ),
    ),
}


def train(name: str, work: Path, out: Path, config: TrainConfig | None = None) -> None:
    """Draws the pictures of a recipe and trains its LoRA of the built-in model, written to `out`."""
    recipe = RECIPES[name]
    folder = work / name / "pictures"
    write_folder(recipe.pictures(size=SIZE), folder)
    pipe = AutoLoRAPipeline.from_pretrained("builtin", dtype="float32")

    def show(progress: TrainProgress) -> None:
        if progress.stage == "train" and progress.done % 50 == 0:
            print(f"{name} {progress.done}/{progress.total} loss {progress.metrics['loss']:.4f}", flush=True)

    header = {"modelspec.trigger_phrase": recipe.trigger, "modelspec.license": "Apache-2.0"}
    train_lora(
        pipe,
        folder,
        out,
        config or recipe.config,
        work=work / name / "run",
        save_dtype="float16",
        metadata=header,
        on_progress=show,
    )
