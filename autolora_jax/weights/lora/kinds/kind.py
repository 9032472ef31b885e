"""What all kinds of LoRA have in common: how a layer's whole change is held, and the row by which a kind is known."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import NamedTuple

import jax
import numpy as np

from autolora_jax.weights.lora.kinds.dora import Magnitude
from autolora_jax.weights.lora.kinds.matrix import Matrix, Shapes, Tensors
from autolora_jax.weights.rules import Shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Change:
    """All that a file changes of one layer."""

    matrix: Matrix | None = None
    magnitude: Magnitude | None = None
    bias: np.ndarray | None = None  # [out], added at scale 1
    weight: np.ndarray | None = None  # [c], added to a norm's weight

    @property
    def shape(self) -> Shape:
        """Of the layer's kernel; of a norm or a mere bias, that of the vector."""
        return self.matrix.shape if self.matrix else self._vectors[0].shape

    @property
    def nothing(self) -> bool:
        """Whether the layer stays as it is."""
        return (
            not self.magnitude
            and (self.matrix is None or self.matrix.nothing)
            and not any(vector.any() for vector in self._vectors)
        )

    @property
    def _vectors(self) -> list[np.ndarray]:
        return [vector for vector in (self.bias, self.weight) if vector is not None]


class Sizes(NamedTuple):
    """What a module's shapes say without the layer that it changes, be the module whole or not."""

    rank: int | None = None  # as the file's author counts it
    inputs: int | None = None  # of the layer
    factors: str = ""  # of a product of a few: "8x8 ⊗ 384x96"


def axis(shapes: Shapes, part: str, i: int) -> int | None:
    """The length of an axis, if there is one."""
    shape = shapes.get(part, ())
    return shape[i] if len(shape) > i else None


ANY = {"alpha", "diff_b", "dora_scale", "magnitude"}  # parts that any kind may have


@dataclasses.dataclass(frozen=True, eq=False)
class Kind:
    """One way of writing a layer's change, and how it is read."""

    name: str
    parts: Mapping[str, str]  # part -> the endings (a regular expression) of the keys that hold it
    needs: tuple[tuple[str, ...], ...]  # parts that it can't be without: all of one of these
    # (part -> shape, kernel) -> what is wrong; None when all is well
    misfit: Callable[[Shapes, Shape], str | None] = lambda shapes, kernel: None
    # (part -> tensor, kernel, alpha) -> the change, but for what stands beside any kind
    read: Callable[[Tensors, Shape, float | None], Change] = lambda tensors, kernel, alpha: Change()
    sizes: Callable[[Shapes], Sizes] = lambda shapes: Sizes()
    beyond: Callable[[Shapes], str] = lambda shapes: ""  # what shapes that look like this kind's are and can't be read
    remedy: str = ""  # refused: what the user can do; "": read by the functions above
    # (parts) -> whether its alpha means anything; else a file's is not even looked at
    scaled: Callable[[Iterable[str]], bool] = lambda parts: True
    product: bool = False  # whether its parts are multiplied, so that one of zeros makes all of it nothing
    norms: bool = False  # whether it changes norms, too
    telling: bool = True  # whether such a key gives a LoRA away

    @property
    def signs(self) -> frozenset[str]:
        """Parts by which a module of this kind is known."""
        return frozenset(chain(*self.needs))

    def missing(self, parts: Iterable[str]) -> list[str]:
        """The parts that a module lacks, by those of `needs` that it comes closest to."""
        have = set(parts)
        return min((sorted({*needed} - have) for needed in self.needs), key=len)

    def foreign(self, parts: Iterable[str]) -> list[str]:
        """The parts of a complete module that are none of this kind's."""
        have = set(parts)
        needed = next({*needed} for needed in self.needs if have.issuperset(needed))
        return sorted(have - needed - (self.parts.keys() - self.signs) - ANY)
