"""The LoRA delta as its own tree: attach a file's changes, stack several, give them scales, merge them, report on them.

A delta tree has the paths of the base tree (of one network, or of all: {"unet": …, "text_encoder": …}), and a leaf per
adapted layer, whose change is  ΔW = Σ_r down[..., r] · up[r] :

    {"down": the kernel's shape with out -> R, "up": [R, out], "owner": int32 [R]}

alpha / rank is part of `up`. Several LoRAs stand one after another along R, `owner` says whose a column is. Networks
know no owners and no scales: `at_scale` turns the tree into what models/delta.py reads.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, DTypeLike, Float

from autolora_jax.models import delta
from autolora_jax.weights.lora.change import LowRank
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.metadata import (
    alpha_histogram,
    by_component,
    histogram,
    listing,
    training_summary,
    trigger_words,
)
from autolora_jax.weights.lora.names import Layer

Tree = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class LoraReport:
    """What was loaded from a LoRA file. print() it."""

    path: str
    dialect: str
    modules: Mapping[str, int]  # component -> layers changed
    ranks: Mapping[int, int]  # rank -> layers that have it
    alphas: Mapping[float | None, int]  # alpha -> layers that have it; None: not in the file, so alpha = rank
    parameters: int
    trigger_words: tuple[str, ...]  # the author's phrase, or the training captions' most frequent tags; may be empty
    training: Mapping[str, str]  # what the header says: base model, steps, resolution …

    @property
    def name(self) -> str:
        """The file's name without its ending, as prompts and picture parameters spell it."""
        return Path(self.path).stem

    def __str__(self) -> str:
        rows = [
            ("dialect", self.dialect),
            ("layers", ", ".join(f"{n} in {component}" for component, n in self.modules.items())),
            ("rank", histogram(self.ranks)),
            ("alpha", alpha_histogram(self.alphas)),
            ("parameters", f"{self.parameters:,}"),
            ("trigger words", ", ".join(self.trigger_words) or "none in the file"),
        ]
        return listing(self.path, [*rows, *self.training.items()])


def attach(file: LoraFile, dtype: DTypeLike = jnp.float32) -> tuple[dict[str, Any], LoraReport]:
    """(component -> delta tree, report) of one LoRA. Leaves are numpy arrays on the host, for the caller to place.

    dtype: of `down` and `up`. alpha / rank is multiplied in float32 before the cast.
    """
    trees: dict[str, Any] = {}
    for layer, change in file.layers.items():
        node = trees.setdefault(layer.component, {})
        for name in layer.path.split("/"):
            node = node.setdefault(name, {})
        node |= _leaf(layer, change, dtype)
    return trees, report(file)


def _leaf(layer: Layer, change: LowRank, dtype: DTypeLike) -> dict[str, np.ndarray]:
    down = change.down.transpose(2, 3, 1, 0).reshape(*layer.kernel[:-1], change.rank)
    up = change.up.T.astype(np.float32) * np.float32(change.scale)
    owner = np.zeros(change.rank, np.int32)
    return {"down": np.ascontiguousarray(down, dtype), "up": np.ascontiguousarray(up, dtype), "owner": owner}


def report(file: LoraFile) -> LoraReport:
    """What a LoRA file holds."""
    changes = file.layers.values()
    tensors = {id(tensor): tensor.size for change in changes for tensor in (change.down, change.up)}  # some are shared
    return LoraReport(
        path=str(file.path),
        dialect=file.dialect,
        modules=by_component(layer.component for layer in file.layers),
        ranks=dict(Counter(change.rank for change in changes)),
        alphas=dict(Counter(change.alpha for change in changes)),
        parameters=sum(tensors.values()),
        trigger_words=trigger_words(file.metadata),
        training=training_summary(file.metadata),
    )


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
