"""The delta tree: its leaves, several LoRAs stacked into one, and the tree at the scales of a call.

A delta tree has the paths of the base tree (of one network, or of all: {"unet": …, "text_encoder": …}), and a leaf per
adapted layer, whose change is  ΔW = Σ_r down[..., r] · up[r] :

    {"down": the kernel's shape with out -> R, "up": [R, out], "owner": int32 [R]}

alpha / rank is part of `up`. Several LoRAs stand one after another along R, `owner` says whose a column is. Networks
know no owners and no scales: `at_scale` turns the tree into what models/delta.py reads.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Tree = Mapping[str, Any]


def is_leaf(node: Any) -> bool:
    """Whether a node of a delta tree is a layer's change."""
    return isinstance(node, Mapping) and "up" in node and not isinstance(node["up"], Mapping)


def stack(trees: Sequence[Tree | None]) -> dict[str, Any]:
    """One delta tree of several LoRAs: the i-th tree's columns get owner i. {} or None: that LoRA has nothing here."""
    result: dict[str, Any] = {}
    for name in dict.fromkeys(name for tree in trees for name in tree or ()):
        nodes = [(tree or {}).get(name) for tree in trees]
        if not any(is_leaf(node) for node in nodes):
            result[name] = stack(nodes)
            continue
        found = [(owner, node) for owner, node in enumerate(nodes) if node]
        owners = [np.full(node["up"].shape[0], owner, np.int32) for owner, node in found]
        result[name] = {
            "down": np.concatenate([node["down"] for _, node in found], axis=-1),
            "up": np.concatenate([node["up"] for _, node in found], axis=0),
            "owner": np.concatenate(owners),
        }
    return result


def at_scale(tree: Tree | None, scales: Float[Array | np.ndarray, "*b n"]) -> dict[str, Any]:
    """The "lora" collection: a delta tree with every LoRA at its scale. {} for an empty tree. Traceable.

    scales: [n], shared by all images: one product per layer; or [b, n], one row per image. 0 = the base layer.
    """
    scales = jnp.asarray(scales, jnp.float32)

    def scaled(leaf: Tree) -> dict[str, Any]:
        columns = jnp.take(scales, leaf["owner"], axis=-1)  # [R] or [b R]
        if scales.ndim == 2:
            return {"down": leaf["down"], "up": leaf["up"], "scale": columns}
        down = jnp.asarray(leaf["down"])
        product = down.astype(jnp.float32) * columns.reshape(*(1,) * (down.ndim - 1), -1)
        return {"down": product.astype(down.dtype), "up": leaf["up"]}

    return jax.tree.map(scaled, dict(tree or {}), is_leaf=is_leaf)
