"""Table 1 of arXiv 2410.03941: LoRA scales 0.2 to 1.3, LoRA and AutoLoRA, without and with CFG, one character.

autolora reproduce table1 --lora princess_xl_v2.safetensors --judge MODEL

24,576 pictures at 1024², 1,658,880 evaluations of SDXL in four programs. The numbers in table1.csv are the paper's.
"""

import functools

from autolora_jax.experiments.experiment import Experiment, Sheet
from autolora_jax.experiments.parts import (
    BARE,
    CHARACTER_LORA,
    PAIRS,
    PRESENT,
    SCALES,
    comparison,
    drawing,
    published,
    scale_grid,
)

SEEDS = (512, 32)


def table1(small: bool) -> Experiment:
    fewer = f"The character is a zib, in {{count}} pictures a cell; the paper's is Anna, in {SEEDS[0]}."
    cells = scale_grid(SCALES)
    return comparison(
        small,
        name="table1",
        title="LoRA and AutoLoRA over LoRA scales, without and with CFG (Table 1)",
        job=drawing(small, BARE[small], SEEDS[small], CHARACTER_LORA),
        cells=cells if small else published(cells, "table1.csv"),
        said=[fewer] if small else [],
        axis="LoRA scale",
        asks=(PRESENT[small],),
        pairs=PAIRS,
        plots=(("LoRA scale", "Div"), ("LoRA scale", "CPS"), ("LoRA scale", "Div-CPS")),
        frontier=("Div", "CPS"),
        sheets=(Sheet("axis"),),
    )


# What a file of an experiment has: of the published models, and of the built-in one.
get_config, get_builtin = functools.partial(table1, small=False), functools.partial(table1, small=True)
