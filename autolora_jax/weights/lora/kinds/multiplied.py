"""Kinds that multiply the layer's own kernel: GLoRA, IA3. Each is linear in its scale, as a delta's terms are.

Formulas: LyCORIS 4, lycoris/modules/{glora,ia3}.py; PEFT tuners/ia3/layer.py.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.lora.kinds.kind import Change, Kind, Sizes, axis
from autolora_jax.weights.lora.kinds.low_rank import LowRank, fits
from autolora_jax.weights.lora.kinds.matrix import (
    STATIC,
    Multiplied,
    Numbers,
    Shapes,
    Tensors,
    Written,
    from_torch,
    to_torch,
    wide,
)
from autolora_jax.weights.rules import Shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generalized(Multiplied):
    """scale · (inner @ W + added): GLoRA's two low ranks, of which one stands before the kernel."""

    inner: LowRank  # [in, in], without alpha
    added: LowRank  # as the kernel, without alpha

    @property
    def rank(self) -> int:
        return self.added.rank

    @property
    def nothing(self) -> bool:
        return self.scale == 0 or (self.inner.nothing and self.added.nothing)

    def on(self, base: Numbers) -> Numbers:
        ones = (1,) * (base.ndim - 2)
        down, up = (wide(half).reshape(*ones, *half.shape) for half in (self.inner.down, self.inner.up))
        return (jnp.matmul(down, jnp.matmul(up, base)) + self.added.kernel) * self.scale  # [*window, rank, out] first

    def scaled(self) -> "Generalized":
        inner, added = (
            dataclasses.replace(low, alpha=self.scale * low.rank).scaled() for low in (self.inner, self.added)
        )
        return dataclasses.replace(self, alpha=None, inner=inner, added=added)

    def at(self, outputs: np.ndarray) -> "Generalized":
        layer = (*self.layer[:-1], len(outputs))
        return dataclasses.replace(self, added=self.added.at(outputs), layer=layer)

    def tensors(self) -> Written:
        ones = (1,) * (len(self.layer) - 2)
        found = {"a1": self.inner.up.T, "a2": self.inner.down.T, "b1": self.added.up.T, "b2": to_torch(self.added.down)}
        shaped = {name: x if x.ndim > 2 else x.reshape(*x.shape, *ones) for name, x in found.items()}
        return {**{f"{name}.weight": x for name, x in shaped.items()}, "alpha": self.said_alpha}


_PAIRS = {"a1": "a2", "b1": "b2"}


def _in_order(shapes: Shapes, kernel: Shape) -> dict[str, str] | None:
    """Our name of a part -> the file's. LyCORIS before 1.9.1 had a1 and a2, b1 and b2 the other way round."""
    *window, inputs, outputs = kernel
    if len(shapes.get("b2", ())) < 2:
        return None
    for names in (dict(zip(_GLORA, _GLORA, strict=True)), {**_PAIRS, **{v: k for k, v in _PAIRS.items()}}):
        rank = axis(shapes, names["a2"], 0) or 0
        wanted: dict[str, Shape] = {
            "a1": (inputs, rank),
            "a2": (rank, inputs),
            "b1": (outputs, rank),
            "b2": (rank, inputs, *window),
        }
        if rank and all(len(shapes[names[p]]) > 1 and fits(shapes[names[p]], shape) for p, shape in wanted.items()):
            return names
    return None


def _glora_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    if _in_order(shapes, kernel):
        return None
    said = ", ".join(f"{part} {list(shapes[part])}" for part in _GLORA)
    return f"{said}: they are no low ranks of a kernel {[kernel[-1], kernel[-2], *kernel[:-2]]}"


