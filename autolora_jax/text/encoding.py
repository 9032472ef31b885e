"""Encoders as programs: token ids -> what the denoiser reads, all rows of a call split over the mesh's devices.

A device encodes its rows one after another, so a text is the same in any company and padding costs no time; what a
chip loses by reading the weights anew for every row is milliseconds a prompt. Which layer is read and the LoRAs' scales
are data of a row.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float

from autolora_jax import lora
from autolora_jax.sharding import (
    WEIGHTS,
    Axes,
    map_images,
    part_specs,
    put_together,
    replicated,
    split_axes,
    split_images,
)

Tree = Mapping[str, Any]
Outputs = tuple[Any, Any]  # (hidden states [b t d], pooled [b p] or None)
HIDDEN_LAYER = -2  # of CLIP encoders, SDXL and SD3 read the last layer but one
# Rows of a program, a device: a prompt and a negative one, each for the base model and for the tuned one; 16 of each
# (T5, which LoRAs leave alone: 32). More are further calls. They cost memory and copying alone.
ROWS = (4, 40)


class Shared(NamedTuple):
    """What all rows of a call share; the same on every device."""

    params: Tree
    lora: Tree  # the encoder's stacked delta, {} without
    words: Any  # [r d], what ids from the vocabulary's size on are rows of; None without
    used: Any  # int32 [], how many of its rows a device encodes


class Rows(NamedTuple):
    """What is encoded: numpy before a call, traced inside."""

    ids: Any  # int32 [b t]
    skip: Any  # int32 [b], how many more layers of a CLIP encoder are left out at its end
    scales: Any  # float32 [b loras], of the delta; 0 = the base encoder


def begin(encoder: nn.Module, mesh: Mesh, params: Tree, delta: Tree, words: Any, rows: Rows, size: int) -> Outputs:
    """Sets the devices to encode rows, and does not wait for them. See `places` for where the results lie.

    size: rows that a device has room for; another number compiles another program.
    """
    used = np.int32(-(-len(rows.ids) // mesh.size))
    at = places(len(rows.ids), mesh.size, size)
    padded = jax.tree.map(lambda a: _spread(a, at, mesh.size * size), rows)
    shared = Shared(params, delta, *jax.device_put((words, used), replicated(mesh)))
    axes = split_axes(params) if mesh.shape[WEIGHTS] > 1 else ()
    return encode(encoder, mesh, shared, jax.device_put(padded, split_images(mesh)), axes)


def places(rows: int, devices: int, size: int) -> np.ndarray:
    """Where each row lies among all devices' `size` rows: they are dealt out."""
    number = np.arange(rows)
    return number % devices * size + number // devices


def _spread(array: np.ndarray, at: np.ndarray, rows: int) -> np.ndarray:
    result = np.zeros((rows, *array.shape[1:]), array.dtype)
    result[at] = array
    return result


@partial(jax.jit, static_argnames=("encoder", "mesh", "axes"))
def encode(
    encoder: nn.Module, mesh: Mesh, shared: Shared, rows: Rows, axes: Axes = ()
) -> tuple[Float[Array, "b t d"], Float[Array, "b p"] | None]:
    """(hidden states, pooled or None) of the first `used` rows of each device, zeros of the others.

    T5 has but its last, normed state. axes: sharding.split_axes of the weights; (): they lie whole on every device.
    """
    same: Any = PartitionSpec()
    specs = Shared(part_specs(shared.params, axes), same, same, same) if axes else None
    return map_images(partial(_encode, encoder, axes), mesh, specs)(shared, rows)


def _encode(encoder: nn.Module, axes: Axes, shared: Shared, rows: Rows) -> Outputs:
    def one(row: Rows) -> Outputs:
        params = put_together(shared.params, axes, row.ids)
        variables = {"params": params, **at_row(shared.lora, row.scales)}
        return output_at(encoder.apply(variables, row.ids, shared.words), row.skip[0])

    return one_by_one(one, rows, shared.used)


def at_row(delta: Tree, scales: Float[Array, "1 loras"]) -> dict[str, Any]:
    """{"lora": the delta at the scales of one row}, {} without a delta.

    What the scales do not touch is not to be computed before the loop over rows either: it would be a second encoder.
    """
    if not delta:
        return {}
    delta, scales = jax.lax.optimization_barrier((delta, scales))
    return {"lora": lora.at_scale(delta, scales[0])}


def output_at(output: Any, skip: Array | None = None) -> tuple[Array, Array | None]:
    """(hidden states, pooled or None) of what an encoder returns.

    skip: int32 [], of CLIP encoders: layers before HIDDEN_LAYER, whose state is taken without the final norm.
    """
    if not isinstance(output, tuple):
        return output, None
    hidden, pooled = output
    if skip is None:
        return hidden[HIDDEN_LAYER], pooled
    states = jnp.stack(hidden[: HIDDEN_LAYER + 1])
    return jax.lax.dynamic_index_in_dim(states, len(states) - 1 - skip, keepdims=False), pooled


def one_by_one(function: Callable[[Any], Any], rows: Any, count: Array) -> Any:
    """`function` of each of the first `count` rows by itself, [1 ...] leaf by leaf, and zeros for the others."""

    def row(tree: Any, i: Array) -> Any:
        return jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, i, 1), tree)

    def step(i: Array, result: Any) -> Any:
        return jax.tree.map(
            lambda a, new: jax.lax.dynamic_update_slice_in_dim(a, new, i, 0), result, function(row(rows, i))
        )

    size = len(jax.tree.leaves(rows)[0])
    like = jax.eval_shape(function, row(rows, jnp.int32(0)))
    nothing = jax.tree.map(lambda a: jnp.zeros((size, *a.shape[1:]), a.dtype), like)
    return jax.lax.fori_loop(0, count, step, nothing)


def room(rows: int, devices: int, before: int = 0) -> int:
    """Rows a device of the program for so many rows: at least what it had `before`, so that fewer compile nothing."""
    needed = -(-rows // devices)
    return max(before, next(size for size in ROWS if size >= needed))


def chunks(items: Sequence[Any], devices: int) -> list[Sequence[Any]]:
    """As many items as a program takes, and those that are left."""
    most = ROWS[-1] * devices
    return [items[i : i + most] for i in range(0, len(items), most)]
