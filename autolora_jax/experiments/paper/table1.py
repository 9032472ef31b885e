"""Table 1 of arXiv 2410.03941: LoRA scales 0.2 to 1.3, LoRA and AutoLoRA, without and with CFG, one character.

autolora reproduce table1 --lora princess_xl_v2.safetensors --judge MODEL

24,576 pictures at 1024², 1,658,880 evaluations of SDXL in four programs. The numbers in table1.csv are the paper's.
"""

import csv
from pathlib import Path

from autolora_jax.batch import Job
from autolora_jax.experiments.experiment import Ask, Cell, Experiment, Sheet
from autolora_jax.experiments.parts import (
    ANNA,
    METHODS,
    PAIRS,
    PROMPT,
    SCALES,
    SILENT,
    SMALL,
    ZIB,
    builtin_job,
    scale_grid,
    sdxl_job,
)

SEEDS, FEW_SEEDS = 512, 32


def get_config() -> Experiment:
    return _experiment(sdxl_job([PROMPT], SEEDS), scale_grid(SCALES, _published()), ANNA, SILENT)


def get_builtin() -> Experiment:
    fewer = f"The character is a zib, in {{count}} pictures a cell; the paper's is Anna, in {SEEDS}."
    return _experiment(builtin_job(["a zib"], FEW_SEEDS), scale_grid(SCALES), ZIB, (fewer, *SMALL), world=True)


def _experiment(
    job: Job, cells: tuple[Cell, ...], ask: Ask, assumptions: tuple[str, ...], world: bool = False
) -> Experiment:
    return Experiment(
        name="table1",
        title="LoRA and AutoLoRA over LoRA scales, without and with CFG (Table 1)",
        job=job,
        cells=cells,
        axis="LoRA scale",
        asks=(ask,),
        pairs=PAIRS,
        plots=(("LoRA scale", "Div"), ("LoRA scale", "CPS"), ("LoRA scale", "Div-CPS")),
        frontier=("Div", "CPS"),
        sheets=(Sheet("axis"),),
        assumptions=assumptions,
        world=world,
    )


def _published() -> dict[tuple[str, float], dict[str, float]]:
    """(method, LoRA scale) -> the paper's figures."""
    columns = {"Div": "diversity", "CPS": "cps", "Div-CPS": "div_cps"}
    with Path(__file__).with_name("table1.csv").open(encoding="utf-8", newline="") as file:
        return {
            (method, float(row["lora_scale"])): {
                figure: float(row[f"{method.lower().replace(' + ', '_')}_{column}"])
                for figure, column in columns.items()
            }
            for row in csv.DictReader(file)
            for method in METHODS
        }
