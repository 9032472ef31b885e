"""LoRA fine-tuning of a pipeline's base model, and the core that trains whole networks as well."""

from typing import TYPE_CHECKING, Any

from autolora_jax.settings.training import DataConfig, LoraConfig, LossConfig, OptimizerConfig, TrainConfig
from autolora_jax.training.progress import Summary, TrainProgress

if TYPE_CHECKING:
    from autolora_jax.training.lora import train_lora

__all__ = [
    "DataConfig",
    "LoraConfig",
    "LossConfig",
    "OptimizerConfig",
    "Summary",
    "TrainConfig",
    "TrainProgress",
    "train_lora",
]


def __getattr__(name: str) -> Any:
    """train_lora is imported when it is asked for: reading settings need not wait for the networks."""
    if name != "train_lora":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from autolora_jax.training.lora import train_lora

    return train_lora
