"""A LoRA that is loaded: its changes, its name, how strong it is, step by step, and on which weights it acts."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from autolora_jax.lora.attach import LoraReport
from autolora_jax.lora.blocks import Factors, weighted
from autolora_jax.lora.tree import Tree
from autolora_jax.settings.rules import ROLES

# A number; or numbers over the run, its first step to its last, linear between them; or a function of the progress, 0
# at the first step and 1 at the last.
Strength = float | int | Sequence[Any] | np.ndarray | Callable[[float], Any]


def over(scale: Strength, steps: int) -> Float32[np.ndarray, "steps"]:
    """A strength at each of a run's steps, or once, [1], where that is all."""
    progress = np.linspace(0, 1, steps)
    if callable(scale):
        return np.array([float(scale(float(p))) for p in progress], np.float32)
    if isinstance(scale, Sequence | np.ndarray):
        given = np.array(scale, np.float32)
        return np.interp(progress, np.linspace(0, 1, len(given)), given).astype(np.float32)
    return np.array([scale], np.float32)


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One of a pipeline's LoRAs. Raises ValueError for a strength that is no number.

    role: a key of ROLES. enabled: whether it acts at all. blocks: factors on its layers, as `read_blocks` gives them.
    trees: component -> delta tree, as `attach` gives them.
    """

    report: LoraReport
    name: str = ""
    scale: Strength = 1.0
    role: str = "tuned"
    enabled: bool = True
    blocks: Factors = dataclasses.field(default_factory=dict)
    trees: Mapping[str, Tree] = dataclasses.field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.over(2)

    def __str__(self) -> str:
        scale = "by step" if callable(self.scale) or np.ndim(self.scale) else f"{self.scale:g}"
        more = [] if self.role == "tuned" else [f"role {self.role}"]
        more += (["block weights"] if self.blocks else []) + ([] if self.enabled else ["disabled"])
        return ", ".join([self.name, f"scale {scale}", *more])

    @property
    def tells_apart(self) -> bool:
        """Whether it makes a tuned model differ from its base."""
        return self.enabled and self.role != "all"

    def over(self, steps: int) -> Float32[np.ndarray, "steps"]:
        """Its strength at each of a run's steps, or once, [1], where that is all. Raises ValueError for no number."""
        try:
            values = over(self.scale, steps)
        except (TypeError, ValueError):
            values = np.array([np.nan], np.float32)
        if not np.isfinite(values).all():
            raise ValueError(
                f"the scale of the LoRA {self.name} is {self.scale!r}: need a finite number, several over the steps, "
                "or a function of the progress, from 0 to 1, that gives one"
            )
        return values

    def tree(self, component: str) -> Tree:
        """Its delta tree of a component, at its block weights."""
        tree = self.trees.get(component, {})
        return weighted(tree, self.blocks[component]) if component in self.blocks else tree


def by_kind(
    scales: Float32[np.ndarray, "n steps loras"], loras: Sequence[Loaded], omega: Float32[np.ndarray, "n"]
) -> dict[str, Float32[np.ndarray, "n steps loras"]]:
    """kind of weights -> the LoRAs' scales there, by their roles. omega: ω of each image."""
    factors = {kind: np.ones((len(scales), 1, len(loras)), np.float32) for kind in ROLES["all"]}
    for i, each in enumerate(loras):
        for kind, factor in ROLES[each.role].items():
            factors[kind][:, 0, i] = omega if factor is None else factor
    return {kind: factor * scales for kind, factor in factors.items()}
