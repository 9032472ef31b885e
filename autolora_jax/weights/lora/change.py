"""A layer's change as a LoRA file stores it: one class per kind of matrix, and what may stand beside it.

Arrays have torch's layout, [out, in, kh, kw]; a Dense layer's window is 1x1.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class LowRank:
    """LoRA and LoCon: scale · up @ down with scale = alpha / rank."""

    down: np.ndarray  # [rank, in, kh, kw]
    up: np.ndarray  # [out, rank]
    alpha: float | None  # None: the file says nothing, which means alpha = rank

    @property
    def outputs(self) -> int:
        """How many outputs the layer has."""
        return len(self.up)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """alpha / rank. PEFT's rslora (alpha / √rank) is already turned into such an alpha."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def dense(self) -> np.ndarray:
        """ΔW at scale 1, float32 [out, in, kh, kw]."""
        up = self.up.astype(np.float32) * np.float32(self.scale)
        return np.tensordot(up, self.down.astype(np.float32), axes=1)

    def at(self, outputs: np.ndarray) -> "LowRank":
        """The change of these outputs alone, in this order."""
        return dataclasses.replace(self, up=self.up[outputs])


@dataclasses.dataclass(frozen=True)
class Hadamard:
    """LoHa: scale · (up_1 @ down_1) * (up_2 @ down_2), entry by entry: of a rank up to rank²."""

    one: LowRank  # without alpha
    two: LowRank
    alpha: float | None

    @property
    def outputs(self) -> int:
        """How many outputs the layer has."""
        return self.one.outputs

    @property
    def rank(self) -> int:
        return self.one.rank

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def dense(self) -> np.ndarray:
        """ΔW at scale 1, float32 [out, in, kh, kw]."""
        product: np.ndarray = np.float32(self.scale) * self.one.dense * self.two.dense
        return product

    def at(self, outputs: np.ndarray) -> "Hadamard":
        """The change of these outputs alone, in this order."""
        return dataclasses.replace(self, one=self.one.at(outputs), two=self.two.at(outputs))


@dataclasses.dataclass(frozen=True)
class Kronecker:
    """LoKr: scale · left ⊗ right. Factors that the file has as products are multiplied out: they are small."""

    left: np.ndarray  # [a, b], float32 where it was a product
    right: np.ndarray  # [c, d, kh, kw] with a·c = out, b·d = in
    alpha: float | None  # None where nothing in the file is low rank: then LyCORIS's scale is 1
    rank: int | None  # of the factors in the file

    @property
    def outputs(self) -> int:
        """How many outputs the layer has."""
        return len(self.left) * len(self.right)

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    @property
    def dense(self) -> np.ndarray:
        """ΔW at scale 1, float32 [out, in, kh, kw]."""
        (a, b), (c, d, *window) = self.left.shape, self.right.shape
        left = self.left.astype(np.float32) * np.float32(self.scale)
        product = np.einsum("ij,kl...->ikjl...", left, self.right.astype(np.float32))
        return product.reshape(a * c, b * d, *window)

    def at(self, outputs: np.ndarray) -> "Kronecker | Full":
        """The change of these outputs alone, in this order: a product again where whole rows of `left` are taken."""
        c = self.right.shape[0]
        blocks = outputs.reshape(-1, c) if outputs.size % c == 0 else np.zeros((0, c), int)
        if blocks.size and (blocks == blocks[:, :1] + np.arange(c)).all() and (blocks[:, 0] % c == 0).all():
            return dataclasses.replace(self, left=self.left[blocks[:, 0] // c])
        return Full(self.dense[outputs])


@dataclasses.dataclass(frozen=True)
class Full:
    """The difference of the weights themselves (`diff`)."""

    dense: np.ndarray  # [out, in, kh, kw]

    @property
    def outputs(self) -> int:
        """How many outputs the layer has."""
        return len(self.dense)

    def at(self, outputs: np.ndarray) -> "Full":
        """The change of these outputs alone, in this order."""
        return Full(self.dense[outputs])


Matrix = LowRank | Hadamard | Kronecker | Full


@dataclasses.dataclass(frozen=True)
class Magnitude:
    """DoRA: the norms that the changed kernel is given; see lora/decomposed.py."""

    values: np.ndarray  # [out] or [in]
    axis: str  # "outputs" or "inputs"
    trainer: str  # "lycoris" or "peft": who says what scales other than 1 mean


@dataclasses.dataclass(frozen=True)
class Change:
    """All that a file changes of one layer."""

    matrix: Matrix | None = None
    magnitude: Magnitude | None = None
    bias: np.ndarray | None = None  # [out], added at scale 1
    weight: np.ndarray | None = None  # [c], added to a norm's weight

    def at(self, outputs: np.ndarray) -> "Change":
        """The change of these outputs alone, in this order. Magnitudes over inputs stay true only if all outputs do."""
        magnitude = self.magnitude
        if magnitude and magnitude.axis == "outputs":
            magnitude = dataclasses.replace(magnitude, values=magnitude.values[outputs])
        return Change(
            matrix=self.matrix and self.matrix.at(outputs),
            magnitude=magnitude,
            bias=None if self.bias is None else self.bias[outputs],
            weight=self.weight,
        )

    @property
    def outputs(self) -> int:
        """How many outputs the layer has."""
        vectors = (vector for vector in (self.bias, self.weight) if vector is not None)
        return self.matrix.outputs if self.matrix else len(next(vectors))

    @property
    def rank(self) -> int | None:
        """Of the matrix, as the file's author counts; None where that means nothing."""
        return getattr(self.matrix, "rank", None)

    @property
    def alpha(self) -> float | None:
        """The file's alpha; None: it says nothing, or there is nothing to scale."""
        return getattr(self.matrix, "alpha", None)

    def arrays(self) -> Iterator[np.ndarray]:
        """Every array of it."""
        yield from _arrays(self)

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "Change":
        """The same with `function` of every array."""
        changed: Change = _mapped(self, function)
        return changed


def _arrays(part: Any) -> Iterator[np.ndarray]:
    for value in (getattr(part, field.name) for field in dataclasses.fields(part)):
        if isinstance(value, np.ndarray):
            yield value
        elif dataclasses.is_dataclass(value):
            yield from _arrays(value)


def _mapped(part: Any, function: Callable[[np.ndarray], np.ndarray]) -> Any:
    if isinstance(part, np.ndarray):
        return function(part)
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    fields = {field.name: _mapped(getattr(part, field.name), function) for field in dataclasses.fields(part)}
    return dataclasses.replace(part, **fields)
