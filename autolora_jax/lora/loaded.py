"""A LoRA that is loaded: its changes, how strong it is, and on which weights it acts."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

from autolora_jax.lora.attach import LoraReport
from autolora_jax.lora.tree import Tree
from autolora_jax.settings.rules import ROLES


@dataclasses.dataclass(frozen=True)
class Loaded:
    """One of a pipeline's LoRAs. role: a key of ROLES. trees: component -> delta tree, as `attach` gives them."""

    report: LoraReport
    scale: float = 1.0
    role: str = "tuned"
    trees: Mapping[str, Tree] = dataclasses.field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        role = "" if self.role == "tuned" else f", role {self.role}"
        return f"{self.report.name}, scale {self.scale:g}{role}"

    @property
    def tells_apart(self) -> bool:
        """Whether it makes a tuned model differ from its base."""
        return self.role != "all"


def by_kind(
    scales: Float32[np.ndarray, "n steps loras"], loras: Sequence[Loaded], omega: Float32[np.ndarray, "n"]
) -> dict[str, Float32[np.ndarray, "n steps loras"]]:
    """kind of weights -> the LoRAs' scales there, by their roles. omega: ω of each image."""
    factors = {kind: np.ones((len(scales), 1, len(loras)), np.float32) for kind in ROLES["all"]}
    for i, each in enumerate(loras):
        for kind, factor in ROLES[each.role].items():
            factors[kind][:, 0, i] = omega if factor is None else factor
    return {kind: factor * scales for kind, factor in factors.items()}
