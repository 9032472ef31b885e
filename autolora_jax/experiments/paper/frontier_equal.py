"""Beyond the paper: the frontiers again, when every picture takes the same number of network evaluations.

autolora reproduce frontier_equal --lora princess_xl_v2.safetensors --judge MODEL

AutoLoRA with CFG takes four evaluations a step, CFG two: here the cheaper methods have more steps instead.
"""

from autolora_jax.experiments.curves import frontier
from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import ANNA, PROMPT, WEAK_SCALE, WEAKER, ZIB, builtin_job, sdxl_job

TITLE = "Diversity against presence at equal network evaluations"
SEEDS, FEW_SEEDS = 128, 16
EVALUATIONS, FEW_EVALUATIONS = 120, 36  # of a picture


def get_config() -> Experiment:
    job = sdxl_job([PROMPT], SEEDS)
    said = (f"{EVALUATIONS} evaluations a picture, what AutoLoRA with CFG takes in 30 steps.",)
    return frontier("frontier_equal", TITLE, job, (0.4, 0.6, 0.8, 1.0, 1.2), ANNA, said, EVALUATIONS)


def get_builtin() -> Experiment:
    job = builtin_job(["a zib"], FEW_SEEDS, scale=WEAK_SCALE)
    said = (f"{FEW_EVALUATIONS} evaluations a picture.", WEAKER)
    return frontier("frontier_equal", TITLE, job, (0.3, 0.4, 0.5, 0.6, 0.8), ZIB, said, FEW_EVALUATIONS)
