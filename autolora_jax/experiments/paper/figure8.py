"""Figure 8 of arXiv 2410.03941: pixel art, CFG beside AutoLoRA, SDXL and Stable Diffusion 3, from the same noise.

autolora reproduce figure8 --lora pixel-art-xl-v1.1.safetensors=FILE
"""

from autolora_jax.experiments.experiment import Experiment
from autolora_jax.experiments.parts import (
    PIXEL_ART_XL,
    builtin_job,
    paper_prompts,
    sdxl_job,
    style_captions,
    style_figure,
)

SHOWN = slice(4, 8)


def get_config() -> Experiment:
    said = "Which pictures it shows is not stated: seed 0 of the next four prompts of Table 2."
    return style_figure("figure8", sdxl_job(paper_prompts()[SHOWN], 1, PIXEL_ART_XL), said)


def get_builtin() -> Experiment:
    return style_figure("figure8", builtin_job(style_captions(30)[SHOWN], 1, "style"), small=True)
