"""Prompts -> what a denoiser is told: a stage per family of models, all with the same face (`stage.TextStage`)."""

from collections.abc import Mapping

from autolora_jax.text.sd3 import SD3Text
from autolora_jax.text.sdxl import SDXLText
from autolora_jax.text.stage import Prompts, Sizes, Text, TextSettings, TextStage
from autolora_jax.text.words import Word
from autolora_jax.weights import families

STAGES: Mapping[str, type[TextStage]] = {families.SDXL.name: SDXLText, families.SD3.name: SD3Text}

__all__ = ["STAGES", "Prompts", "SD3Text", "SDXLText", "Sizes", "Text", "TextSettings", "TextStage", "Word"]
