"""T5 from host memory: a block's weights travel to the device while the last block computes, and are forgotten.

SD3's T5 is larger than its denoiser. Held on the host it leaves a 16 GB chip to the rest, and costs a new prompt the
time that its 9.5 GB take over the bus; all blocks are one compiled program.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from autolora_jax import lora
from autolora_jax.models.layers import RMSNorm
from autolora_jax.models.t5 import T5Block, T5EncoderModel

Tree = Mapping[str, Any]
TABLE = "relative_attention_bias"  # a leaf of the first block's attention only


def encode_streamed(
    encoder: T5EncoderModel,
    params: Tree,
    delta: Tree,
    scales: np.ndarray | None,
    ids: Int[np.ndarray, "b t"],
    words: Float[np.ndarray, "r d"] | None,
    device: jax.Device,
) -> Float[Array, "b t d"]:
    """What `encoder.apply` returns, computed on `device` with weights that lie on the host.

    delta: the encoder's stacked LoRA delta, {} without; scales: [loras]. words: what ids from the vocabulary's size on
    are rows of.
    """
    config, settings = encoder.config, encoder.settings
    blocks = [params["encoder"][f"block_{i}"] for i in range(config.num_layers)]
    deltas = [delta.get("encoder", {}).get(f"block_{i}", {}) for i in range(config.num_layers)]
    block = T5Block(config=config, has_bias=False, **settings)
    x = jax.device_put(_look_up(np.asarray(params["shared"]["embedding"]), words, ids), device).astype(jnp.float32)
    first = T5Block(config=config, has_bias=True, **settings)
    bias = _position_bias(first, jax.device_put(_only_table(blocks[0]), device), ids.shape[1])
    waiting = jax.device_put(_without_table(blocks[0]), device)
    for i, change in enumerate(deltas):
        here = waiting
        if i + 1 < len(blocks):
            waiting = jax.device_put(blocks[i + 1], device)  # while this block computes
        x = _apply(block, here, jax.device_put(change, device), scales, x, bias)
    norm = RMSNorm(config.layer_norm_epsilon, **encoder.dtypes)
    return _normed(norm, jax.device_put(params["encoder"]["final_layer_norm"], device), x)


def _look_up(
    table: Float[np.ndarray, "v d"], words: Float[np.ndarray, "r d"] | None, ids: Int[np.ndarray, "b t"]
) -> Float[np.ndarray, "b t d"]:
    """models.embedding.look_up, on the host."""
    if words is None:
        return table[ids]
    size = len(table)
    added = words[np.maximum(ids - size, 0)].astype(table.dtype)
    return np.where((ids < size)[..., None], table[np.minimum(ids, size - 1)], added)


def _without_table(block: Tree) -> dict[str, Any]:
    attention = block["layer_0"]["SelfAttention"]
    rest = {name: leaf for name, leaf in attention.items() if name != TABLE}
    return {**block, "layer_0": {**block["layer_0"], "SelfAttention": rest}}


def _only_table(block: Tree) -> dict[str, Any]:
    return {"layer_0": {"SelfAttention": {TABLE: block["layer_0"]["SelfAttention"][TABLE]}}}


@partial(jax.jit, static_argnames=("block", "length"))
def _position_bias(block: T5Block, params: Tree, length: int) -> Array:
    bias = block.apply({"params": params}, length, method="position_bias")
    assert isinstance(bias, jax.Array)
    return bias


@partial(jax.jit, static_argnames="block", donate_argnames="x")
def _apply(block: T5Block, params: Tree, delta: Tree, scales: Array | None, x: Array, bias: Array) -> Array:
    variables = {"params": params} | ({"lora": lora.at_scale(delta, scales)} if delta and scales is not None else {})
    y = block.apply(variables, x, bias)
    assert isinstance(y, jax.Array)
    return y


@partial(jax.jit, static_argnames="norm")
def _normed(norm: RMSNorm, params: Tree, x: Array) -> Array:
    y = norm.apply({"params": params}, x)
    assert isinstance(y, jax.Array)
    return y
