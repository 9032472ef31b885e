"""Figure 4 of arXiv 2410.03941: AutoLoRA's γ of 1.5, 1.75 and 2 beside CFG, from the same noise.

autolora reproduce figure4 --lora princess_xl_v2.safetensors
"""

from autolora_jax.batch import Job
from autolora_jax.experiments.experiment import Cell, Experiment, Sheet
from autolora_jax.experiments.parts import (
    AUTOLORA_CFG,
    LORA_CFG,
    PROMPT,
    SILENT,
    SMALL,
    WEAK_SCALE,
    WEAKER,
    builtin_job,
    curve,
    sdxl_job,
)
from autolora_jax.settings import CFG, AutoLoRA

GAMMAS = (1.5, 1.75, 2.0)
SEEDS = 4


def get_config() -> Experiment:
    said = "Its prompt and seeds are not stated: Table 1's prompt, {seeds}; the LoRA's scale is {scale}."
    return _experiment(sdxl_job([PROMPT], SEEDS), (said, *SILENT))


def get_builtin() -> Experiment:
    return _experiment(builtin_job(["a zib"], SEEDS, scale=WEAK_SCALE), (WEAKER, *SMALL), world=True)


def _experiment(job: Job, assumptions: tuple[str, ...], world: bool = False) -> Experiment:
    plain = Cell(LORA_CFG, None, {"guidance": CFG()})
    return Experiment(
        name="figure4",
        title="Pictures over AutoLoRA's γ, beside CFG (Figure 4)",
        job=job,
        cells=(plain, *curve(AUTOLORA_CFG, {"guidance": AutoLoRA()}, "guidance.gamma", GAMMAS)),
        axis="γ",
        sheets=(Sheet("cell", seeds=SEEDS),),
        assumptions=assumptions,
        world=world,
    )
