"""The LoRA delta folded into weights, for those who prefer speed to switching."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.lora.tree import Tree, at_scale, is_leaf
from autolora_jax.models import delta


def merge_into(params: Tree, tree: Tree | None, scales: Float[Array | np.ndarray, "n"]) -> dict[str, Any]:
    """A copy of a parameter tree with every LoRA added: W + Σ scale · down @ up, summed in float32, in W's dtype.

    Sampling does not need it (and AutoLoRA can't use it: it compares with the base); other programs may.
    Untouched leaves are shared with `params`. Raises ValueError when the delta has a layer that `params` has not.
    """
    merged = dict(params)
    for name, node in (tree or {}).items():
        if name not in params:
            raise ValueError(
                f"the delta changes {name!r}, but the parameters there are {sorted(params)}: another model's?"
            )
        if is_leaf(node):
            wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), {k: node[k] for k in ("down", "up")})
            change = at_scale(wide | {"owner": node["owner"]}, scales)
            kernel = jnp.asarray(params[name]["kernel"])
            merged[name] = {**params[name], "kernel": delta.merge(kernel, change, precision="highest")}
        else:
            merged[name] = merge_into(params[name], node, scales)
    return merged
