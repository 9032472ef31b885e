"""The delta tree: its leaves, several LoRAs stacked into one, and the tree at the scales of a call.

A delta tree has the paths of the base tree (of one network, or of all: {"unet": …, "text_encoder": …}), and a leaf per
adapted layer. What is plain low rank, ΔW = Σ_r down[..., r] · up[r], stands together whosever it is:

    {"down": the kernel's shape with out -> R, "up": [R, out], "owner": int32 [R]}

alpha / rank is part of `up`. Several LoRAs stand one after another along R, `owner` says whose a column is. All else a
LoRA can do to a layer are further entries of its leaf:

    "terms":  {name: {"owner": int32 [], "factor": float32 [] (1 where it is left out), "change": an object of its
                      kind's class, DoRA's `outputs`|`inputs`}}
    "bias", "weight":  {"rows": [n, c], "owner": int32 [n]}, added to the layer's bias or the norm's weight

Networks know no owners and no scales: `at_scale` turns the tree into what models/delta.py reads.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from autolora_jax.weights.lora.kinds.dora import AXES, amounts

Tree = Mapping[str, Any]

VECTORS = ("bias", "weight")
_LOADED = 4  # the number of LoRAs is rounded up to a multiple of it
_ROOM = 16, 64  # least ranks of a layer, a quarter of what its kernel could have within these; it grows by doubling


def is_leaf(node: Any) -> bool:
    """Whether a node of a delta tree is a layer's change."""
    if not isinstance(node, Mapping):
        return False
    has_vector = any(isinstance(node.get(name), Mapping) and "rows" in node[name] for name in VECTORS)
    return "owner" in node or "terms" in node or has_vector


def low_rank(down: Any, up: Any) -> dict[str, Any]:
    """The leaf of one LoRA's plain low rank."""
    return {"down": down, "up": up, "owner": np.zeros(len(up), np.int32)}


def stack(trees: Sequence[Tree | None]) -> dict[str, Any]:
    """One delta tree of several LoRAs: what is the i-th tree's gets owner i. {} or None: that LoRA has nothing here."""
    result: dict[str, Any] = {}
    for name in dict.fromkeys(name for tree in trees for name in tree or ()):
        nodes = [(tree or {}).get(name) for tree in trees]
        if any(is_leaf(node) for node in nodes):
            result[name] = _stacked([(owner, node) for owner, node in enumerate(nodes) if node])
        else:
            result[name] = stack(nodes)
    return result


def _stacked(found: Sequence[tuple[int, Tree]]) -> dict[str, Any]:
    leaf: dict[str, Any] = {}
    if low := [(owner, node) for owner, node in found if "up" in node]:
        leaf["down"] = _joined([node["down"] for _, node in low], axis=-1)
        leaf["up"] = _joined([node["up"] for _, node in low], axis=0)
        leaf["owner"] = _owners([(owner, len(node["up"])) for owner, node in low])
    one = {"factor": np.float32(1)}
    terms = [one | {**term, "owner": np.int32(i)} for i, node in found for term in node.get("terms", {}).values()]
    if terms:
        leaf["terms"] = {str(i): term for i, term in enumerate(terms)}
    for name in VECTORS:
        if rows := [(owner, node[name]["rows"]) for owner, node in found if name in node]:
            owners = _owners([(owner, len(values)) for owner, values in rows])
            leaf[name] = {"rows": np.concatenate([values for _, values in rows]), "owner": owners}
    return leaf


def _joined(arrays: Sequence[Any], axis: int) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis)