def _read_glora(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    names = _in_order({part: x.shape for part, x in tensors.items()}, kernel)
    assert names
    a1, a2, b1, b2 = (tensors[names[part]] for part in _GLORA)
    inner = LowRank(a2.reshape(len(a2), -1).T, a1.reshape(len(a1), -1).T)
    added = LowRank(from_torch(b2, kernel[:-2]), b1.reshape(len(b1), -1).T)
    return Change(Generalized(inner, added, alpha=alpha, layer=kernel))


_GLORA = ("a1", "a2", "b1", "b2")
GLORA = Kind(
    "GLoRA (LyCORIS)",
    parts={part: rf"{part}\.weight" for part in _GLORA},
    needs=(_GLORA,),
    misfit=_glora_misfit,
    read=_read_glora,
    # Of the layer's inputs its shapes say nothing before the order of a1 and a2 is known.
    sizes=lambda shapes: Sizes(min(shapes["a2"][:2]) if len(shapes.get("a2", ())) > 1 else None),
    telling=False,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Stretched(Multiplied):
    """W · factor along one axis: IA3."""

    factor: Numbers  # [out] or [in]; 0 changes nothing
    axis: str = dataclasses.field(metadata=STATIC)  # "outputs" or "inputs"
    with_bias: bool = dataclasses.field(default=False, metadata=STATIC)  # whether it is the outputs' whole, as PEFT's

    @property
    def bias_gain(self) -> Numbers | None:
        return self.factor if self.with_bias else None

    def on(self, base: Numbers) -> Numbers:
        along = (-1, 1) if self.axis == "inputs" else (1, -1)
        return base * wide(self.factor).reshape(*(1,) * (base.ndim - 2), *along)

    def at(self, outputs: np.ndarray) -> "Stretched":
        layer = (*self.layer[:-1], len(outputs))
        factor = self.factor if self.axis == "inputs" else self.factor[outputs]
        return dataclasses.replace(self, factor=factor, layer=layer)

    def tensors(self) -> Written:
        """As their trainer has them: LyCORIS's, which leave the bias alone, say their axis in a tensor of its own."""
        if self.axis == "outputs" and not self.with_bias:
            return {"ia3_weight": self.factor, "on_input": np.zeros((), bool)}
        one = wide(self.factor) + np.float32(1)
        return {"ia3_l": one[:, None] if self.axis == "outputs" else one[None]}


def _ia3_misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """LyCORIS's factors are [n] or [1, n, 1, 1], and a flag says of what; PEFT's: see `_of_inputs`."""
    part = "ia3_l" if "ia3_l" in shapes else "ia3_weight"
    bare = tuple(n for n in shapes[part] if n != 1)
    if bare not in ((kernel[-1],), (kernel[-2],)):
        return f"factors {list(shapes[part])}, which are neither one per output nor one per input"
    if part == "ia3_l" and len(shapes[part]) == 4 and kernel[-1] == kernel[-2]:
        return f"factors {list(shapes[part])} of a convolution with as many inputs as outputs: they can be of either"
    return None


def _of_inputs(shape: Shape, kernel: Shape) -> bool:
    """Whether PEFT's factors are: a matrix's are [out, 1] or [1, in], a convolution's [1, n, 1, 1] in any case."""
    return shape[1] == kernel[-2] if len(shape) == 4 else shape[0] == 1


def _read_ia3(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    """PEFT's inputs or outputs are multiplied by their factors, LyCORIS's kernels by one more than theirs."""
    peft = "ia3_l" in tensors
    if peft:
        factor, of_inputs = wide(tensors["ia3_l"]) - np.float32(1), _of_inputs(tensors["ia3_l"].shape, kernel)
    else:
        factor, of_inputs = wide(tensors["ia3_weight"]), bool(tensors["on_input"].any())
    along = "inputs" if of_inputs else "outputs"
    if factor.size != kernel[-2 if of_inputs else -1]:
        raise WeightsError(f"{factor.size} factors of {along}, of which the layer has {list(kernel)}")
    return Change(Stretched(factor.reshape(-1), along, with_bias=peft and not of_inputs, layer=kernel))


IA3 = Kind(
    "IA3",
    parts={"ia3_l": r"ia3_l(\.weight)?", "ia3_weight": "ia3_weight", "on_input": "on_input"},
    needs=(("ia3_l",), ("ia3_weight", "on_input")),
    misfit=_ia3_misfit,
    read=_read_ia3,
    scaled=lambda parts: False,
)
