"""What a LoRA delta means to one layer. The "lora" collection holds, at an adapted layer's path, one of these leaves.

| leaf (dict)               | meaning                                                                           |
|---------------------------|-----------------------------------------------------------------------------------|
| {down, up}                | low rank, its scale already multiplied into `down`: W' = W + down @ up            |
| {down, up, scale: [b, r]} | low rank with a scale per image: y = x·W + ((x·down) * scale[image]) @ up         |

Kernels are Flax's: Dense [in, out], Conv [kh, kw, in, out]; `down` is the kernel's shape with out -> rank, `up` is
[rank, out]. A layer without a leaf costs nothing. The base kernel is an argument here and is never written.
"""

import math
from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array

Delta = Mapping[str, Array]


def apply_kernel(
    x: Array,
    kernel: Array,
    delta: Delta | None,
    linear: Callable[[Array, Array], Array],
    out_positions: int,
    precision: str | None,
) -> Array:
    """`linear(x, kernel)` with the delta added: [b ... in] -> [b ... out].

    linear: the layer's bias-free map, linear in its kernel (a matrix product, a convolution).
    out_positions: output positions (batch × tokens or pixels) of this call: says which of two equal forms is cheaper.
    """
    if delta is None:
        return linear(x, kernel)
    down, up = delta["down"], delta["up"]
    if "scale" in delta:  # every image has its own kernel: never build it
        hidden = linear(x, down)
        scale = delta["scale"].reshape(-1, *(1,) * (hidden.ndim - 2), hidden.shape[-1]).astype(hidden.dtype)
        return linear(x, kernel) + jnp.matmul(hidden * scale, up, precision=precision)
    if out_positions * (math.prod(down.shape[:-1]) + up.shape[-1]) < kernel.size:  # few positions (a prompt's tokens)
        return linear(x, kernel) + jnp.matmul(linear(x, down), up, precision=precision)
    return linear(x, merge(kernel, delta, precision))


def merge(kernel: Array, delta: Delta, precision: str | None = None) -> Array:
    """W' of a layer, in the kernel's dtype; the sum is taken in float32."""
    product = jnp.matmul(delta["down"], delta["up"], precision=precision, preferred_element_type=jnp.float32)
    return (kernel.astype(jnp.float32) + product).astype(kernel.dtype)
