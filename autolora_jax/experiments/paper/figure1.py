"""Figure 1 of arXiv 2410.03941: LoRA scales for LoRA and AutoLoRA, without and with CFG, all from one noise.

autolora reproduce figure1 --lora princess_xl_v2.safetensors
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import PROMPT, builtin_job, scale_figure, sdxl_job


def get_config() -> Experiment:
    return scale_figure("figure1", sdxl_job([PROMPT], 1), "Its seed is not stated: {seeds}.")


def get_builtin() -> Experiment:
    return scale_figure("figure1", builtin_job(["a zib"], 1), small=True)