def _owners(counts: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.concatenate([np.full(n, owner, np.int32) for owner, n in counts])


def padded(tree: Tree, params: Tree) -> dict[str, Any]:
    """The tree with room for other LoRAs: ranks of nothing added, and nothing but room where a layer is unchanged.

    So one compiled program serves every LoRA that is low rank, whatever layers it changes, and stacks of them, until a
    layer's ranks together exceed its room: 64, 128, 256 …, in narrow layers 16 or 32 first. Without low rank: no room.

    params: the network's; every kernel gets room.
    """
    dtype = next((np.asarray(leaf["up"]).dtype for leaf in _leaves(tree) if "up" in leaf), None)
    if dtype is None:
        return dict(tree)

    def fill(node: Tree, layer: Tree) -> dict[str, Any]:
        if "kernel" not in layer:
            inside = {name: fill(node.get(name, {}), part) for name, part in layer.items() if isinstance(part, Mapping)}
            return {name: part for name, part in {**node, **inside}.items() if part}
        *into, out = layer["kernel"].shape
        leaf = {**low_rank(np.zeros((*into, 0), dtype), np.zeros((0, out), dtype)), **node}
        rank, (least, most) = len(leaf["up"]), _ROOM
        wanted = max(least, min(most, min(math.prod(into), out) // 4), rank)
        more = (1 << (wanted - 1).bit_length()) - rank  # up to the next power of two
        down = np.pad(leaf["down"], [(0, 0)] * len(into) + [(0, more)])
        owner = np.pad(leaf["owner"], (0, more))
        return {**leaf, "down": down, "up": np.pad(leaf["up"], ((0, more), (0, 0))), "owner": owner}

    return fill(tree, params)


def _leaves(tree: Tree) -> list[Tree]:
    return [leaf for leaf in jax.tree.leaves(dict(tree), is_leaf=is_leaf) if isinstance(leaf, Mapping)]


def padded_scales(scales: Float[np.ndarray, "*b n"]) -> Float[np.ndarray, "*b m"]:
    """Scales with zeros for LoRAs that are not there, so that loading one more compiles nothing."""
    return np.pad(scales, [(0, 0)] * (scales.ndim - 1) + [(0, -scales.shape[-1] % _LOADED)])


def at_scale(tree: Tree | None, scales: Float[Array | np.ndarray, "*b n"]) -> dict[str, Any]:
    """The "lora" collection: a delta tree with every LoRA at its scale. {} for an empty tree. Traceable.

    scales: [n], shared by all images: one product per layer; or [b, n], one row per image. 0 = the base layer.
    """
    scales = jnp.asarray(scales, jnp.float32)

    def scaled(leaf: Tree) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if "up" in leaf:
            columns = jnp.take(scales, leaf["owner"], axis=-1)  # [R] or [b R]
            result |= {"down": leaf["down"], "up": leaf["up"]}
            if scales.ndim == 2:
                result["scale"] = columns
            else:
                down = jnp.asarray(leaf["down"])
                product = down.astype(jnp.float32) * columns.reshape(*(1,) * (down.ndim - 1), -1)
                result["down"] = product.astype(down.dtype)
        if terms := leaf.get("terms"):
            result["terms"] = {name: _term(term, scales) for name, term in terms.items()}
        for name in VECTORS:
            if name in leaf:
                of_rows = jnp.take(scales, leaf[name]["owner"], axis=-1)
                result[name] = jnp.matmul(of_rows, jnp.asarray(leaf[name]["rows"], jnp.float32), precision="highest")
        return result

    result: dict[str, Any] = jax.tree.map(scaled, dict(tree or {}), is_leaf=is_leaf)
    return result


def _term(term: Tree, scales: Array) -> dict[str, Any]:
    """A term with amounts instead of its owner."""
    scale = jnp.take(scales, term["owner"], axis=-1) * term.get("factor", 1)  # [] or [b]
    change = term["change"]
    if scales.ndim == 2:
        # Scales come from the sampler's loop. Without this the change, which they do not touch, would be computed once
        # before the loop, and all layers' changes held as if they were a second model.
        change, scale = jax.lax.optimization_barrier((change, scale))
    for axis in AXES:
        if axis in term:
            return {"change": change, axis: amounts(term[axis], scale)}
    return {"change": change, "amount": scale}
