"""A tensor's last steps on the host, at the speed of its memory: another dtype, another order of its axes, the device.

numpy casts and transposes value by value. What XLA has for its own host arrays takes blocks that caches hold: a kernel
of [1280, 1280] costs half as much, a cast from float16 to bfloat16 a quarter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.files import all_finite
from autolora_jax.weights.rules import Shape

# Where leaves go: one sharding for all, or one by tree path and shape, or None: the default device.
Sharding = jax.sharding.Sharding
Placement = Sharding | Callable[[str, Shape], Sharding] | None
Kept = Callable[[str, jax.Array], Any]  # (path, leaf on its devices) -> what is kept of it
_BLOCK = 1 << 18  # values that are cast together


def as_it_is(path: str, leaf: jax.Array) -> Any:
    """A leaf that is kept so."""
    return leaf


def place(leaf: np.ndarray, path: str, placement: Placement) -> jax.Array:
    """A host array on its devices, a copy. Every process must hold the whole array."""
    sharding = placement(path, leaf.shape) if callable(placement) else placement
    leaf = _in_rows(leaf)
    if _one_cpu(sharding):
        return jax.device_put(leaf, sharding, may_alias=False)
    leaf = leaf if leaf.flags.c_contiguous else np.asarray(_on_host(leaf))
    if sharding is None or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding, may_alias=False)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index].copy())


def _one_cpu(sharding: Sharding | None) -> bool:
    devices: Any = jnp.zeros(()).devices() if sharding is None else sharding.device_set  # the first: the default's
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


def _on_host(x: np.ndarray) -> jax.Array:
    return jax.device_put(x, jax.local_devices(backend="cpu")[0], may_alias=False)


def _in_rows(x: np.ndarray) -> np.ndarray:
    """The same array, its last axis in one piece in memory if its first one in memory was last: [h w i o] of [o i h w].

    XLA moves rows fast, and the values of a matrix, but not those of more axes.
    """
    order = sorted(range(x.ndim), key=lambda axis: -x.strides[axis])
    there = x.transpose(order)  # as it lies in memory
    if x.ndim < 3 or order[0] != x.ndim - 1 or not there.flags.c_contiguous:
        return x
    rows = np.asarray(_on_host(there.reshape(len(there), -1).T)).reshape(*there.shape[1:], -1)
    return rows.transpose(np.argsort([*order[1:], order[0]]))


def cast(x: np.ndarray, dtype: np.dtype, what: str) -> np.ndarray:
    """A contiguous array of another dtype, or the same array. Raises WeightsError when finite values overflow."""
    if x.dtype == dtype:
        return x if x.flags.c_contiguous else np.asarray(_on_host(_in_rows(x)))
    y = _cast(x, dtype)
    if dtype.itemsize < x.dtype.itemsize and not all_finite(y.reshape(-1)):
        most = np.abs(x).max()
        raise WeightsError(f"{what} holds {most:g}, too large for {dtype.name}; load it as bfloat16 or float32")
    return y


@partial(jax.jit, static_argnames="dtype")
def _converted(x: jax.Array, dtype: np.dtype) -> jax.Array:
    return x.astype(dtype)


def _cast(x: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Blocks of one size, so that one program serves all tensors; what is left over is numpy's."""
    x = np.ascontiguousarray(x)
    y, flat = np.empty(x.shape, dtype), x.reshape(-1)
    out, whole = y.reshape(-1), flat.size // _BLOCK * _BLOCK
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        for start in range(0, whole, _BLOCK):
            out[start : start + _BLOCK] = _converted(flat[start : start + _BLOCK], dtype)
    with np.errstate(over="ignore"):  # the caller checks
        out[whole:] = flat[whole:].astype(dtype)
    return y
