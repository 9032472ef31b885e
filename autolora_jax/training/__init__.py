"""LoRAs of a pipeline's base model, by fine-tuning and by distilling; the core that trains whole networks as well."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from autolora_jax.settings.distilling import DistillConfig
from autolora_jax.settings.training import DataConfig, LoraConfig, LossConfig, OptimizerConfig, TrainConfig
from autolora_jax.training.progress import Summary, TrainProgress

if TYPE_CHECKING:
    from autolora_jax.training.distill import distill_lora
    from autolora_jax.training.lora import train_lora

__all__ = [
    "DataConfig",
    "DistillConfig",
    "LoraConfig",
    "LossConfig",
    "OptimizerConfig",
    "Summary",
    "TrainConfig",
    "TrainProgress",
    "distill_lora",
    "train_lora",
]
# Imported when they are asked for: reading settings need not wait for the networks.
_HOMES = {"train_lora": "autolora_jax.training.lora", "distill_lora": "autolora_jax.training.distill"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
