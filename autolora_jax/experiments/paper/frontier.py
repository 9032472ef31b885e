"""Beyond the paper: what each way of guidance offers of diversity and of presence, over its own parameter.

autolora reproduce frontier --lora princess_xl_v2.safetensors --judge MODEL

Diversity is only comparable at equal presence: without CFG the plain LoRA is more varied, but misses the character. So
every method is a curve, of as many settings as any other. 6,400 pictures at 1024².
"""

from autolora_jax.experiments.curves import frontier
from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import ANNA, PROMPT, WEAK_SCALE, WEAKER, ZIB, builtin_job, sdxl_job

TITLE = "Diversity against presence, each method over its own parameter"
SEEDS, FEW_SEEDS = 128, 16


def get_config() -> Experiment:
    job = sdxl_job([PROMPT], SEEDS)
    return frontier("frontier", TITLE, job, (0.4, 0.6, 0.8, 1.0, 1.2), ANNA, ())


def get_builtin() -> Experiment:
    job = builtin_job(["a zib"], FEW_SEEDS, scale=WEAK_SCALE)
    return frontier("frontier", TITLE, job, (0.3, 0.4, 0.5, 0.6, 0.8), ZIB, (WEAKER,))
