"""What AutoLoRA does to the built-in model's character LoRA, over LoRA scales and over γ, in many pictures.

The LoRA was tuned on pictures of one place and sky. So it is asked how present the character is, how varied pictures
are, and how often they drag that place along; of prompts that ask for others, also how much of them is drawn.
"""

from collections.abc import Sequence

from autolora_jax.experiments.experiment import Ask, Cell, Experiment, Sheet
from autolora_jax.experiments.parts import (
    AUTOLORA,
    AUTOLORA_CFG,
    CONTEXTS,
    LORA,
    LORA_CFG,
    METHODS,
    PAIRS,
    SMALL,
    ZIB,
    builtin_job,
    curve,
    scale_grid,
)

BARE = ("a zib",)
PICTURES = 256  # a cell
STEPS = 16
FIGURES = ("Div", "CPS", "Div-CPS")


def over_scales(name: str, prompts: Sequence[str], scales: Sequence[float]) -> Experiment:
    """Table 1 in small: LoRA scales, LoRA and AutoLoRA, without and with CFG."""
    return _sweep(name, "LoRA scales", prompts, scale_grid(scales), "LoRA scale")


def over_gammas(name: str, prompts: Sequence[str], gammas: Sequence[float]) -> Experiment:
    """γ at the LoRA's own scale, without and with CFG; what it is at 1, the LoRA alone, stands beside."""
    plain = tuple(Cell(method, None, {"guidance": METHODS[method]}) for method in (LORA, LORA_CFG))
    curves = (
        curve(method, {"guidance": METHODS[method]}, "guidance.gamma", gammas) for method in (AUTOLORA, AUTOLORA_CFG)
    )
    return _sweep(name, "γ", prompts, (*plain, *(cell for cells in curves for cell in cells)), "γ")


def _sweep(name: str, what: str, prompts: Sequence[str], cells: tuple[Cell, ...], axis: str) -> Experiment:
    elsewhere = tuple(prompts) == CONTEXTS
    where = f": {len(prompts)} prompts that put the character elsewhere than its training did" if elsewhere else ""
    return Experiment(
        name=name,
        title=f"The built-in model over {what}{where}",
        job=builtin_job(prompts, PICTURES // len(prompts), steps=STEPS),
        cells=cells,
        axis=axis,
        asks=(ZIB, Ask("training context"), *([Ask("surroundings")] if elsewhere else [])),
        pairs=PAIRS,
        plots=(("Div", "CPS"), *((axis, figure) for figure in FIGURES)),
        frontier=("Div", "CPS"),
        sheets=(Sheet("axis", prompts=len(prompts)),),
        assumptions=SMALL,
        world=True,
    )
