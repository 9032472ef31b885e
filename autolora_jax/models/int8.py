"""Kernels as 8-bit whole numbers, a factor for each output: half the memory of bfloat16, for what only has to fit.

W ≈ values · factor. A product takes the kernel in the compute dtype, put together where it is used and not before, so
that no second model lies beside this one. It makes nothing faster, and its rounding is that of the weights, some four
tenths of a percent of each; see docs/explanations/precision.md.
"""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

MOST = 127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Kernel:
    """A kernel of Dense or Conv."""

    values: Any  # int8 [... out]; whatever stands for an array in a tree
    factor: Any  # float32 [out]

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.values.shape
        return shape


def quantized(path: str, leaf: Any) -> Any:
    """A parameter as it is kept: a kernel rounded to the nearest, in the leaf's place; anything else as it comes.

    path: "a/b/kernel". leaf: on its devices, among which a split one stays split; its memory is given back.
    """
    return _quantize(leaf) if path.endswith("/kernel") else leaf


@partial(jax.jit, donate_argnums=0)
def _quantize(kernel: Float[Array, "... out"]) -> Int8Kernel:
    wide = kernel.astype(jnp.float32)
    most = jnp.abs(wide).max(axis=tuple(range(kernel.ndim - 1)))
    factor = jnp.where(most > 0, most / MOST, 1.0)
    return Int8Kernel(jnp.round(wide / _along(factor, kernel.ndim)).astype(jnp.int8), factor)


def dense(kernel: Any, dtype: DTypeLike) -> Array:
    """The kernel as an array of this dtype, however it is kept."""
    if isinstance(kernel, Int8Kernel):
        wide: Array = kernel.values.astype(jnp.float32) * _along(kernel.factor, kernel.values.ndim)
        return wide.astype(dtype)
    return jnp.asarray(kernel, dtype)


def meet(x: Float[Array, "..."], kernel: Any) -> tuple[Array, Array]:
    """(x, the kernel as an array of its dtype), not before x is known: XLA makes it once else, before a loop."""
    if isinstance(kernel, Int8Kernel):
        x, kernel = jax.lax.optimization_barrier((x, kernel))
    return x, dense(kernel, x.dtype)


def is_int8(params: Any) -> bool:
    """Whether any of a tree's kernels are kept so."""
    return any(leaf.dtype == jnp.int8 for leaf in jax.tree.leaves(params))


def _along(factor: Array, ndim: int) -> Array:
    return factor.reshape(*(1,) * (ndim - 1), -1)
