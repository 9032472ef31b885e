"""Parameter shapes of a network, without its parameters."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from autolora_jax.models.clip import CLIPTextModel
from autolora_jax.models.clip_vision import CLIPModel
from autolora_jax.models.dinov2 import Dinov2Model
from autolora_jax.models.mmdit import SD3Transformer2DModel
from autolora_jax.models.t5 import T5EncoderModel
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.models.vae import AutoencoderKL

Shapes = dict[str, Any]


def param_shapes(network: nn.Module) -> Shapes:
    """Nested dict of jax.ShapeDtypeStruct, in the network's param_dtype. Allocates nothing, takes seconds for SDXL.

    Raises TypeError for a module that is none of the networks.
    """
    if type(network) not in _EXAMPLES:
        raise TypeError(
            f"no example inputs for a {type(network).__name__}; known are {[t.__name__ for t in _EXAMPLES]}"
        )
    # The attention kernel has no parameters, and some can't be traced without their device.
    plain = network.clone(attention="xla")
    return jax.eval_shape(plain.init, jax.random.key(0), *_EXAMPLES[type(network)](network.config))["params"]


def _unet(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    side = 2 ** (len(config.block_out_channels) - 1)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    shapes = (1, side, side, config.in_channels), (1,), (1, 1, config.cross_attention_dim), (1, pooled), (1, 6)
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


def _mmdit(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    sample = (1, config.patch_size, config.patch_size, config.in_channels)
    shapes = sample, (1,), (1, 1, config.joint_attention_dim), (1, config.pooled_projection_dim)
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


def _vae(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, config.factor, config.factor, config.in_channels), jnp.float32),)


def _clip(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, config.max_position_embeddings), jnp.int32),)


def _clip_pair(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    vision = config.vision_config
    pixels = (1, vision.image_size, vision.image_size, vision.num_channels)
    return jax.ShapeDtypeStruct(pixels, jnp.float32), *_clip(config.text_config)


def _dinov2(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, config.patch_size, config.patch_size, config.num_channels), jnp.float32),)


def _t5(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)


# Network -> the smallest inputs it takes.
_EXAMPLES: Mapping[type[nn.Module], Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]]] = {
    UNet2DConditionModel: _unet,
    SD3Transformer2DModel: _mmdit,
    AutoencoderKL: _vae,
    CLIPTextModel: _clip,
    CLIPModel: _clip_pair,
    Dinov2Model: _dinov2,
    T5EncoderModel: _t5,
}
