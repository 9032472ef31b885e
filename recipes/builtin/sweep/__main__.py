"""`python -m recipes.builtin.sweep`: draws, judges and reports; goes on where it was stopped."""

import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from autolora_jax import AutoLoRAPipeline, demo
from autolora_jax.demo import classifier as judging
from autolora_jax.demo.classifier import Classifier
from recipes.builtin.sweep import cells, sheet
from recipes.builtin.sweep.figures import differences, intervals
from recipes.builtin.sweep.judge import Store, judge_cells
from recipes.builtin.sweep.tables import Results, write_tables

app = typer.Typer(add_completion=False)


@app.command()
def sweep(
    out: Annotated[Path, typer.Option(help="Folder of the tables and plots.")] = Path("docs/sweep"),
    work: Annotated[Path, typer.Option(help="Folder of the judgements, kept for the next run.")] = Path("sweep.work"),
    model: str = "builtin",
    lora: str = "builtin:character",
    seeds: Annotated[int, typer.Option(help="Pictures a cell.", min=2)] = 256,
    steps: int = 16,
    batch: Annotated[int, typer.Option(help="Pictures drawn together.", min=1)] = 64,
    block: Annotated[list[str], typer.Option(help="Which prompts.")] = list(cells.BLOCKS),  # noqa: B006
    scale: Annotated[list[float], typer.Option(help="LoRA scales of the table.")] = list(cells.SCALES),  # noqa: B006
    gamma: Annotated[list[float], typer.Option(help="γ of the second plot.")] = list(cells.GAMMAS),  # noqa: B006
    cfg: Annotated[list[float], typer.Option(help="CFG scales; 1 is without.")] = list(cells.CFG_SCALES),  # noqa: B006
    pictures: Annotated[bool, typer.Option(help="Draw sheet.jpg as well: a few cells to look at.")] = False,
) -> None:
    """LoRA scale × {LoRA, AutoLoRA} × {without, with CFG}, and γ, on the built-in model."""
    if unknown := set(block) - set(cells.BLOCKS):
        raise typer.BadParameter(f"no block is called {', '.join(unknown)}; there are {', '.join(cells.BLOCKS)}")
    pipe = AutoLoRAPipeline.from_pretrained(model, dtype="float32")
    print(pipe.load_lora(lora))
    settings = {"model": model, "LoRA": lora, "pictures a cell": seeds, "steps": steps}
    files = [demo.builtin(name) or Path(name) for name in (model, lora)]
    store = Store(work, [*files, judging.WEIGHTS], settings)
    shots = {name: cells.shots(name, seeds) for name in block}
    wanted = [c for name in block for c in (*cells.table_cells(name, scale, cfg), *cells.gamma_cells(name, gamma, cfg))]
    wanted = [*dict.fromkeys(wanted)]
    judge_cells(pipe, Classifier.load(), wanted, shots, store, steps, batch)
    plain = {cell: cells.Cell(cell.block, cell.scale, 1.0, cell.w) for cell in wanted if cell.gamma != 1}
    results = Results(
        {cell: intervals(store[cell], shots[cell.block]) for cell in wanted},
        {cell: differences(store[plain[cell]], store[cell], shots[cell.block]) for cell in plain},
    )
    command = shlex.join(["python", "-m", "recipes.builtin.sweep", *sys.argv[1:]])
    write_tables(out, results, {**settings, "command": f"`{command}`"})
    if pictures:
        sheet.sheet(pipe, steps, batch).convert("RGB").save(out / "sheet.jpg", quality=85)
    if find_spec("matplotlib"):
        from recipes.builtin.sweep.plots import write_plots

        write_plots(out, results)
    else:
        print("no plots: they need matplotlib, pip install '.[plots]'")


if __name__ == "__main__":
    app()
