"""DINOv2-giant's real shape, float32, against torch: block by block, as 1.1 billion weights twice would take 9 GB."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import traverse_util
from transformers import Dinov2Config as ReferenceConfig
from transformers import Dinov2Model as Reference
from transformers.models.dinov2.modeling_dinov2 import Dinov2Embeddings, Dinov2Layer

from autolora_jax.config import Dinov2Config
from autolora_jax.models.dinov2 import Embeddings, Layer
from autolora_jax.models.layers import LayerNorm
from autolora_jax.models.networks import shapes_of
from autolora_jax.weights import rules, tables
from tests.parity import channels_first, error, normal
from tests.reference import trained_weight

PARITY = 2e-5  # seen: 2.2e-6, after the last norm
GIANT = Dinov2Config(
    hidden_size=1536, num_hidden_layers=40, num_attention_heads=24, image_size=518, use_swiglu_ffn=True
)
Shapes = Mapping[str, tuple[int, ...]]


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of a made-up giant, always the same for a name."""
    return trained_weight(name, shape) + np.float32(0.5 * name.endswith("lambda1"))


def filled(module: torch.nn.Module, prefix: str) -> torch.nn.Module:
    """A module of the meta device with the weights that the giant has under this prefix."""
    module = module.to_empty(device="cpu").eval()
    for name, tensor in module.state_dict().items():
        tensor.copy_(torch.from_numpy(weight(prefix + name, tuple(tensor.shape))))
    return module


def our_params(sources: Shapes, prefix: str) -> dict[str, Any]:
    """Our tree of the same weights, from `prefix` on."""
    flat = {
        step.target.removeprefix(prefix): jnp.array(step.make(weight(step.source, sources[step.source])))
        for step in rules.plan(sources, tables.stages_for(GIANT), shapes_of(GIANT), "random weights")
        if step.target.startswith(prefix)
    }
    return traverse_util.unflatten_dict(flat, sep="/")


@partial(jax.jit, static_argnums=0)
def run(module: nn.Module, params: dict[str, Any], x: Any) -> Any:
    return module.apply({"params": params}, x)


@torch.no_grad()
def errors() -> Iterator[float]:
    """Of the embeddings, of every block and of the last norm, each network's own going into its next block."""
    reference = ReferenceConfig.from_dict(GIANT.to_dict())
    with torch.device("meta"):
        sources = {name: tuple(tensor.shape) for name, tensor in Reference(reference).state_dict().items()}
        embeddings, norm = Dinov2Embeddings(reference), torch.nn.LayerNorm(GIANT.hidden_size, GIANT.layer_norm_eps)
    pixels = normal(0, 1, 224, 224, 3)
    theirs = filled(embeddings, "embeddings.")(channels_first(pixels))
    ours = run(Embeddings(config=GIANT), our_params(sources, "embeddings/"), pixels)
    assert ours.shape == (1, 257, 1536)
    yield error(ours, theirs)
    for i in range(GIANT.num_hidden_layers):
        with torch.device("meta"):
            block = Dinov2Layer(reference)
        theirs = filled(block, f"encoder.layer.{i}.")(theirs)
        ours = run(Layer(config=GIANT), our_params(sources, f"encoder/layer_{i}/"), ours)
        yield error(ours, theirs)
    theirs = filled(norm, "layernorm.")(theirs)
    yield error(run(LayerNorm(GIANT.layer_norm_eps), our_params(sources, "layernorm/"), ours), theirs)


@pytest.mark.slow
def test_the_giant_matches_torch_block_by_block():
    found = list(errors())
    assert len(found) == 42
    assert max(found) < PARITY, found
