"""Figure 7 of arXiv 2410.03941: Figure 1 with prompts that say more than the character's name.

autolora reproduce figure7 --lora princess_xl_v2.safetensors
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import CONTEXTS, PROMPT, builtin_job, scale_figure, sdxl_job

PROMPTS = (f"{PROMPT} in a forest at night", f"{PROMPT} on a beach on a sunny day", f"{PROMPT} in a city in the rain")


def get_config() -> Experiment:
    said = "What tells it from Figure 1 is not stated: prompts that put the character elsewhere."
    return scale_figure("figure7", sdxl_job(PROMPTS, 1), said)


def get_builtin() -> Experiment:
    return scale_figure("figure7", builtin_job(CONTEXTS[: len(PROMPTS)], 1), small=True)
