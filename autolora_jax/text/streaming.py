"""T5 from host memory: a block's weights travel to the device while the last block computes, and are forgotten.

SD3's T5 is larger than its denoiser. Held on the host it leaves a 16 GB chip to the rest, and costs new prompts the
time that its 9.5 GB take over the bus, once for as many as are encoded together; all blocks are one compiled program.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from autolora_jax.models.layers import RMSNorm
from autolora_jax.models.t5 import T5Block, T5EncoderModel
from autolora_jax.text.encoding import Rows, at_row, one_by_one

Tree = Mapping[str, Any]
TABLE = "relative_attention_bias"  # a leaf of the first block's attention only


def encode_streamed(
    encoder: T5EncoderModel,
    params: Tree,
    delta: Tree,
    words: Float[np.ndarray, "r d"] | None,
    rows: Rows,
    size: int,
    device: jax.Device,
) -> Float[Array, "size t d"]:
    """What `encoder.apply` returns of rows, computed on `device` with weights that lie on the host.

    It holds no more than two blocks there, and so waits for the device: it is called from a thread of its own.
    delta: the encoder's stacked LoRA delta, {} without. words: what ids from the vocabulary's size on are rows of.
    size: rows of the program.
    """
    config, settings = encoder.config, encoder.settings
    blocks = [params["encoder"][f"block_{i}"] for i in range(config.num_layers)]
    deltas = [delta.get("encoder", {}).get(f"block_{i}", {}) for i in range(config.num_layers)]
    block = T5Block(config=config, has_bias=False, **settings)
    count, more = np.int32(len(rows.ids)), size - len(rows.ids)
    vectors = _look_up(np.asarray(params["shared"]["embedding"]), words, rows.ids).astype(np.float32)
    x, scales = jax.device_put((_padded(vectors, more), _padded(rows.scales, more)), device)
    first = T5Block(config=config, has_bias=True, **settings)
    bias = _position_bias(first, jax.device_put(_only_table(blocks[0]), device), rows.ids.shape[1])
    waiting = jax.device_put(_without_table(blocks[0]), device)
    for i, change in enumerate(deltas):
        here = waiting
        x.block_until_ready()  # the last block is done, and its weights are gone
        x = _apply(block, here, jax.device_put(change, device), scales, x, bias, count)
        if i + 1 < len(blocks):
            waiting = jax.device_put(blocks[i + 1], device)  # while this block computes
    norm = RMSNorm(config.layer_norm_epsilon, **encoder.dtypes)
    return _normed(norm, jax.device_put(params["encoder"]["final_layer_norm"], device), x)


def _padded(array: np.ndarray, more: int) -> np.ndarray:
    return np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1))


def _look_up(
    table: Float[np.ndarray, "v d"], words: Float[np.ndarray, "r d"] | None, ids: Int[np.ndarray, "b t"]
) -> Float[np.ndarray, "b t d"]:
    """models.layers.look_up, on the host."""
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
    return block.apply({"params": params}, length, method="position_bias")


@partial(jax.jit, static_argnames="block", donate_argnames="x")
def _apply(block: T5Block, params: Tree, delta: Tree, scales: Array, x: Array, bias: Array, count: Array) -> Array:
    def one(row: tuple[Array, Array]) -> Array:
        x, scales = row
        return block.apply({"params": params, **at_row(delta, scales)}, x, bias)

    y: Array = one_by_one(one, (x, scales), count)
    return y


@partial(jax.jit, static_argnames="norm")
def _normed(norm: RMSNorm, params: Tree, x: Array) -> Array:
    return norm.apply({"params": params}, x)
