"""How often the base model draws what the caption says, by the classifier.

    python -m recipes.builtin.agreement --model out/model --out agreement.json

Captions are full ones of scenes that training could have seen and of scenes with a held-out pair. Two more rows say
what the classifier itself gets wrong: the same scenes as the world draws them, and those through the autoencoder.
"""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from autolora_jax import AutoLoRAPipeline
from autolora_jax.demo.classifier import Agreement
from autolora_jax.evaluation import Interval, bootstrap_interval, mean_statistic
from autolora_jax.grid import comparison_grid
from autolora_jax.settings import CFG
from recipes.builtin import stages
from recipes.builtin.drawing import draw_pairs
from recipes.builtin.eye import SIZE, Classifier, agreement
from recipes.builtin.look import autoencoded
from recipes.builtin.words import LABELS, Scene, full_caption, sample_scene
from recipes.builtin.world import draw

SEED = 20
SHOWN = 10  # pictures of each kind on the sheet


def scenes_of(count: int, held_out: bool) -> list[Scene]:
    """Scenes to ask for."""
    rng = np.random.default_rng((SEED, held_out))
    return [sample_scene(rng, held_out) for _ in range(count)]


def generated(pipe: AutoLoRAPipeline, captions: list[str], w: float, steps: int, batch: int) -> np.ndarray:
    """The model's pictures of captions, uint8 [n 128 128 3]."""
    with Progress() as progress:
        task = progress.add_task("drawing", total=len(captions))
        return draw_pairs(
            pipe, captions, range(len(captions)), CFG(w), steps, batch, lambda n: progress.advance(task, n)
        )


def drawn(scenes: list[Scene]) -> np.ndarray:
    """The world's pictures of scenes, uint8 [n 128 128 3]."""
    pictures = [draw(scene, np.random.default_rng((SEED, 2, i)), SIZE) for i, scene in enumerate(scenes)]
    return np.stack([np.asarray(picture) for picture in pictures])


def figures(judged: Agreement) -> dict[str, Interval]:
    """Agreement by attribute, its mean, and the share of pictures where all is right, with 95 % intervals."""
    rows = {**judged.right, "mean": judged.mean, "all right": judged.all_right}
    groups = np.zeros(len(judged.mean), np.int64)
    return {name: bootstrap_interval(mean_statistic(values), groups) for name, values in rows.items()}


def main(
    out: Annotated[Path | None, typer.Option(help="A JSON file for the figures.")] = None,
    sheet: Annotated[
        Path | None, typer.Option(help="A PNG with the first pictures: seen left, held out right.")
    ] = None,
    model: Annotated[str, typer.Option(help="A folder that `python -m recipes.builtin finish` made.")] = "model",
    count: Annotated[int, typer.Option(help="Captions of each kind.", min=1)] = 500,
    w: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 5.0,
    steps: int = 30,
    batch: int = 64,
) -> None:
    """Caption agreement of the base model on seen and on held-out combinations."""
    pipe = AutoLoRAPipeline.from_pretrained(model, dtype="float32")
    judge = stages.load("classifier")
    if judge is None:
        raise typer.BadParameter(f"{stages.STAGES} has no classifier yet; python -m recipes.builtin train")
    classifier = Classifier(judge.weights)
    found: dict[str, dict[str, Interval]] = {}
    shown: list[Image.Image] = []
    for kind, held_out in (("seen", False), ("held out", True)):
        scenes = scenes_of(count, held_out)
        captions = [full_caption(scene) for scene in scenes]
        exact = drawn(scenes)
        pictures = generated(pipe, captions, w, steps, batch)
        columns = {"generated": pictures, "drawn": exact, "drawn, autoencoded": autoencoded(pipe.params["vae"], exact)}
        for what, pixels in columns.items():
            found[f"{kind}, {what}"] = figures(agreement(classifier(pixels), captions))
        first = {
            what: [Image.fromarray(picture) for picture in columns[what][:SHOWN]] for what in ("generated", "drawn")
        }
        shown.append(comparison_grid([*first.items()], captions[:SHOWN]))
    Console().print(_table(found))
    if sheet:
        both = Image.new("RGB", (sum(grid.width for grid in shown), max(grid.height for grid in shown)), "white")
        for grid, left in zip(shown, (0, shown[0].width), strict=True):
            both.paste(grid, (left, 0))
        both.save(sheet)
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        settings = {"model": model, "captions of each kind": count, "w": w, "steps": steps}
        out.write_text(
            json.dumps({"settings": settings, "[share, low, high]": found}, indent=1) + "\n", encoding="utf-8"
        )


def _table(found: dict[str, dict[str, Interval]]) -> Table:
    sure = ("mean", "all right")
    table = Table("%", *LABELS, *(f"{name} ± 95 %" for name in sure), title="What captions say and pictures show")
    for what, shares in found.items():
        percents = (f"{100 * shares[name].value:.1f}" for name in LABELS)
        halves = (
            f"{100 * shares[name].value:.1f} ± {50 * (shares[name].high - shares[name].low):.1f}" for name in sure
        )
        table.add_row(what, *percents, *halves)
    return table


if __name__ == "__main__":
    typer.run(main)
