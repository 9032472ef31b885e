"""A new LoRA: which layers get a delta, and what it is before the first step."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from autolora_jax.config import ConfigError
from autolora_jax.lora.tree import low_rank
from autolora_jax.weights.lora.names import Layer, Targets, layers
from autolora_jax.weights.tables import torch_module

# Name -> pattern searched in a layer's published name ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q").
GROUPS: Mapping[str, str] = {
    "attention": r"\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out|[qkv]_proj|out_proj|SelfAttention\.[qkvo])$",
    "cross_attention": r"attentions\..*\.attn2\.(to_[qkv]|to_out\.0)$",  # SD3.5's attn2 attends to the image itself
    "feed_forward": r"\.(ff(_context)?\.net\.(0\.proj|2)|mlp\.fc[12]|DenseReluDense\.w(i_0|i_1|o))$",
    "projections": r"\.attentions\.\d+\.proj_(in|out)$",
    "convolutions": r"(resnets\.\d+\.conv(1|2|_shortcut)|samplers\.0\.conv)$",
    # Of the timestep and the pooled prompt, with what every block takes of them.
    "embeddings": r"(time_emb_proj|norm(1|1_context|_out)\.linear"
    r"|((time|add)_embedding|(timestep|text)_embedder)\.linear_[12])$",
}


def choose_layers(model: Targets, patterns: Sequence[str]) -> list[Layer]:
    """The layers whose published names a pattern is found in.

    model: component -> (its parameters, its config). patterns: keys of GROUPS, or regular expressions such as
    r"up_blocks\\.0.*attn2\\.to_k".
    Raises ConfigError for a pattern that is no regular expression, or is found in no layer.
    """
    candidates = [(layer, torch_module(layer.path)) for layer in layers(model)]
    chosen: dict[Layer, None] = {}
    for text in patterns:
        try:
            pattern = re.compile(GROUPS.get(text, text))
        except re.error as e:
            raise ConfigError(f"target {text!r} is neither one of {', '.join(GROUPS)} nor a pattern: {e}") from None
        found = [layer for layer, name in candidates if pattern.search(name)]
        if not found:
            examples = ", ".join(name for _, name in candidates[:: max(1, len(candidates) // 3)][:3])
            raise ConfigError(
                f"target {text!r} is found in no layer of {', '.join(model)}; layers are called like {examples}"
            )
        chosen |= dict.fromkeys(found)
    return [layer for layer, _ in candidates if layer in chosen]


def new_delta(chosen: Sequence[Layer], rank: int, seed: int) -> dict[str, Any]:
    """component -> tree of {"down", "up"}, float32 on the host: a delta of nothing, since `up` is zero.

    down: uniform in ±1/√fan_in, as PEFT and kohya begin. rank: at most a layer's smaller side is used.
    """
    pairs: dict[str, np.ndarray] = {}
    for i, layer in enumerate(chosen):
        *inner, out = layer.kernel
        fan_in = math.prod(inner)
        most = min(rank, fan_in, out)
        pairs[f"{layer.component}/{layer.path}/down"] = fan_in**-0.5 * _uniform((*inner, most), seed, i)
        pairs[f"{layer.component}/{layer.path}/up"] = np.zeros((most, out), np.float32)
    return dict(traverse_util.unflatten_dict(pairs, sep="/"))


def over_pairs(function: Callable[[Mapping[str, Any]], Any], trees: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with `function` of every layer's {"down", "up"}."""
    result: dict[str, Any] = jax.tree.map(function, dict(trees), is_leaf=lambda node: "down" in node)
    return result


def stored_delta(trees: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """The trained trees as `lora.attach` would give them: `scale` (alpha / rank) inside `up`, one owner."""

    def stored(pair: Mapping[str, Any]) -> dict[str, np.ndarray]:
        down, up = (np.asarray(jax.device_get(pair[half])) for half in ("down", "up"))
        return low_rank(down, np.asarray(up, np.float32) * np.float32(scale))

    return over_pairs(stored, trees)


def _uniform(shape: tuple[int, ...], *entropy: int) -> np.ndarray:
    """Uniform in [-1, 1), float32. On the host: JAX would compile a program for each shape of the model."""
    bits = np.random.PCG64(list(entropy)).random_raw(math.prod(shape)) >> 40  # 24: all that float32 can tell apart
    return (bits.astype(np.float32) * np.float32(2**-23) - np.float32(1)).reshape(shape)
