"""Figure 8 of arXiv 2410.03941: pixel art, CFG beside AutoLoRA, SDXL and Stable Diffusion 3, from the same noise.

autolora reproduce figure8 --lora pixel-art-xl-v1.1.safetensors=FILE
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import style_figure

SHOWN = slice(4, 8)
CHOSEN = "Which pictures it shows is not stated: seed {seeds} of the next four prompts of Table 2."


def get_config() -> Experiment:
    return style_figure("figure8", SHOWN, CHOSEN)


def get_builtin() -> Experiment:
    return style_figure("figure8", SHOWN, small=True)
