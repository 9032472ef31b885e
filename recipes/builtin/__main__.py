"""`python -m recipes.builtin`: makes the built-in model, stage by stage; each goes on where it was stopped.

Two CPU cores are used best as two devices: XLA_FLAGS=--xla_force_host_platform_device_count=2.
"""

from pathlib import Path
from typing import Annotated

import typer

from autolora_jax import demo
from recipes.builtin import autoencoder, base, loras, package

PACKAGE = Path(demo.__file__).parent
app = typer.Typer(no_args_is_help=True, help=__doc__)
Work = Annotated[Path, typer.Option(help="Folder for pictures and checkpoints.")]


@app.command()
def make(
    work: Work = Path("builtin.work"),
    out: Annotated[Path, typer.Option(help="Folder of the model, the LoRAs beside it.")] = PACKAGE,
    autoencoder_steps: Annotated[list[int], typer.Option(help="Of each round.")] = [3300, 8000],  # noqa: B006
    base_steps: int = 9000,
    rows: Annotated[int, typer.Option(help="Pictures a step of the base model.")] = 32,
    pictures: int = 24000,
) -> None:
    """Autoencoder, base model, files, LoRAs."""
    vae = autoencoder.train(work, autoencoder_steps, 8, min(6000, pictures))
    data = base.corpus(work, vae, pictures)
    trained = base.train(work, data, base_steps, rows).average
    package.write_model(out / "model", {**trained, "vae": vae}, data.scaling_factor)
    for name in loras.RECIPES:
        loras.train(name, out / "model", work, out / "loras" / f"{name}.safetensors")


if __name__ == "__main__":
    app()
