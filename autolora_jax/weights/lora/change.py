"""A layer's change as a LoRA file stores it, one class per kind, with the check of its shapes.

Kernels are given in our layout: Dense [in, out], Conv [kh, kw, in, out].
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from autolora_jax.weights.rules import Shape


@dataclasses.dataclass(frozen=True)
class LowRank:
    """LoRA and LoCon: scale · up @ down with scale = alpha / rank."""

    down: np.ndarray  # [rank, in, kh, kw], torch's layout; a Dense layer's window is 1x1
    up: np.ndarray  # [out, rank]
    alpha: float | None  # None: the file says nothing, which means alpha = rank

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank. PEFT's rslora (alpha / √rank) is already turned into such an alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def low_rank(tensors: Mapping[str, np.ndarray], kernel: Shape, alpha: float | None) -> LowRank:
    """The change of a layer from its parts, whose shapes `low_rank_misfit` has passed."""
    down, up = tensors["down"], tensors["up"]
    return LowRank(down.reshape(*down.shape[:2], *(kernel[:-2] or (1, 1))), up.reshape(up.shape[:2]), alpha)


def low_rank_misfit(shapes: Mapping[str, Shape], kernel: Shape) -> str | None:
    """What is wrong with the shapes of the parts; None when they fit the kernel."""
    down, up = shapes["down"], shapes["up"]
    window, (inputs, outputs) = kernel[:-2], kernel[-2:]
    if len(down) not in (2, 4) or len(up) not in (2, 4) or up[1] != down[0] or down[0] < 1:
        return f"down {list(down)} and up {list(up)} share no rank"
    # Both layouts of a matrix are in use: a Linear's halves stored as 1x1 convolutions, and the reverse.
    as_conv = [(*shape, 1, 1)[:4] for shape in (down, up)]
    if as_conv != [(down[0], inputs, *(window or (1, 1))), (outputs, down[0], 1, 1)]:
        ones = [1] * len(window)
        return (
            f"down {list(down)} and up {list(up)}, but the layer takes "
            f"{[down[0], inputs, *window]} and {[outputs, down[0], *ones]}"
        )
    return None
