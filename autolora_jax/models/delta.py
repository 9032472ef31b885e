"""What a LoRA delta means to one layer. The "lora" collection holds, at an adapted layer's path, such a leaf (dict):

| key               | meaning                                                                                      |
|-------------------|----------------------------------------------------------------------------------------------|
| down, up          | low rank, its scale already multiplied into `down`: W' = W + down @ up                       |
| down, up, scale   | low rank with a scale per image [b r]: y = x·W + ((x·down) * scale[image]) @ up              |
| terms             | name -> a term: everything that is no plain low rank, see below                              |
| bias, weight      | added to the layer's bias or a norm's weight: [c], or [b c] with a scale per image           |

A term is a `change`, an object that says its kernel K on this layer (some multiply the layer's own), and how much of
it, and of the layer's kernel itself, is added:

    amount [] or [b]                              W' = W + amount · K
    outputs: {keep, amount: [out] or [b out]}     W' = W + W · keep + K · amount, along the outputs   (DoRA)
    inputs:  {keep, amount: [in] or [b in]}       the same along the inputs

Kernels are Flax's: Dense [in, out], Conv [kh, kw, in, out]; `down` is the kernel's shape with out -> rank, `up` is
[rank, out]. A layer without a leaf costs nothing. The base kernel is an argument here and is never written.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike

Delta = Mapping[str, Any]
Linear = Callable[[Array, Array], Array]


def apply_kernel(
    x: Array, kernel: Array, delta: Delta | None, linear: Linear, out_positions: int, precision: str | None
) -> Array:
    """`linear(x, kernel)` with the delta added: [b ... in] -> [b ... out].

    linear: the layer's bias-free map, linear in its kernel (a matrix product, a convolution).
    out_positions: output positions (batch × tokens or pixels) of this call: says which of two equal forms is cheaper.
    """
    if delta is None or not delta.keys() & {"up", "terms"}:
        return linear(x, kernel)
    if _per_image(delta):  # every image has its own kernel: never build it
        y = linear(x, kernel)
        if "up" in delta:
            y = y + _low_rank(x, delta, linear, precision)
        for term in delta.get("terms", {}).values():
            y = y + _term(x, kernel, term, linear)
        return y
    if "up" in delta:
        delta = {**delta, **{name: jnp.asarray(delta[name], x.dtype) for name in ("down", "up")}}
    if "terms" not in delta:
        down, up = delta["down"], delta["up"]
        if (
            out_positions * (math.prod(down.shape[:-1]) + up.shape[-1]) < kernel.size
        ):  # few positions: a prompt's tokens
            return linear(x, kernel) + _low_rank(x, delta, linear, precision)
    # Without the barrier XLA for TPU fuses the merge into the product and computes it again for every tile of rows.
    with jax.named_scope("merge"):  # so that profiles and benchmarks/cycles.py tell it from the product
        merged = jax.lax.optimization_barrier(merge(kernel, delta, precision))
    return linear(x, merged)


def merge(kernel: Array, delta: Delta, precision: str | None = None) -> Array:
    """W' of a layer, in the kernel's dtype; the sum is taken in float32. Scales must be shared by all images."""
    wide = _wide(kernel)
    total = wide
    if "up" in delta:
        down, up = delta["down"], delta["up"]
        total = total + jnp.matmul(down, up, precision=precision, preferred_element_type=jnp.float32)
    for term in delta.get("terms", {}).values():
        change = term["change"].on(wide)
        if "amount" in term:
            total = total + term["amount"] * change
            continue
        part, axis = _decomposed(term)
        along = (*(1,) * (kernel.ndim - 2), *((-1, 1) if axis == "inputs" else (1, -1)))
        total = total + wide * part["keep"].reshape(along) + change * part["amount"].reshape(along)
    return total.astype(kernel.dtype)


def changed(vector: Any, delta: Delta | None, name: str, ndim: int, dtype: DTypeLike) -> Array | None:
    """A layer's vector [c] with the delta's part of this name added, shaped to broadcast to [b ... c] of `ndim` axes.

    vector: None for a layer without; None comes out where the delta has nothing either.
    """
    change = None if delta is None else delta.get(name)
    if vector is None and change is None:
        return None
    parts = [_wide(part) for part in (vector, change) if part is not None]
    shaped = [part.reshape(*(part.shape[:-1] or (1,)), *(1,) * (ndim - 2), part.shape[-1]) for part in parts]
    return sum(shaped[1:], shaped[0]).astype(dtype)


def _per_image(delta: Delta) -> bool:
    if "scale" in delta:
        return True
    for term in delta.get("terms", {}).values():
        return bool(term["amount"].ndim if "amount" in term else _decomposed(term)[0]["amount"].ndim == 2)
    return False


def _low_rank(x: Array, delta: Delta, linear: Linear, precision: str | None) -> Array:
    hidden = linear(x, jnp.asarray(delta["down"], x.dtype))
    if "scale" in delta:
        hidden = hidden * _spread(delta["scale"], hidden)
    return jnp.matmul(hidden, jnp.asarray(delta["up"], x.dtype), precision=precision)


def _term(x: Array, kernel: Array, term: Delta, linear: Linear) -> Array:
    """What a term adds to a layer's output, with amounts per image."""
    change = jnp.asarray(term["change"].on(_wide(kernel)), kernel.dtype)
    if "amount" in term:
        y = linear(x, change)
        return y * _spread(term["amount"][:, None], y)
    part, axis = _decomposed(term)
    if axis == "inputs":
        return linear(x * _spread(part["keep"], x), kernel) + linear(x * _spread(part["amount"], x), change)
    y, z = linear(x, kernel), linear(x, change)
    return y * _spread(part["keep"], y) + z * _spread(part["amount"], z)


def _decomposed(term: Delta) -> tuple[Delta, str]:
    return next((term[axis], axis) for axis in ("outputs", "inputs") if axis in term)


def _spread(values: Array, like: Array) -> Array:
    """[b c] -> [b 1 … c]."""
    return values.reshape(values.shape[0], *(1,) * (like.ndim - 2), values.shape[-1]).astype(like.dtype)


def _wide(a: Any) -> Array:
    return jnp.asarray(a, jnp.float32)
