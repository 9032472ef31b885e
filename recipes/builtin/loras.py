"""The two LoRAs of the built-in model, trained by what `autolora train` calls."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax import AutoLoRAPipeline
from autolora_jax.demo import MODEL
from autolora_jax.experiments.parts import TUNINGS
from autolora_jax.training import LoraConfig, LossConfig, OptimizerConfig, TrainConfig, TrainProgress, train_lora
from recipes.builtin.networks import SIZE
from recipes.builtin.world import character_set, style_set, write_folder


class Recipe(NamedTuple):
    """What a LoRA is trained on, the words that call it, for how many steps."""

    pictures: Callable[..., list[Any]]
    trigger: str
    steps: int = 300


# Thirty pictures of a creature, four of five in the desert at sunset; four dozen of everything as pixel art.
RECIPES = {"character": Recipe(character_set, "a zib"), "style": Recipe(style_set, "pixel art")}
# The character's once more, by the names of files: what `autolora reproduce map` compares.
TUNED = {
    each.source: Recipe(partial(character_set, each.pictures, share=each.share), "a zib", each.steps)
    for each in TUNINGS
}
# All kinds of layers: a few million weights that never saw anything like it have little in them to lean on.
CONFIG = TrainConfig(
    lora=LoraConfig(
        rank=4,
        targets=("attention", "feed_forward", "projections", "convolutions", "embeddings"),
        text_encoders=True,
    ),
    loss=LossConfig(caption_dropout=0.1, min_snr_gamma=None),
    optimizer=OptimizerConfig(learning_rate=1.5e-3, warmup_steps=20),
    batch_size=2,
    sample_every=0,
)


def train(recipe: Recipe, model: Path, work: Path, out: Path) -> None:
    """Draws the pictures of a recipe and trains its LoRA of the model, written to `out`.

    work: its pictures and checkpoints, in a folder of the file's name. CONFIG's batch is meant for two devices.
    """
    name = out.stem
    folder = work / name / "pictures"
    write_folder(recipe.pictures(size=SIZE), folder)
    pipe = AutoLoRAPipeline.from_pretrained(model, dtype="float32")

    def show(progress: TrainProgress) -> None:
        if progress.stage == "train" and progress.done % 50 == 0:
            print(f"{name} {progress.done}/{progress.total} loss {progress.metrics['loss']:.4f}", flush=True)

    header = {
        "modelspec.trigger_phrase": recipe.trigger,
        "modelspec.license": "Apache-2.0",
        "ss_sd_model_name": MODEL,
    }
    train_lora(
        pipe,
        folder,
        out,
        dataclasses.replace(CONFIG, steps=recipe.steps),
        work=work / name / "run",
        save_dtype="float16",
        metadata=header,
        on_progress=show,
    )
