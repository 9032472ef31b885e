"""The networks that checkpoints are made of: from a config to the shapes of its parameters."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import flax.linen as nn

from autolora_jax.config import (
    CLIPConfig,
    CLIPTextConfig,
    Dinov2Config,
    JsonConfig,
    MMDiTConfig,
    T5Config,
    UNetConfig,
    VAEConfig,
)
from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.clip_vision import CLIPModel
from autolora_jax.models.dinov2 import Dinov2Model
from autolora_jax.models.mmdit import SD3Transformer2DModel
from autolora_jax.models.shapes import param_shapes
from autolora_jax.models.t5 import T5EncoderModel
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.models.vae import AutoencoderKL

Networks = Mapping[str, Any]  # component ("unet", "text_encoder_2") -> its config
_MODULES: Mapping[type[JsonConfig], Any] = {
    UNetConfig: UNet2DConditionModel,
    MMDiTConfig: SD3Transformer2DModel,
    VAEConfig: AutoencoderKL,
    CLIPTextConfig: CLIPTextModel,
    T5Config: T5EncoderModel,
    CLIPConfig: CLIPModel,
    Dinov2Config: Dinov2Model,
}


def network_of(config: JsonConfig, **settings: Any) -> nn.Module:
    """The network that a config describes. settings: of models.layers.Block (dtype, param_dtype, attention)."""
    module: nn.Module = _MODULES[type(config)](config=config, **settings)
    return module


@lru_cache(maxsize=16)
def shapes_of(config: JsonConfig) -> Mapping[str, Any]:
    """The network's parameter tree with shapes as leaves. Nothing is allocated."""
    return param_shapes(network_of(config))
