"""The difference of the weights themselves, `diff`: of a kernel, or of a norm's weight."""

import dataclasses

import jax
import numpy as np

from autolora_jax.weights.lora.kinds.kind import Change, Kind, Sizes, axis
from autolora_jax.weights.lora.kinds.low_rank import fits
from autolora_jax.weights.lora.kinds.matrix import Matrix, Numbers, Shapes, Tensors, Written, from_torch, to_torch, wide
from autolora_jax.weights.rules import Shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Full(Matrix):
    """ΔW as it is."""

    whole: Numbers  # [*window, in, out]

    @property
    def kernel(self) -> Numbers:
        return wide(self.whole)

    def at(self, outputs: np.ndarray) -> "Full":
        return Full(self.whole[..., outputs])

    def tensors(self) -> Written:
        return {"diff": to_torch(self.whole)}


def _misfit(shapes: Shapes, kernel: Shape) -> str | None:
    wanted: Shape = kernel if len(kernel) == 1 else (kernel[-1], kernel[-2], *kernel[:-2])
    if shapes["diff"] != wanted if len(kernel) == 1 else not fits(shapes["diff"], wanted):
        return f"diff {list(shapes['diff'])}, but the layer takes {list(wanted)}"
    return None


def _read(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    if len(kernel) == 1:
        return Change(weight=tensors["diff"])
    return Change(Full(from_torch(tensors["diff"], kernel[:-2])))


DIFFERENCE = Kind(
    "full difference (diff)",
    parts={"diff": "diff"},
    needs=(("diff",),),
    norms=True,
    scaled=lambda parts: False,
    misfit=_misfit,
    read=_read,
    sizes=lambda shapes: Sizes(inputs=axis(shapes, "diff", 1)),
)
