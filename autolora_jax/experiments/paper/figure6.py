"""Figure 6 of arXiv 2410.03941: Figure 1 from other noise.

autolora reproduce figure6 --lora princess_xl_v2.safetensors
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import PROMPT, builtin_job, scale_figure, sdxl_job

SEEDS = 3


def get_config() -> Experiment:
    said = "What tells it from Figure 1 is not stated: more seeds: {seeds}."
    return scale_figure("figure6", sdxl_job([PROMPT], SEEDS), said)


def get_builtin() -> Experiment:
    return scale_figure("figure6", builtin_job(["a zib"], SEEDS), small=True)
