"""The networks that checkpoints are made of: from a config to the network, and to the shapes of its parameters."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from autolora_jax import config as configs
from autolora_jax.models.clip import CLIPModel, CLIPTextModel
from autolora_jax.models.dinov2 import Dinov2Model
from autolora_jax.models.mmdit import SD3Transformer2DModel
from autolora_jax.models.t5 import T5EncoderModel
from autolora_jax.models.unet import UNet2DConditionModel
from autolora_jax.models.vae import AutoencoderKL

Networks = Mapping[str, Any]  # component ("unet", "text_encoder_2") -> its config
Inputs = tuple[jax.ShapeDtypeStruct, ...]


class _Network(NamedTuple):
    module: Any
    example: Callable[[Any], Inputs]  # the smallest inputs that it takes, of its config


def _floats(*shapes: tuple[int, ...]) -> Inputs:
    return tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)


def _ids(length: int) -> Inputs:
    return (jax.ShapeDtypeStruct((1, length), jnp.int32),)


def _unet(c: configs.UNetConfig) -> Inputs:
    side = 2 ** (len(c.block_out_channels) - 1)
    pooled = c.projection_class_embeddings_input_dim - 6 * c.addition_time_embed_dim
    return _floats((1, side, side, c.in_channels), (1,), (1, 1, c.cross_attention_dim), (1, pooled), (1, 6))


def _mmdit(c: configs.MMDiTConfig) -> Inputs:
    sample = (1, c.patch_size, c.patch_size, c.in_channels)
    return _floats(sample, (1,), (1, 1, c.joint_attention_dim), (1, c.pooled_projection_dim))


def _clip(c: configs.CLIPConfig) -> Inputs:
    side = c.vision_config.image_size
    return (*_floats((1, side, side, c.vision_config.num_channels)), *_ids(c.text_config.max_position_embeddings))


_NETWORKS: Mapping[type[configs.JsonConfig], _Network] = {
    configs.UNetConfig: _Network(UNet2DConditionModel, _unet),
    configs.MMDiTConfig: _Network(SD3Transformer2DModel, _mmdit),
    configs.VAEConfig: _Network(AutoencoderKL, lambda c: _floats((1, c.factor, c.factor, c.in_channels))),
    configs.CLIPTextConfig: _Network(CLIPTextModel, lambda c: _ids(c.max_position_embeddings)),
    configs.T5Config: _Network(T5EncoderModel, lambda c: _ids(1)),
    configs.CLIPConfig: _Network(CLIPModel, _clip),
    configs.Dinov2Config: _Network(Dinov2Model, lambda c: _floats((1, c.patch_size, c.patch_size, c.num_channels))),
}


def network_of(config: configs.JsonConfig, **settings: Any) -> nn.Module:
    """The network that a config describes. settings: of models.layers.Block (dtype, param_dtype, attention)."""
    module: nn.Module = _NETWORKS[type(config)].module(config=config, **settings)
    return module


def param_shapes(network: nn.Module) -> dict[str, Any]:
    """Nested dict of jax.ShapeDtypeStruct, in the network's param_dtype. Allocates nothing, takes a second for SDXL."""
    # The attention kernel has no parameters, and some can't be traced without their device.
    plain, example = network.clone(attention="xla"), _NETWORKS[type(network.config)].example
    with nn.intercept_methods(_traced_once()):
        shapes: dict[str, Any] = jax.eval_shape(plain.init, jax.random.key(0), *example(network.config))["params"]
    return shapes


def _traced_once() -> Callable[..., Any]:
    """Lets equal modules on equal shapes be traced once: the others get its parameters and its result.

    For their shapes alone: all would begin with the same numbers.
    """
    seen: dict[Any, tuple[Any, Any]] = {}

    def call(traced: Callable[..., Any], inputs: Any, settings: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or module.parent is None:
            return traced(*inputs, **settings)
        leaves, tree = jax.tree.flatten((inputs, settings))
        kinds = tuple((x.shape, x.dtype) if isinstance(x, jax.Array) else x for x in leaves)
        key = module.clone(parent=None, name=None), tree, kinds
        if key not in seen:
            result = traced(*inputs, **settings)
            seen[key] = dict(module.variables.get("params", {})), result
            return result
        params, result = seen[key]
        for name, value in params.items():
            module.put_variable("params", name, value)
        return result

    return call


@lru_cache(maxsize=16)
def shapes_of(config: configs.JsonConfig) -> Mapping[str, Any]:
    """The network's parameter tree with shapes as leaves. Nothing is allocated."""
    return param_shapes(network_of(config))
