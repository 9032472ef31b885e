"""Figure 3 of arXiv 2410.03941: pictures over the scale of CFG, LoRA and AutoLoRA from the same noise.

autolora reproduce figure3 --lora princess_xl_v2.safetensors
"""

from autolora_jax.batch import Job
from autolora_jax.experiments.experiment import Experiment, Sheet
from autolora_jax.experiments.parts import PROMPT, SILENT, SMALL, WEAK_SCALE, WEAKER, builtin_job, cfg_scales, sdxl_job

SEEDS = 2
SCALES = (1.0, 2.0, 3.0, 5.0, 8.0)


def get_config() -> Experiment:
    said = "Which scales of CFG and seeds are shown is not stated; the LoRA's scale is {scale}."
    return _experiment(sdxl_job([PROMPT], SEEDS), (said, *SILENT))


def get_builtin() -> Experiment:
    return _experiment(builtin_job(["a zib"], SEEDS, scale=WEAK_SCALE), (WEAKER, *SMALL), world=True)


def _experiment(job: Job, assumptions: tuple[str, ...], world: bool = False) -> Experiment:
    return Experiment(
        name="figure3",
        title="Pictures over the scale of CFG (Figure 3)",
        job=job,
        cells=cfg_scales(SCALES),
        axis="CFG scale",
        sheets=(Sheet("axis", seeds=SEEDS),),
        assumptions=assumptions,
        world=world,
    )
