"""A LoRA at a lower rank: of each layer the nearest change that fewer ranks can hold, and how far off it is."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from autolora_jax.lora.attach import attach
from autolora_jax.lora.save import change_in
from autolora_jax.lora.tree import VECTORS, Tree, is_leaf, low_rank
from autolora_jax.lora.truncation import Fit, Fits, Truncation, best_product, shorter_product
from autolora_jax.weights.errors import shorten
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.kinds import Change
from autolora_jax.weights.lora.kinds.low_rank import LowRank


def resize(
    lora: LoraFile | Mapping[str, Any],
    truncation: Truncation,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> tuple[dict[str, Any], Fits]:
    """(component -> delta tree with fewer ranks, how well it holds each layer's change) of one LoRA.

    lora: a file that was read, or its delta trees, as lora.attach gives them. LoHa, LoKr and whole differences become
        low rank. A layer with fewer ranks than allowed keeps all that carry something; one whose kernel is not changed
        is left out. Singular values are shared out evenly between `down` and `up`, whatever alpha was. Changes of
        biases and norms, which are no matrices, stay as they are.
    on_progress: called with (layers done, layers, the one that comes next or "").
    Raises ValueError for stacked LoRAs, for DoRAs, whose change is not theirs alone, and for files that bundle
    embeddings.
    """
    if isinstance(lora, LoraFile):
        if lora.embeddings:
            raise ValueError(
                f"{lora.path} brings words of its own ({shorten(list(lora.embeddings))}), which delta trees do not "
                "hold: delete its bundle_emb keys to resize the rest, and load them as embeddings beside it"
            )
        for layer, change in lora.layers.items():
            _require_own(change, f"{lora.path}: {layer.component}/{layer.path}")
        lora = attach(lora)[0]
    leaves = traverse_util.flatten_dict(dict(lora), sep="/", is_leaf=lambda _, node: is_leaf(node))
    resized: dict[str, dict[str, Any]] = {}
    fits: dict[str, Fit] = {}
    for i, (name, leaf) in enumerate(leaves.items()):
        if on_progress:
            on_progress(i, len(leaves), name)
        kept = {entry: leaf[entry] for entry in VECTORS if entry in leaf}
        if found := _resized(name, leaf, truncation):
            low, fits[name] = found
            kept |= low
        if kept:
            resized[name] = kept
    if on_progress:
        on_progress(len(leaves), len(leaves), "")
    if not fits:
        raise ValueError("nothing to resize: no layer's kernel is changed, or conv_rank = 0 leaves out all that are")
    return dict(traverse_util.unflatten_dict(resized, sep="/")), Fits(fits)


def _resized(name: str, leaf: Tree, truncation: Truncation) -> tuple[dict[str, Any], Fit] | None:
    """The low-rank part of a layer's leaf, and its fit; None where there is none."""
    change = change_in(leaf, name)
    _require_own(change, name)
    matrix = change.matrix
    if matrix is None or not (most := truncation.most(change.shape)):
        return None
    if isinstance(matrix, LowRank):
        down, up = (half.astype(np.float32) for half in (matrix.down, matrix.up))
        (down, up), fit = shorter_product(down.reshape(-1, matrix.rank), up, truncation, most)
    else:
        (down, up), fit = best_product(matrix.kernel.reshape(-1, change.shape[-1]), truncation, most)
    return (low_rank(down.reshape(*change.shape[:-1], fit.rank), up), fit) if fit.size else None


def _require_own(change: Change, name: str) -> None:
    """Raises ValueError for a change that is not the LoRA's alone."""
    if change.magnitude:
        raise ValueError(
            f"{name} is a DoRA, whose change depends on the base weights, too: merge it into them (autolora merge), "
            "and extract a LoRA of the rank you want from the result (autolora extract)"
        )
