"""What every class of a kernel's change has: as a file holds it, in a delta tree, and in a network.

Arrays are laid out as our kernels are, Dense [in, out] and Conv [kh, kw, in, out], from the moment that a file is read.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from autolora_jax.weights.rules import Shape

Shapes = Mapping[str, Shape]  # part -> its shape in the file, torch's
Tensors = Mapping[str, np.ndarray]  # part -> the file's tensor, in torch's layout
Written = dict[str, np.ndarray]  # ending -> such a tensor
Numbers = Any  # an array: numpy's on the host, JAX's in a network
STATIC = {"static": True}  # of a dataclass's field that is no array
# PEFT's endings may carry an adapter's name: `lora_A.default.weight`
ADAPTER = r"(\.(?!(weight|bias)$)[\w-]+)?"


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A change of a layer's kernel; every kind's is a dataclass of arrays that JAX knows as a pytree.

    The network is given such an object, too, so `kernel` is all that a change means to a layer.
    """

    # The file's; None: it says nothing, which means alpha = rank, or there is nothing to scale.
    alpha: float | None = dataclasses.field(default=None, kw_only=True, metadata=STATIC)

    @property
    def kernel(self) -> Numbers:
        """ΔW at scale 1 in the kernel's shape, float32. By what numpy's and JAX's arrays both have: it is either's."""
        raise AssertionError("a kind says this of itself")

    def on(self, base: Numbers) -> Numbers:
        """ΔW at scale 1 of a layer with this kernel, float32: what the network asks. Most kinds don't look at it."""
        return self.kernel

    @property
    def bias_gain(self) -> Numbers | None:
        """[out], by how many times itself the layer's own bias grows at scale 1; None: it is left alone."""
        return None

    def tensors(self) -> Written:
        """The module by the endings that sd-scripts and LyCORIS give its parts, alpha among them."""
        raise AssertionError("a kind says this of itself")

    @property
    def shape(self) -> Shape:
        """Of the kernel."""
        return tuple(jax.eval_shape(lambda matrix: matrix.kernel, self).shape)

    @property
    def rank(self) -> int | None:
        """As the file's author counts it; None where that means nothing."""
        return None

    @property
    def scale(self) -> float:
        """alpha / rank. PEFT's rslora (alpha / √rank) is already turned into such an alpha."""
        return 1.0 if self.alpha is None or self.rank is None else self.alpha / self.rank

    @property
    def said_alpha(self) -> np.ndarray:
        """alpha as a tensor."""
        return np.array(self.rank if self.alpha is None else self.alpha, np.float32)

    def scaled(self) -> "Matrix":
        """The same with its scale in an array, in float32: what differs in alpha alone shares a compiled program."""
        return self

    def at(self, outputs: np.ndarray) -> "Matrix | None":
        """The change of these outputs alone, in this order; None where it is not of this kind."""
        return None

    @property
    def dense(self) -> Numbers:
        """ΔW at scale 1 as torch's convolutions have it, [out, in, kh, kw]; 1x1 of a matrix."""
        kernel = self.kernel
        return to_torch(kernel.reshape(*(1, 1)[kernel.ndim - 2 :], *kernel.shape))

    @property
    def nothing(self) -> bool:
        """Whether the change is zero: of the arrays, which are multiplied, one is."""
        return self.scale == 0 or not all(_any(array) for array in jax.tree.leaves(self))

    def halves(self, most: int) -> tuple[np.ndarray, np.ndarray] | None:
        """(down, up) whose product it is, known without rounding and of fewer ranks than `most`; None: of no such."""
        return None


@dataclasses.dataclass(frozen=True)
class Multiplied(Matrix):
    """A change that is a function of the layer's own kernel, linear in the LoRA's scale."""

    layer: Shape = dataclasses.field(default=(), kw_only=True, metadata=STATIC)  # of its kernel

    @property
    def kernel(self) -> Numbers:
        raise ValueError(
            "it multiplies the base model's own weights, so without them it is no change; write it as kohya, or merge "
            "it (autolora merge) and extract a LoRA from the result (autolora extract)"
        )

    @property
    def shape(self) -> Shape:
        return self.layer


def _any(array: Numbers) -> bool:
    flat = np.asarray(array).reshape(-1)
    return bool(flat[:4096].any() or flat.any())


def wide(x: Numbers) -> Numbers:
    """In float32."""
    return x.astype(np.float32)


def from_torch(x: Numbers, window: Shape) -> Any:
    """[out, in …] as [*window, in, out]. A file has the window as axes of its own, flat among the inputs, or as 1x1."""
    x = x.reshape(len(x), -1, *window)
    return x.transpose(*range(2, x.ndim), 1, 0)


def to_torch(x: Numbers) -> Any:
    """[*window, in, out] as [out, in, *window]."""
    return x.transpose(-1, -2, *range(x.ndim - 2))
