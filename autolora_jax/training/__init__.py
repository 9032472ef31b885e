"""LoRA fine-tuning of a pipeline's base model, and the core that trains whole networks as well."""

from autolora_jax.training.config import DataConfig, LoraConfig, LossConfig, TrainConfig
from autolora_jax.training.lora import train_lora
from autolora_jax.training.optimizer import OptimizerConfig
from autolora_jax.training.progress import TrainProgress

__all__ = [
    "DataConfig",
    "LoraConfig",
    "LossConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrainProgress",
    "train_lora",
]
