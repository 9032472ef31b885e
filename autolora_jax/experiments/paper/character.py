"""One character over LoRA scales, scales of CFG and γ: Figures 1 to 4, 6 and 7 of arXiv 2410.03941.

autolora reproduce figure1 --lora princess_xl_v2.safetensors

Figure 2 is 8,192 pictures at 1024² in two programs, and wants --judge MODEL. It was published as curves alone.
"""

from collections.abc import Sequence

from autolora_jax.experiments.experiment import Cell, Experiment, Sheet
from autolora_jax.experiments.parts import (
    AUTOLORA_CFG,
    BARE,
    CHARACTER_LORA,
    CONTEXTS,
    LORA_CFG,
    PRESENT,
    WEAK_LORA,
    WEAKER,
    cfg_scales,
    comparison,
    curve,
    drawing,
    scale_grid,
)
from autolora_jax.settings.rules import CFG, AutoLoRA

SHOWN_SCALES = (0.4, 0.7, 1.0, 1.3)  # of the LoRA
SEEDS = (512, 24)
CFG_SCALES = ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0), (1.0, 2.0, 3.0, 5.0, 8.0))
SHOWN_CFG_SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
GAMMAS = (1.5, 1.75, 2.0)
ELSEWHERE = (
    ("Anna in a forest at night", "Anna on a beach on a sunny day", "Anna in a city in the rain"),
    CONTEXTS[:3],
)


def over_lora_scales(
    small: bool, name: str, said: str, seeds: int = 1, prompts: tuple[Sequence[str], Sequence[str]] = BARE
) -> Experiment:
    """Figures 1, 6 and 7: LoRA and AutoLoRA, without and with CFG, all from one noise. said: what is not stated."""
    return comparison(
        small,
        name=name,
        title=f"Pictures over LoRA scales, LoRA and AutoLoRA, without and with CFG (Figure {name[-1]})",
        job=drawing(small, prompts[small], seeds, CHARACTER_LORA),
        cells=scale_grid(SHOWN_SCALES),
        said=[] if small else [said],
        axis="LoRA scale",
        sheets=(Sheet("axis", prompts=len(prompts[small]), seeds=seeds),),
    )


def figure2(small: bool) -> Experiment:
    """Diversity, character presence and their product over the scale of CFG."""
    chosen = "Which scales of CFG, and how many pictures of each, is not stated; the LoRA's scale is {scale}."
    return comparison(
        small,
        name="figure2",
        title="LoRA and AutoLoRA over the scale of CFG (Figure 2)",
        job=drawing(small, BARE[small], SEEDS[small], WEAK_LORA),
        cells=cfg_scales(CFG_SCALES[small]),
        said=[WEAKER if small else chosen],
        axis="CFG scale",
        asks=(PRESENT[small],),
        pairs={AUTOLORA_CFG: LORA_CFG},
        plots=(("CFG scale", "Div"), ("CFG scale", "CPS"), ("CFG scale", "Div-CPS")),
        frontier=("Div", "CPS"),
        sheets=(Sheet("axis"),),
    )


def figure3(small: bool) -> Experiment:
    """Pictures over the scale of CFG, LoRA and AutoLoRA from the same noise."""
    chosen = "Which scales of CFG and seeds are shown is not stated; the LoRA's scale is {scale}."
    return comparison(
        small,
        name="figure3",
        title="Pictures over the scale of CFG (Figure 3)",
        job=drawing(small, BARE[small], 2, WEAK_LORA),
        cells=cfg_scales(SHOWN_CFG_SCALES),
        said=[WEAKER if small else chosen],
        axis="CFG scale",
        sheets=(Sheet("axis", seeds=2),),
    )


def figure4(small: bool) -> Experiment:
    """AutoLoRA's γ of 1.5, 1.75 and 2 beside CFG, from the same noise."""
    chosen = "Its prompt and seeds are not stated: Table 1's prompt, {seeds}; the LoRA's scale is {scale}."
    plain = Cell(LORA_CFG, None, {"guidance": CFG()})
    return comparison(
        small,
        name="figure4",
        title="Pictures over AutoLoRA's γ, beside CFG (Figure 4)",
        job=drawing(small, BARE[small], 4, WEAK_LORA),
        cells=(plain, *curve(AUTOLORA_CFG, {"guidance": AutoLoRA()}, "guidance.gamma", GAMMAS)),
        said=[WEAKER if small else chosen],
        axis="γ",
        sheets=(Sheet("cell", seeds=4),),
    )
