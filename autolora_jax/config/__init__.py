"""What a model is: frozen, hashable dataclasses read from the JSON files beside a checkpoint. Standard library only.

Field names and defaults are those of the published files: `UNetConfig()` *is* SDXL base 1.0, `MMDiTConfig()` is SD3
Medium. A JSON key that asks for something these networks do not do is an error, never a shrug: it would give wrong
pictures silently.
"""

from autolora_jax.config.base import ConfigError, JsonConfig, read_json
from autolora_jax.config.from_diffusers import MMDiTConfig, UNetConfig, VAEConfig
from autolora_jax.config.from_transformers import CLIPConfig, CLIPTextConfig, CLIPVisionConfig, Dinov2Config, T5Config
from autolora_jax.config.image_processor import ImageProcessorConfig
from autolora_jax.config.scheduler import SchedulerConfig

__all__ = [
    "CLIPConfig",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "ConfigError",
    "Dinov2Config",
    "ImageProcessorConfig",
    "JsonConfig",
    "MMDiTConfig",
    "SchedulerConfig",
    "T5Config",
    "UNetConfig",
    "VAEConfig",
    "read_json",
]
