"""The student: LoRAs as they are loaded, joined into one with more ranks; its loss; the file that it becomes.

targets        learned (low rank, trained)          fixed (as it is)
full, cfg      the LoRAs at their scales, more      what they add to biases and norms
dial           a new LoRA                           the LoRAs, of whatever kind
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import Array, Float

from autolora_jax import lora
from autolora_jax.config import ConfigError
from autolora_jax.lora.tree import VECTORS, low_rank
from autolora_jax.sampler import Model
from autolora_jax.settings.distilling import DistillConfig
from autolora_jax.training.deltas import choose_layers, new_delta, over_pairs, stored_delta
from autolora_jax.weights.lora.embeddings import Embeddings
from autolora_jax.weights.lora.names import Layer, Targets, layers

Tree = Mapping[str, Any]


class Start(NamedTuple):
    """A student before its first step. Everything is on the host.

    layers: that learn. learned: of the denoiser, a tree of {"down", "up"}, at scale 1.
    fixed: delta trees of the denoiser that stay, and their scales.
    beside: component -> delta tree of what the file holds beside what was learned, at scale 1. embeddings: in it, too.
    """

    layers: Sequence[Layer]
    learned: Tree
    fixed: tuple[Tree, ...]
    scales: tuple[float, ...]
    beside: Mapping[str, Tree]
    embeddings: Embeddings


def begin(
    loras: Sequence[tuple[lora.Loaded, float]],
    model: Targets,
    denoiser: str,
    config: DistillConfig,
    embeddings: Embeddings,
) -> Start:
    """The student of LoRAs at their scales. model: as pipe.lora_targets() gives it. embeddings: that the LoRAs brought.

    Raises ConfigError for LoRAs that are not low rank, where they become a part of the file.
    """
    chosen = choose_layers({denoiser: model[denoiser]}, config.layers)
    if config.target == "dial":
        learned = new_delta(chosen, config.rank, config.seed)[denoiser]
        fixed = tuple(each.tree(denoiser) for each, _ in loras)
        return Start(chosen, learned, fixed, tuple(scale for _, scale in loras), {}, {})
    names = ", ".join(each.report.path for each, _ in loras)
    joined = {name: _joined([(each.tree(name), scale) for each, scale in loras], names) for name in model}
    own = _leaves(joined[denoiser])
    pairs = {path for path, leaf in own.items() if "up" in leaf}
    wanted = [layer for layer in layers({denoiser: model[denoiser]}) if layer in chosen or layer.path in pairs]
    more = _leaves(new_delta(wanted, config.rank, config.seed)[denoiser])
    for path in pairs:
        down, up = (np.asarray(own[path][half], np.float32) for half in ("down", "up"))
        more[path] = {
            "down": np.concatenate([down, more[path]["down"]], axis=-1),
            "up": np.concatenate([up, more[path]["up"]], axis=0),
        }
    vectors = {path: kept for path, leaf in own.items() if (kept := {n: leaf[n] for n in VECTORS if n in leaf})}
    beside = {name: tree for name, tree in {**joined, denoiser: _nested(vectors)}.items() if tree}
    fixed = (beside[denoiser],) if denoiser in beside else ()
    return Start(wanted, _nested(more), fixed, (1.0,) * len(fixed), beside, embeddings)


def _joined(trees: Sequence[tuple[Tree, float]], names: str) -> dict[str, Any]:
    """Delta trees of a component as one that has their scales in it."""
    stacked = _leaves(lora.stack([tree for tree, _ in trees]))
    scales = np.array([scale for _, scale in trees], np.float32)
    result: dict[str, Any] = {}
    for path, leaf in stacked.items():
        if "terms" in leaf:
            raise ConfigError(
                f"{names}: {path} is changed by more than a low rank (LoHa, LoKr, DoRA …), which one LoRA file can't "
                "take in. Make it one first, and see what that loses: autolora resize FILE --rank 64 --out LOW"
            )
        node: dict[str, Any] = {}
        if "up" in leaf:
            up = np.asarray(leaf["up"], np.float32) * scales[leaf["owner"]][:, None]
            node |= low_rank(np.asarray(leaf["down"], np.float32), up)
        for name in VECTORS:
            if name in leaf:
                rows = (leaf[name]["rows"] * scales[leaf[name]["owner"]][:, None]).sum(axis=0, keepdims=True)
                node[name] = {"rows": rows, "owner": np.zeros(1, np.int32)}
        result[path] = node
    return _nested(result)


def _leaves(tree: Tree) -> dict[str, Any]:
    """Path -> a layer's change, or its pair."""
    return traverse_util.flatten_dict(
        dict(tree), sep="/", is_leaf=lambda _, node: lora.is_leaf(node) or (bool(node) and "down" in node)
    )


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    return dict(traverse_util.unflatten_dict(dict(leaves), sep="/"))


