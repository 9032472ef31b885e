"""A LoRA file as a delta tree, see tree.py, and the report on what it holds."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from jaxtyping import DTypeLike

from autolora_jax.lora.tree import low_rank
from autolora_jax.shown import Shown
from autolora_jax.weights.errors import printable
from autolora_jax.weights.files import require_finite
from autolora_jax.weights.lora import metadata
from autolora_jax.weights.lora.distilled import Distilled, distilled_of
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.kinds import Change
from autolora_jax.weights.lora.kinds.dora import Magnitude
from autolora_jax.weights.lora.kinds.low_rank import LowRank
from autolora_jax.weights.lora.kinds.matrix import Matrix
from autolora_jax.weights.lora.names import Layer


@dataclasses.dataclass(frozen=True)
class LoraReport(Shown):
    """What was loaded from a LoRA file. print() it."""

    path: str
    dialect: str
    modules: Mapping[str, int]  # component -> layers changed
    ranks: Mapping[int, int]  # rank -> layers that have it
    alphas: Mapping[float | None, int]  # alpha -> layers that have it; None: not in the file, so alpha = rank
    parameters: int
    trigger_words: tuple[str, ...]  # the author's phrase, or the training captions' most frequent tags; may be empty
    training: Mapping[str, str]  # what the header says: base model, steps, resolution …
    embeddings: tuple[str, ...] = ()  # words that come with it
    distilled: Distilled | None = None  # of one that stands for a guidance
    notes: tuple[str, ...] = ()  # what of the file was left out, or read in a way worth a word

    @property
    def name(self) -> str:
        """The file's name without its ending, as prompts and picture parameters spell it."""
        return Path(self.path).stem

    def __str__(self) -> str:
        rows = [
            ("dialect", self.dialect),
            ("layers", ", ".join(f"{n} in {component}" for component, n in self.modules.items())),
            ("rank", metadata.histogram(self.ranks)),
            ("alpha", metadata.alpha_histogram(self.alphas)),
            ("parameters", f"{self.parameters:,}"),
            *([("embeddings", ", ".join(map(printable, self.embeddings)))] if self.embeddings else []),
            ("trigger words", ", ".join(self.trigger_words) or "none in the file"),
            *([("stands for", str(self.distilled))] if self.distilled else []),
            *(("note", note) for note in self.notes),
        ]
        return metadata.listing(self.path, [*rows, *self.training.items()])


def attach(
    file: LoraFile, dtype: DTypeLike = jnp.float32, base: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], LoraReport]:
    """(component -> delta tree, report) of one LoRA. Leaves are numpy arrays on the host, for the caller to place.

    dtype: of what is multiplied with kernels. alpha / rank is multiplied in float32 before the cast.
    base: component -> parameters, which DoRA's norms and PEFT's IA3 need.
    Raises ValueError for such a file without them, and WeightsError for numbers that the dtype can't hold.
    """
    leaves = {
        f"{layer.component}/{layer.path}": _leaf(change, layer, dtype, base) for layer, change in file.layers.items()
    }
    return dict(traverse_util.unflatten_dict(leaves, sep="/")), report(file)


@np.errstate(over="ignore", invalid="ignore")  # `_as` says it with the layer's name
def _leaf(change: Change, layer: Layer, dtype: DTypeLike, base: Mapping[str, Any] | None) -> dict[str, Any]:
    leaf: dict[str, Any] = {}
    if change.matrix is not None:
        matrix = change.matrix.scaled()
        cast = jax.tree_util.tree_map_with_path(
            lambda path, part: _as(part, dtype, layer, jax.tree_util.keystr(path, simple=True, separator=" ")), matrix
        )
        if isinstance(cast, LowRank) and not change.magnitude:
            leaf |= low_rank(cast.down, cast.up)
        else:
            leaf["terms"] = {"0": {"change": cast, "owner": np.int32(0)}}
        if change.magnitude:
            leaf["terms"]["0"][change.magnitude.axis] = _row(change.magnitude, matrix, layer, base)
    bias = _grown_bias(change, layer, base)
    for name, vector in (("bias", bias), ("weight", change.weight)):
        if vector is not None:
            leaf[name] = {"rows": _as(vector, np.float32, layer, name)[None], "owner": np.zeros(1, np.int32)}
    return leaf


def _as(part: np.ndarray, dtype: DTypeLike, layer: Layer, name: str) -> np.ndarray:
    """The array in C order and in a dtype. Raises WeightsError for numbers that are too large for it."""
    cast = np.ascontiguousarray(part).astype(dtype, copy=False)
    require_finite(cast, f"{layer.component} {layer.path}: {name}, times alpha / rank,")
    return cast


def _row(magnitude: Magnitude, matrix: Matrix, layer: Layer, base: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    row = magnitude.row(_params(layer, base)["kernel"], matrix)
    return {**row, "magnitude": _as(row["magnitude"], np.float32, layer, "magnitude")}


def _params(layer: Layer, base: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The layer's own."""
    if base is None:
        raise ValueError("this kind of change is one of the base weights, too: attach it with the base parameters")
    node: Any = base[layer.component]
    for name in layer.path.split("/"):
        node = node[name]
    found: Mapping[str, Any] = node
    return found


def _grown_bias(change: Change, layer: Layer, base: Mapping[str, Any] | None) -> np.ndarray | None:
    """What is added to the bias: by the file, and by a change of the outputs' whole."""
    if change.matrix is None or change.matrix.bias_gain is None or "bias" not in (params := _params(layer, base)):
        return change.bias
    grown: np.ndarray = np.asarray(params["bias"], np.float32) * change.matrix.bias_gain
    return grown if change.bias is None else grown + change.bias


def report(file: LoraFile) -> LoraReport:
    """What a LoRA file holds."""
    changes = file.layers.values()
    tensors = {id(array): array.size for array in jax.tree.leaves(list(changes))}  # some are shared
    ranked = [(rank, m.alpha) for change in changes if (m := change.matrix) and (rank := m.rank) is not None]
    return LoraReport(
        path=str(file.path),
        dialect=file.dialect,
        modules=metadata.by_component(layer.component for layer in file.layers),
        ranks=dict(Counter(rank for rank, _ in ranked)),
        alphas=dict(Counter(alpha for _, alpha in ranked)),
        parameters=sum(tensors.values()),
        trigger_words=metadata.trigger_words(file.metadata),
        training=metadata.training_summary(file.metadata),
        embeddings=tuple(file.embeddings),
        distilled=distilled_of(file.metadata),
        notes=file.notes,
    )
