"""Figure 2 of arXiv 2410.03941: diversity, character presence and their product over the scale of CFG.

autolora reproduce figure2 --lora princess_xl_v2.safetensors --judge MODEL

8,192 pictures at 1024² in two programs. Its numbers were published as curves alone.
"""

from autolora_jax.batch import Job
from autolora_jax.experiments.experiment import Ask, Experiment, Sheet
from autolora_jax.experiments.parts import (
    ANNA,
    AUTOLORA_CFG,
    LORA_CFG,
    PROMPT,
    SILENT,
    SMALL,
    WEAK_SCALE,
    WEAKER,
    ZIB,
    builtin_job,
    cfg_scales,
    sdxl_job,
)

SEEDS, FEW_SEEDS = 512, 24
SCALES = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
FEW_SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)
CHOSEN = "Which scales of CFG, and how many pictures of each, is not stated; the LoRA's scale is {scale}."


def get_config() -> Experiment:
    return _experiment(sdxl_job([PROMPT], SEEDS), SCALES, ANNA, (CHOSEN, *SILENT))


def get_builtin() -> Experiment:
    job = builtin_job(["a zib"], FEW_SEEDS, scale=WEAK_SCALE)
    return _experiment(job, FEW_SCALES, ZIB, (WEAKER, *SMALL), world=True)


def _experiment(
    job: Job, scales: tuple[float, ...], ask: Ask, assumptions: tuple[str, ...], world: bool = False
) -> Experiment:
    return Experiment(
        name="figure2",
        title="LoRA and AutoLoRA over the scale of CFG (Figure 2)",
        job=job,
        cells=cfg_scales(scales),
        axis="CFG scale",
        asks=(ask,),
        pairs={AUTOLORA_CFG: LORA_CFG},
        plots=(("CFG scale", "Div"), ("CFG scale", "CPS"), ("CFG scale", "Div-CPS")),
        frontier=("Div", "CPS"),
        sheets=(Sheet("axis"),),
        assumptions=assumptions,
        world=world,
    )
