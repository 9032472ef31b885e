"""LoRA and LoCon: scale · down @ up, scale = alpha / rank. Formula: LyCORIS 4, lycoris/functional/locon.py."""

import dataclasses
import math

import jax
import numpy as np

from autolora_jax.weights.lora.kinds.kind import Change, Kind, Sizes, axis
from autolora_jax.weights.lora.kinds.matrix import (
    ADAPTER,
    Matrix,
    Numbers,
    Shapes,
    Tensors,
    Written,
    from_torch,
    to_torch,
    wide,
)
from autolora_jax.weights.rules import Shape

_NOTHING = 1e-7  # of the largest singular value: below float32's own rounding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank(Matrix):
    """scale · down @ up."""

    down: Numbers  # [*window, in, rank]
    up: Numbers  # [rank, out]

    @property
    def kernel(self) -> Numbers:
        return wide(self.down) @ (wide(self.up) * self.scale)

    @property
    def shape(self) -> Shape:
        return (*self.down.shape[:-1], self.up.shape[-1])

    @property
    def rank(self) -> int:
        return len(self.up)

    def scaled(self) -> "LowRank":
        # In C order before anything else: numpy casts a transposed array several times slower.
        return LowRank(self.down, wide(np.ascontiguousarray(self.up)) * np.float32(self.scale))

    def at(self, outputs: np.ndarray) -> "LowRank":
        return dataclasses.replace(self, up=self.up[:, outputs])

    def tensors(self) -> Written:
        down, up = self._torch()
        return {"lora_down.weight": down, "lora_up.weight": up, "alpha": self.said_alpha}

    def peft(self) -> Written:
        """By PEFT's endings; alpha stands in its settings."""
        down, up = self._torch()
        return {"lora_A.weight": down, "lora_B.weight": up}

    def _torch(self) -> tuple[np.ndarray, np.ndarray]:
        ones = (1,) * (self.down.ndim - 2)
        return to_torch(self.down), self.up.T.reshape(-1, self.rank, *ones)


def as_low_rank(matrix: Matrix) -> LowRank:
    """Any matrix as the low rank that it also is, of the least rank known without rounding: exact in float32."""
    if isinstance(matrix, LowRank):
        return matrix
    *inner, outputs = matrix.shape
    return LowRank(*(matrix.halves(min(int(np.prod(inner)), outputs)) or decomposed(matrix.kernel)))


def decomposed(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(down, up) of a kernel by its singular values, without those that are nothing."""
    flat = kernel.reshape(-1, kernel.shape[-1]).astype(np.float64)
    u, sigma, v = np.linalg.svd(flat, full_matrices=False)
    rank = max(1, int((sigma > _NOTHING * sigma[0]).sum()))
    root = np.sqrt(sigma[:rank])
    return wide(u[:, :rank] * root).reshape(*kernel.shape[:-1], rank), wide(root[:, None] * v[:rank])


def _misfit(shapes: Shapes, kernel: Shape) -> str | None:
    down, up = shapes["down"], shapes["up"]
    window, (inputs, outputs) = kernel[:-2] or (1, 1), kernel[-2:]
    if min(len(down), len(up)) < 2 or up[1] != down[0] or down[0] < 1:
        return f"down {list(down)} and up {list(up)} share no rank"
    rank = down[0]
    if "mid" in shapes:
        if shapes["mid"] != (rank, rank, *window):
            return f"core {list(shapes['mid'])}, but the layer takes {[rank, rank, *window]}"
        window = (1, 1)
    # A Linear's halves may be stored as 1x1 convolutions, and the reverse; ComfyUI stores a convolution's flat.
    if not (fits(down, (rank, inputs, *window)) and fits(up, (outputs, rank))):
        ones = [1] * (len(kernel) - 2)
        spread = list(window) if ones else []
        return (
            f"down {list(down)} and up {list(up)}, but the layer takes "
            f"{[rank, inputs, *spread]} and {[outputs, rank, *ones]}"
        )
    if shapes.get("up_bias", (outputs,)) != (outputs,):
        return f"bias {list(shapes['up_bias'])} instead of {[outputs]}"
    return None


def fits(shape: Shape, wanted: Shape) -> bool:
    """Whether a file's [out, in …] is the wanted one, but for axes of length 1 at its end and a flattened window."""
    bare = [*shape]
    while len(bare) > 2 and bare[-1] == 1:
        bare.pop()
    as_it_is = [*wanted]
    while len(as_it_is) > 2 and as_it_is[-1] == 1:
        as_it_is.pop()
    return bare in (as_it_is, [wanted[0], math.prod(wanted[1:])])


def with_core(core: np.ndarray, down: np.ndarray) -> np.ndarray:
    """The window's core [p, q, kh, kw] and `down` [q, in] multiplied out, which keeps them small: [p, in, kh, kw]."""
    return np.einsum("pq...,qi->pi...", wide(core), wide(down))


def _read(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    """With LoCon's core `mid`: down[p] = Σ_q mid[p, q] · down[q]. PEFT's bias is scaled as the product is."""
    down, up = tensors["down"], tensors["up"]
    if "mid" in tensors:
        down = with_core(tensors["mid"], down.reshape(down.shape[:2]))
    matrix = LowRank(from_torch(down, kernel[:-2]), up.reshape(up.shape[:2]).T, alpha=alpha)
    return Change(matrix, bias=wide(tensors["up_bias"]) * np.float32(matrix.scale) if "up_bias" in tensors else None)


LORA = Kind(
    "LoRA",
    parts={
        # Mochi's, which ComfyUI reads, too, have no `.weight`.
        "down": rf"lora_down\.weight|lora_A{ADAPTER}(\.weight)?|lora(_linear_layer)?\.down\.weight",
        "up": rf"lora_up\.weight|lora_B{ADAPTER}(\.weight)?|lora(_linear_layer)?\.up\.weight",
        "mid": r"lora_mid\.weight",
        "up_bias": rf"lora_(up|B){ADAPTER}\.bias|lora(_linear_layer)?\.up\.bias",
    },
    needs=(("down", "up"),),
    misfit=_misfit,
    read=_read,
    sizes=lambda shapes: Sizes(axis(shapes, "down", 0), axis(shapes, "down", 1)),
    product=True,
)
