"""A LoRA file as a delta tree, and the report on what it holds."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import DTypeLike

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
