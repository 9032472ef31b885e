"""Table 2 of arXiv 2410.03941: pixel art of 30 prompts, CFG and AutoLoRA, SDXL and Stable Diffusion 3.

autolora reproduce table2 --lora pixel-art-xl-v1.1.safetensors=FILE --judge MODEL

1,920 pictures at 1024², in four programs. `--only 'SDXL *'` leaves SD3 out. The numbers in table2.csv are the paper's,
and so are the prompts in pixel_art_prompts.txt.
"""

import csv
from pathlib import Path

from autolora_jax.batch import Job
from autolora_jax.experiments.experiment import Cell, Experiment, Sheet
from autolora_jax.experiments.parts import (
    NO_SMALL_SD3,
    PIXEL_ART,
    PIXEL_ART_XL,
    SILENT,
    SMALL,
    STYLE_PAIRS,
    builtin_job,
    paper_prompts,
    sdxl_job,
    side_by_side,
    style_captions,
)

SEEDS, FEW_SEEDS = 16, 4
PROMPTS = 30


def get_config() -> Experiment:
    known = _published()
    cells = tuple(cell._replace(published=known[cell.method]) for cell in side_by_side(sd3=True))
    return _experiment(sdxl_job(paper_prompts(), SEEDS, PIXEL_ART_XL), cells, SILENT)


def get_builtin() -> Experiment:
    fewer = f"Captions of {{prompts}} scenes of the world, {{count}} pictures of each; the paper has {SEEDS} of each."
    job = builtin_job(style_captions(PROMPTS), FEW_SEEDS, "style")
    soft = "Its style LoRA draws rounded blocks rather than pixels (the autoencoder is soft): SA is small in any case."
    return _experiment(job, side_by_side(), (fewer, soft, NO_SMALL_SD3, *SMALL), world=True)


def _experiment(job: Job, cells: tuple[Cell, ...], assumptions: tuple[str, ...], world: bool = False) -> Experiment:
    there = {cell.method for cell in cells}
    return Experiment(
        name="table2",
        title="Pixel art: CFG and AutoLoRA, SDXL and Stable Diffusion 3 (Table 2)",
        job=job,
        cells=cells,
        asks=(PIXEL_ART,),
        pairs={method: other for method, other in STYLE_PAIRS.items() if method in there},
        plots=(("Div", "PC"), ("Div", "SA")),
        sheets=(Sheet("cell", prompts=4),),
        assumptions=assumptions,
        world=world,
    )


def _published() -> dict[str, dict[str, float]]:
    """Method -> the paper's figures."""
    columns = {
        "Div": "diversity",
        "PC": "prompt_correspondence",
        "SA": "style_adherence",
        "Div-PC": "div_pc",
        "Div-SA": "div_sa",
    }
    with Path(__file__).with_name("table2.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["method"]: {name: float(row[column]) for name, column in columns.items()} for row in rows}
