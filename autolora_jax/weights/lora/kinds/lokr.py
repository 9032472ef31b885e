"""LoKr: scale · left ⊗ right. Formula: LyCORIS 4, lycoris/functional/lokr.py."""

import dataclasses
from itertools import chain

import jax
import numpy as np

from autolora_jax.weights.lora.kinds.kind import Change, Kind, Sizes
from autolora_jax.weights.lora.kinds.low_rank import decomposed
from autolora_jax.weights.lora.kinds.matrix import Matrix, Numbers, Shapes, Tensors, Written, from_torch, to_torch, wide
from autolora_jax.weights.rules import Shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Kronecker(Matrix):
    """scale · left ⊗ right. Factors that the file has as products are multiplied out, in float32: they are small."""

    left: Numbers  # [b, a]
    right: Numbers  # [*window, d, c] with b·d = in, a·c = out
    rank: int | None = dataclasses.field(default=None, metadata={"static": True})  # of the factors in the file

    @property
    def kernel(self) -> Numbers:
        (b, a), (*window, d, c) = self.left.shape, self.right.shape
        left = (wide(self.left) * self.scale).reshape(*(1 for _ in window), b, 1, a, 1)
        return (left * wide(self.right).reshape(*window, 1, d, 1, c)).reshape(*window, b * d, a * c)

    def scaled(self) -> "Kronecker":
        return Kronecker(wide(self.left) * np.float32(self.scale), self.right)

    def at(self, outputs: np.ndarray) -> "Kronecker | None":
        """A product again where all outputs of some of `left`'s are taken."""
        c = self.right.shape[-1]
        blocks = outputs.reshape(-1, c) if outputs.size % c == 0 else np.zeros((0, c), int)
        if blocks.size and (blocks == blocks[:, :1] + np.arange(c)).all() and (blocks[:, 0] % c == 0).all():
            return dataclasses.replace(self, left=self.left[:, blocks[:, 0] // c])
        return None

    def halves(self, most: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The products of the factors' own halves: its rank is that of one times that of the other."""
        (left_down, left_up), (right_down, right_up) = (decomposed(x) for x in (self.scaled().left, wide(self.right)))
        if len(left_up) * len(right_up) >= most:
            return None
        return Kronecker(left_down, right_down).kernel, Kronecker(left_up, right_up).kernel

    def tensors(self) -> Written:
        # Whole factors have no alpha: whatever their scale was, it is in one of them now.
        left = self.left if self.scale == 1 else self.scaled().left
        return {"lokr_w1": to_torch(left), "lokr_w2": to_torch(self.right)}


def _misfit(shapes: Shapes, kernel: Shape) -> str | None:
    inputs, outputs, window = kernel[-2], kernel[-1], kernel[:-2] or (1, 1)
    said = ", ".join(f"{part} {list(shape)}" for part, shape in shapes.items() if part.startswith("lokr"))
    left, right = (_factor_shape(shapes, i) for i in (1, 2))
    if left is None or right is None:
        return f"{said}: the halves of a factor do not fit each other"
    # The second factor holds the window, as axes of its own or flat among its inputs.
    wanted = [(inputs, *window), (inputs * window[0] * window[1],)] + ([(inputs,)] if window == (1, 1) else [])
    if len(left) != 2 or left[0] * right[0] != outputs or (left[1] * right[1], *right[2:]) not in wanted:
        return f"{said}: their product is no {[outputs, inputs, *kernel[:-2]]}"
    return None


def _factor_shape(shapes: Shapes, i: int) -> Shape | None:
    """[out, in …] of a factor; None where there is none, or its halves do not fit each other."""
    if f"lokr_w{i}" in shapes:
        return shapes[f"lokr_w{i}"] if len(shapes[f"lokr_w{i}"]) in (2, 4) else None
    a, b, core = (shapes.get(f"lokr_{part}") for part in (f"w{i}_a", f"w{i}_b", f"t{i}"))
    if a is None or b is None or len(a) != 2 or len(b) != 2:
        return None
    if core is None:
        return (a[0], b[1]) if a[1] == b[0] > 0 else None
    return (a[1], b[1], *core[2:]) if len(core) == 4 and core[:2] == (a[0], b[0]) and all(core) else None


def _read(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    """Where both factors are whole nothing has a rank, and LyCORIS's scale is 1 whatever the file's alpha."""
    left, right = from_torch(_factor(tensors, 1), ()), from_torch(_factor(tensors, 2), kernel[:-2])
    ranks = [len(tensors[half]) for half in _HALVES if half in tensors]
    return Change(Kronecker(left, right, ranks[0], alpha=alpha) if ranks else Kronecker(left, right))


def _factor(tensors: Tensors, i: int) -> np.ndarray:
    if f"lokr_w{i}" in tensors:
        return tensors[f"lokr_w{i}"]
    a, b = (wide(tensors[f"lokr_w{i}_{half}"]) for half in "ab")
    if f"lokr_t{i}" in tensors:
        return np.einsum("pq...,po,qi->oi...", wide(tensors[f"lokr_t{i}"]), a, b, optimize=True)
    return a @ b


def _sizes(shapes: Shapes) -> Sizes:
    rank = next((shapes[half][0] for half in _HALVES if shapes.get(half)), None)
    left, right = _factor_shape(shapes, 1), _factor_shape(shapes, 2)
    if not left or not right:
        return Sizes(rank)
    return Sizes(rank, left[1] * right[1], " ⊗ ".join("x".join(map(str, shape)) for shape in (left, right)))


_HALVES = ("lokr_w1_b", "lokr_w2_b")  # the first that a file has says the rank
_LEFT, _RIGHT = (((f"lokr_w{i}",), (f"lokr_w{i}_a", f"lokr_w{i}_b")) for i in (1, 2))
LOKR = Kind(
    "LoKr (LyCORIS)",
    parts={part: part for part in (*chain(*_LEFT, *_RIGHT), "lokr_t2")},
    needs=tuple(left + right for left in _LEFT for right in _RIGHT),
    misfit=_misfit,
    read=_read,
    sizes=_sizes,
    scaled=lambda parts: not {*_HALVES}.isdisjoint(parts),  # ai-toolkit's whole factors have 9999999999, or infinity
    product=True,
)
