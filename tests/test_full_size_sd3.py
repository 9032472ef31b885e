"""SD3's real networks, float32, against torch: whole where 24 GiB hold one, block by block where they do not."""

import dataclasses
import gc
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel as ReferenceMMDiT
from diffusers.models.attention import JointTransformerBlock as ReferenceBlock
from flax import traverse_util
from transformers import T5Config as ReferenceT5Config
from transformers import T5EncoderModel as ReferenceT5
from transformers.models.t5.modeling_t5 import T5Block as ReferenceT5Block
from transformers.models.t5.modeling_t5 import T5LayerNorm

from autolora_jax.config import JsonConfig, MMDiTConfig, T5Config
from autolora_jax.models.joint import JointTransformerBlock
from autolora_jax.models.layers import RMSNorm
from autolora_jax.models.mmdit import SD3Transformer2DModel
from autolora_jax.models.networks import shapes_of
from autolora_jax.models.t5 import T5Block
from autolora_jax.weights import rules, tables
from tests.parity import channels_first, error, normal
from tests.reference import trained_weight

Shapes = Mapping[str, tuple[int, ...]]

PARITY = 2e-5  # seen: SD3 Medium 2.4e-6, SD3.5 Medium 3.3e-6, blocks of SD3.5 Large 2.8e-6, of T5-XXL 3.4e-6

MEDIUM = MMDiTConfig()
MEDIUM_35 = dataclasses.replace(
    MEDIUM, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm="rms_norm"
)
LARGE_35 = dataclasses.replace(
    MEDIUM, num_layers=38, num_attention_heads=38, caption_projection_dim=2432, qk_norm="rms_norm"
)


@partial(jax.jit, static_argnums=0)
def run(module: nn.Module, params: dict[str, Any], *inputs: jax.Array | np.ndarray) -> Any:
    return module.apply({"params": params}, *inputs)


def mmdit_shapes(config: MMDiTConfig) -> Shapes:
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in ReferenceMMDiT.from_config(config.to_dict()).state_dict().items()}


def t5_config(config: T5Config) -> ReferenceT5Config:
    return ReferenceT5Config.from_dict(config.to_dict())


def t5_shapes(config: T5Config) -> Shapes:
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in ReferenceT5(t5_config(config)).state_dict().items()}


def filled(module: torch.nn.Module, prefix: str = "") -> torch.nn.Module:
    """A module of the meta device with the weights that a network has under this prefix."""
    module = module.to_empty(device="cpu").eval()
    for name, tensor in module.state_dict().items():
        tensor.copy_(torch.from_numpy(trained_weight(prefix + name, tuple(tensor.shape))))
    return module


def our_params(config: JsonConfig, sources: Shapes, prefix: str = "") -> dict[str, Any]:
    """Our tree of the same weights, from `prefix` on."""
    flat = {
        step.target.removeprefix(prefix): jnp.array(step.make(trained_weight(step.source, sources[step.source])))
        for step in rules.plan(sources, tables.stages_for(config), shapes_of(config), "random weights")
        if step.target.startswith(prefix)
    }
    return traverse_util.unflatten_dict(flat, sep="/")


@torch.no_grad()
def check_whole(config: MMDiTConfig, height: int, width: int) -> float:
    """The error of a whole prediction. The two networks are never in memory together."""
    sample = normal(0, 1, height, width, config.in_channels)
    t, prompt, pooled = (
        np.float32([601]),
        normal(1, 1, 154, config.joint_attention_dim),
        normal(2, 1, config.pooled_projection_dim),
    )
    with torch.device("meta"):
        module = ReferenceMMDiT.from_config(config.to_dict())
    theirs = filled(module)(channels_first(sample), *map(torch.from_numpy, (prompt, pooled, t)))[0]
    del module
    gc.collect()
    network = SD3Transformer2DModel(config=config)
    return error(run(network, our_params(config, mmdit_shapes(config)), sample, t, prompt, pooled), theirs)


@torch.no_grad()
def check_blocks(config: MMDiTConfig, tokens: int) -> Iterator[float]:
    """The error of both streams after every block, each network's own going into its next one."""
    shape = (1, tokens, config.features)
    streams = normal(0, *shape), normal(1, *shape)
    vector = normal(2, 1, config.features)
    theirs, ours = tuple(map(torch.from_numpy, streams)), streams
    sources = mmdit_shapes(config)
    for i in range(config.num_layers):
        last, dual = i == config.num_layers - 1, i in config.dual_attention_layers
        with torch.device("meta"):
            module = ReferenceBlock(
                config.features,
                config.num_attention_heads,
                config.attention_head_dim,
                context_pre_only=last,
                qk_norm=config.qk_norm,
                use_dual_attention=dual,
            )
        text, image = filled(module, f"transformer_blocks.{i}.")(*theirs, torch.from_numpy(vector))
        theirs = image, theirs[1] if last else text
        block = JointTransformerBlock(
            features=config.features,
            heads=config.num_attention_heads,
            qk_norm=config.qk_norm is not None,
            dual_attention=dual,
            text_only_read=last,
        )
        params = our_params(config, sources, f"transformer_blocks_{i}/")
        # Ours reads the vector through a SiLU that the network has taken once.
        ours = run(block, params, *ours, jax.nn.silu(vector))
        yield max(error(o, t) for o, t in zip(ours, theirs, strict=True))


@torch.no_grad()
def check_t5(config: T5Config, tokens: int) -> Iterator[float]:
    """The error after every block and after the last norm, each network's own going into its next block."""
    sources = t5_shapes(config)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (1, tokens))
    stream = trained_weight("shared.weight", sources["shared.weight"])[ids]
    theirs, ours = torch.from_numpy(stream), jnp.asarray(stream)
    their_bias = our_bias = None
    for i in range(config.num_layers):
        with torch.device("meta"):
            module = ReferenceT5Block(t5_config(config), has_relative_attention_bias=i == 0, layer_idx=i)
        module = filled(module, f"encoder.block.{i}.")
        theirs, their_bias, *_ = module(theirs, position_bias=their_bias)
        block = T5Block(config=config, has_bias=i == 0)
        params = our_params(config, sources, f"encoder/block_{i}/")
        if our_bias is None:
            our_bias = block.apply({"params": params}, tokens, method="position_bias")
        ours = run(block, params, ours, our_bias)
        yield error(ours, theirs)
    norm = filled(T5LayerNorm(config.d_model, config.layer_norm_epsilon), "encoder.final_layer_norm.")
    params = our_params(config, sources, "encoder/final_layer_norm/")
    yield error(run(RMSNorm(config.layer_norm_epsilon), params, ours), norm(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("config", [MEDIUM, MEDIUM_35], ids=["SD3 Medium", "SD3.5 Medium"])
def test_the_real_denoiser_matches_torch(config):
    assert check_whole(config, 32, 40) < PARITY


@pytest.mark.slow
def test_sd35_large_matches_torch_block_by_block():
    assert max(check_blocks(LARGE_35, 64)) < PARITY


@pytest.mark.slow
def test_t5_xxl_matches_torch_block_by_block():
    assert max(check_t5(T5Config(), 77)) < PARITY
