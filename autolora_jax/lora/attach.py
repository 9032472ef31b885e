"""A LoRA file as a delta tree, and the report on what it holds."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jaxtyping import DTypeLike

from autolora_jax.lora.leaves import leaf_of
from autolora_jax.weights.errors import printable
from autolora_jax.weights.lora.files import LoraFile
from autolora_jax.weights.lora.metadata import (
    alpha_histogram,
    by_component,
    histogram,
    listing,
    training_summary,
    trigger_words,
)


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
    embeddings: tuple[str, ...] = ()  # words that come with it

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
            *([("embeddings", ", ".join(map(printable, self.embeddings)))] if self.embeddings else []),
            ("trigger words", ", ".join(self.trigger_words) or "none in the file"),
        ]
        return listing(self.path, [*rows, *self.training.items()])


def attach(
    file: LoraFile, dtype: DTypeLike = jnp.float32, base: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], LoraReport]:
    """(component -> delta tree, report) of one LoRA. Leaves are numpy arrays on the host, for the caller to place.

    dtype: of what is multiplied with kernels. alpha / rank is multiplied in float32 before the cast.
    base: component -> parameters, which DoRA's norms need.
    Raises ValueError for a DoRA without them, and WeightsError for numbers that the dtype can't hold.
    """
    trees: dict[str, Any] = {}
    for layer, change in file.layers.items():
        node = trees.setdefault(layer.component, {})
        for name in layer.path.split("/"):
            node = node.setdefault(name, {})
        node |= leaf_of(change, layer, dtype, base)
    return trees, report(file)


def report(file: LoraFile) -> LoraReport:
    """What a LoRA file holds."""
    changes = file.layers.values()
    tensors = {id(array): array.size for change in changes for array in change.arrays()}  # some are shared
    ranked = [(rank, change.alpha) for change in changes if (rank := change.rank) is not None]
    return LoraReport(
        path=str(file.path),
        dialect=file.dialect,
        modules=by_component(layer.component for layer in file.layers),
        ranks=dict(Counter(rank for rank, _ in ranked)),
        alphas=dict(Counter(alpha for _, alpha in ranked)),
        parameters=sum(tensors.values()),
        trigger_words=trigger_words(file.metadata),
        training=training_summary(file.metadata),
        embeddings=tuple(file.embeddings),
    )
