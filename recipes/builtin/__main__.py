"""`python -m recipes.builtin train`: makes the built-in model in rounds, and goes on where the last one was stopped.

What it has come to lies in recipes/builtin/stages, averaged weights that are written every few minutes: committed
there, a later run goes on from a clean checkout. `finish` makes the model, its LoRAs and the classifier's files of it.
Two CPU cores are used best as two devices: XLA_FLAGS=--xla_force_host_platform_device_count=2 OMP_NUM_THREADS=1.
"""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from recipes.builtin import autoencoder, base, classifier, loras, package, stages
from recipes.builtin import look as looking
from recipes.builtin.eye import Classifier
from recipes.builtin.stages import STAGES, Stage

# Rounds in their order. The classifier is what the autoencoder's perceptual term looks with; the base model's first
# round learns what a picture is of while the encoder is nearly finished, and those after it the latents that stay.
PLAN = (
    *("autoencoder", "classifier", "autoencoder", "base", "autoencoder", "base", "autoencoder"),
    *("base", "classifier", "base", "autoencoder", "base", "base"),
)
TRAINERS: dict[str, Callable[[Path, Path, int, int], Stage]] = {
    "autoencoder": autoencoder.train,
    "classifier": classifier.train,
    "base": base.train,
}
PICTURES = {"autoencoder": 3000, "classifier": 8000, "base": 10000}  # of each round
app = typer.Typer(no_args_is_help=True, help=__doc__)
Work = Annotated[Path, typer.Option(help="Folder for pictures and checkpoints.")]
Folder = Annotated[Path, typer.Option("--stages", help="Folder of what training has come to.")]


@app.command()
def train(
    work: Work = Path("builtin.work"),
    folder: Folder = STAGES,
    rounds: Annotated[int, typer.Option(help="How much of the plan there should be in the end.")] = len(PLAN),
    pictures: Annotated[int | None, typer.Option(help="Of each round, in place of thousands.")] = None,
) -> None:
    """Trains what is left of the plan."""
    done: Counter[str] = Counter()
    for name in PLAN[:rounds]:
        done[name] += 1
        TRAINERS[name](work, folder, pictures or PICTURES[name], done[name])


@app.command()
def look(
    out: Annotated[Path, typer.Option(help="A PNG: drawn pictures, the autoencoder's of them, the base model's.")],
    folder: Folder = STAGES,
    count: int = 6,
    w: Annotated[float, typer.Option(help="Scale of classifier-free guidance.")] = 5.0,
    enlarged: Annotated[int, typer.Option(help="How many times.", min=1)] = 3,
) -> None:
    """Shows what training has come to, and measures the autoencoder on these pictures."""
    print(looking.look(folder, out, count, w, enlarged))


@app.command()
def finish(
    out: Annotated[Path, typer.Option(help="Folder for model/, loras/ and classifier.safetensors.")],
    work: Work = Path("builtin.work"),
    folder: Folder = STAGES,
) -> None:
    """Writes the model and the classifier, measures the one and trains the LoRAs of the other."""
    found = {name: stages.load(name, folder) for name in TRAINERS}
    if missing := [name for name, stage in found.items() if stage is None]:
        raise typer.BadParameter(f"{folder} has no {' and no '.join(missing)}; python -m recipes.builtin train")
    weights = {name: stage.weights for name, stage in found.items() if stage}
    params = {**weights["base"], "vae": weights["autoencoder"]["vae"]}
    package.write_model(out / "model", params, params.pop("scaling_factor").item())
    package.write_half(out / "classifier.safetensors", weights["classifier"])
    report = classifier.measured(Classifier(weights["classifier"]), work)
    (out / "classifier.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, lora in loras.RECIPES.items():
        loras.train(lora, out / "model", work, out / "loras" / f"{name}.safetensors")


@app.command()
def tuned(
    model: Annotated[Path, typer.Option(help="The finished model.")],
    out: Annotated[Path, typer.Option(help="Folder for the LoRAs of `autolora reproduce map`; those there are kept.")],
    work: Work = Path("builtin.work"),
) -> None:
    """Trains the character's LoRA anew for each of the map's tunings."""
    for name, lora in loras.TUNED.items():
        if not (out / name).exists():
            loras.train(lora, model, work, out / name)


if __name__ == "__main__":
    app()