def stacked(start: Start, learned: Tree) -> dict[str, Any]:
    """The student's denoiser as one delta tree, to draw with at `start.scales` and the strength of what it learned."""
    return lora.stack([*start.fixed, stored_delta(learned, 1.0)])


def model_of(start: Start, learned: Tree, params: Tree) -> Model:
    """What the sampler draws the student with; see `stacked`."""
    return Model(params, lora.padded(stacked(start, learned), params), {})


def most_ranks(learned: Tree) -> int:
    """The ranks of the layer that has most."""
    return max(len(pair["up"]) for pair in _leaves(learned).values())


def trees_of(start: Start, learned: Tree, denoiser: str) -> dict[str, Any]:
    """Component -> delta tree of the file: what was learned, and what the LoRAs do beside it."""
    leaves = _leaves(stored_delta(learned, 1.0))
    for path, leaf in _leaves(start.beside.get(denoiser, {})).items():
        leaves[path] = {**leaves.get(path, {}), **leaf}
    return {**start.beside, denoiser: _nested(leaves)}


@dataclasses.dataclass(frozen=True)
class StudentLoss:
    """A `step.Loss`: how far a student's predictions are from those that a teacher's are. Over batches of rows

        {"x": [b h w c], "timestep": [b], "target": [b h w c], "strength": [b], "told": keyword -> [b …]}

    x: as the network sees it. target: what it should predict. strength: of what is learned.
    frozen: {"params", "fixed": stacked delta trees that stay, "scales": [loras] of these}.
    """

    denoiser: nn.Module

    def __call__(self, trainable: Tree, frozen: Tree, batch: Tree) -> tuple[Float[Array, "b"], dict[str, Array]]:
        rows = len(batch["strength"])
        fixed = lora.at_scale(frozen["fixed"], jnp.tile(frozen["scales"][None], (rows, 1)))

        def at_strength(pair: Tree) -> dict[str, Array]:
            scale = jnp.tile(batch["strength"][:, None], (1, pair["up"].shape[0]))
            return {"down": pair["down"], "up": pair["up"], "scale": scale}

        prediction = self.denoiser.apply(
            {"params": frozen["params"], "lora": _beside(fixed, over_pairs(at_strength, trainable))},
            batch["x"],
            batch["timestep"],
            **batch["told"],
        )
        assert isinstance(prediction, jax.Array)
        error = prediction.astype(jnp.float32) - batch["target"]
        return jnp.square(error).mean(axis=(1, 2, 3)), {}


def _beside(fixed: Tree, learned: Tree) -> dict[str, Any]:
    """Two "lora" collections with a scale per image as one."""
    if "down" not in learned:
        return {**fixed, **{name: _beside(fixed.get(name, {}), node) for name, node in learned.items()}}
    if "down" not in fixed:
        return {**fixed, **learned}
    axes = {"down": -1, "up": 0, "scale": -1}
    parts = {n: jnp.concatenate([fixed[n].astype(learned[n].dtype), learned[n]], axis=a) for n, a in axes.items()}
    return {**fixed, **parts}
