"""LoHa: scale · (down_1 @ up_1) * (down_2 @ up_2), entry by entry. Formula: LyCORIS 4, lycoris/functional/loha.py.

It stays its factors, not the low rank of rank² that it also is: building the kernel from them costs 2·rank / rank² as
many products, and a rank above 8 would have more numbers than memory for dense kernels.
"""

import dataclasses

import jax
import numpy as np

from autolora_jax.weights.lora.kinds.kind import Change, Kind, Sizes, axis
from autolora_jax.weights.lora.kinds.low_rank import LowRank, with_core
from autolora_jax.weights.lora.kinds.matrix import Matrix, Numbers, Shapes, Tensors, Written, from_torch, to_torch, wide
from autolora_jax.weights.rules import Shape


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hadamard(Matrix):
    """scale · one * two: of a rank up to rank²."""

    one: LowRank  # without alpha
    two: LowRank

    @property
    def kernel(self) -> Numbers:
        return self.one.kernel * self.scale * self.two.kernel

    @property
    def rank(self) -> int:
        return self.one.rank

    def scaled(self) -> "Hadamard":
        return Hadamard(dataclasses.replace(self.one, alpha=self.alpha).scaled(), self.two.scaled())

    def at(self, outputs: np.ndarray) -> "Hadamard":
        return dataclasses.replace(self, one=self.one.at(outputs), two=self.two.at(outputs))

    def halves(self, most: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Every pair of columns of the two, multiplied: rank²."""
        rank = self.one.rank * self.two.rank
        if rank >= most:
            return None
        one, two = self.scaled().one, self.scaled().two
        down = wide(one.down)[..., :, None] * wide(two.down)[..., None, :]
        up = one.up[:, None] * two.up[None]
        return down.reshape(*down.shape[:-2], rank), up.reshape(rank, -1)

    def tensors(self) -> Written:
        pairs = {1: self.one, 2: self.two}
        factors = {f"hada_w{i}_a": pair.up.T for i, pair in pairs.items()}
        factors |= {f"hada_w{i}_b": to_torch(pair.down).reshape(pair.rank, -1) for i, pair in pairs.items()}
        return {**factors, "alpha": self.said_alpha}


def _misfit(shapes: Shapes, kernel: Shape) -> str | None:
    """Rank and layout: outputs first, but for convolutions with a core, where the rank is first."""
    inputs, outputs, window = kernel[-2], kernel[-1], kernel[:-2] or (1, 1)
    for i in (1, 2):
        a, b = shapes[f"hada_w{i}_a"], shapes[f"hada_w{i}_b"]
        if len(b) != 2 or len(a) != 2 or b[0] < 1:
            return f"factors {list(a)} and {list(b)} are no matrices"
        rank, core = b[0], shapes.get(f"hada_t{i}")
        if core is None:
            wanted = [(outputs, rank), (rank, inputs * window[0] * window[1])]
        else:
            wanted = [(rank, outputs), (rank, inputs)]
            if core != (rank, rank, *window):
                return f"core {list(core)}, but the layer takes {[rank, rank, *window]}"
        if [a, b] != wanted:
            return f"factors {list(a)} and {list(b)}, but the layer takes {list(wanted[0])} and {list(wanted[1])}"
    return None


def _read(tensors: Tensors, kernel: Shape, alpha: float | None) -> Change:
    """With a core: down[p] = Σ_q t[p, q] · w_b[q], as LoCon's."""

    def factor(i: int) -> LowRank:
        a, b = tensors[f"hada_w{i}_a"], tensors[f"hada_w{i}_b"]
        if f"hada_t{i}" in tensors:
            a, b = a.T, with_core(tensors[f"hada_t{i}"], b)
        return LowRank(from_torch(b, kernel[:-2]), a.T)

    return Change(Hadamard(factor(1), factor(2), alpha=alpha))


_NEEDED = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
LOHA = Kind(
    "LoHa (LyCORIS)",
    parts={part: part for part in (*_NEEDED, "hada_t1", "hada_t2")},
    needs=(_NEEDED,),
    misfit=_misfit,
    read=_read,
    sizes=lambda shapes: Sizes(axis(shapes, "hada_w1_b", 0), axis(shapes, "hada_w1_b", 1)),
    product=True,
)
