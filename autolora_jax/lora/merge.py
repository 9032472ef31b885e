"""The LoRA delta folded into weights, for those who prefer speed to switching."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.lora.tree import Tree, at_scale, is_leaf
from autolora_jax.models import delta
from autolora_jax.models.int8 import Int8Kernel, dense

Scales = Float[Array | np.ndarray, "n"]
# What a leaf adds to a vector -> the parameter of the layer.
VECTORS = {"bias": "bias", "weight": "scale"}


def merge_into(params: Tree, tree: Tree | None, scales: Scales) -> dict[str, Any]:
    """A copy of a parameter tree with every LoRA added, W + Σ scale · ΔW: summed in float32, in W's dtype.

    Sampling does not need it (and AutoLoRA can't use it: it compares with the base); other programs may.
    Untouched leaves are shared with `params`. Raises ValueError when the delta has a layer that `params` has not.
    """
    merged = dict(params)
    for name, node in (tree or {}).items():
        if name not in params:
            raise ValueError(
                f"the delta changes {name!r}, but the parameters there are {sorted(params)}: another model's?"
            )
        merge = _merge_layer if is_leaf(node) else merge_into
        merged[name] = merge(params[name], node, scales)
    return merged


def homeless(params: Tree, tree: Tree) -> bool:
    """Whether the delta adds a vector to a layer that has none, which `merge_into` refuses."""
    if is_leaf(tree):
        return any(entry in tree and parameter not in params for entry, parameter in VECTORS.items())
    return any(homeless(params[name], node) for name, node in tree.items())


@jax.jit
def _merge_layer(params: Tree, leaf: Tree, scales: Scales) -> dict[str, Any]:
    change = at_scale(jax.tree.map(_wide, dict(leaf)), scales)
    sums: dict[str, Array] = {}
    if change.keys() & {"up", "terms"}:
        sums["kernel"] = delta.merge(dense(params["kernel"], jnp.float32), change, precision="highest")
    for entry, parameter in VECTORS.items():
        if entry not in change:
            continue
        if parameter not in params:
            raise ValueError(f"the delta adds a {parameter} to a layer that has none: that can't be merged")
        sums[parameter] = _wide(params[parameter]) + change[entry]
    return {**params, **{name: _as(params[name], total) for name, total in sums.items()}}


def _as(kept: Any, total: Array) -> Array:
    """In the dtype that the layer's own parameter has; what 8 bits hold is merged into bfloat16."""
    return total.astype(jnp.bfloat16 if isinstance(kept, Int8Kernel) else kept.dtype)


def _wide(x: Any) -> Array:
    """Numbers in float32; whole ones, as owners are, as they come."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.integer) else x.astype(jnp.float32)
