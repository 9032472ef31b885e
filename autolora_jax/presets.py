"""The older name of `settings`, which presets and jobs import from."""

from autolora_jax.settings import (
    GenerateConfig,
    Lora,
    Loras,
    ModelConfig,
    PictureConfig,
    Seeds,
    Size,
    Texts,
    TrainConfig,
    TrainingRun,
)

__all__ = [
    "GenerateConfig",
    "Lora",
    "Loras",
    "ModelConfig",
    "PictureConfig",
    "Seeds",
    "Size",
    "Texts",
    "TrainConfig",
    "TrainingRun",
]
