"""The best low rank for a layer's change, and how well it holds it.

By Eckart and Young (1936) the first r terms of the singular value decomposition, U_r Σ_r V_rᵀ, are the nearest matrix
of rank r to ΔW in the Frobenius norm, and √(σ_{r+1}² + σ_{r+2}² + …) is how far they are from it. Singular values are
shared out evenly, down = U √Σ, up = √Σ Vᵀ: both have entries of one size, which half precision can hold.

Matrices are kernels with all axes but the last made one: [in, out], [kh·kw·in, out].
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import scipy.linalg
from jaxtyping import Float

from autolora_jax.weights.lora.metadata import by_component, histogram
from autolora_jax.weights.rules import Shape

RESOLUTION = float(np.finfo(np.float32).eps) / 2  # of float32 factors; smaller terms than this add nothing


@dataclasses.dataclass(frozen=True)
class Truncation:
    """How many ranks a layer's change keeps: the fewest with which it meets `max_error`, and never more than `rank`."""

    rank: int | None = None  # None: as many as max_error takes
    max_error: float | None = None  # ‖ΔW − LoRA‖ / ‖ΔW‖ of each layer, Frobenius; None: as many ranks as allowed
    conv_rank: int | None = None  # instead of `rank` for convolutions with a window; 0 leaves them out; None: the same

    def __post_init__(self) -> None:
        if self.rank is None and self.max_error is None:
            raise ValueError("nothing says how many ranks to keep: give rank, such as 32, or max_error, such as 0.05")
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"rank {self.rank} holds nothing; it must be 1 or more")
        if self.conv_rank is not None and self.conv_rank < 0:
            raise ValueError(f"conv_rank {self.conv_rank} must be 0 (no convolutions) or more")
        if self.max_error is not None and not 0 < self.max_error < 1:
            raise ValueError(
                f"max_error {self.max_error:g} must lie between 0 and 1: 0.05 lets a layer miss 5 % of its change"
            )

    def most(self, kernel: Shape) -> int:
        """The most ranks that a layer with this kernel may keep."""
        windowed = math.prod(kernel[:-2]) > 1
        rank = self.conv_rank if windowed and self.conv_rank is not None else self.rank
        full = min(math.prod(kernel[:-1]), kernel[-1])
        return full if rank is None else min(rank, full)

    def keep(self, squares: Float[np.ndarray, "s"], total: float, most: int) -> int:
        """How many terms to keep of a change. squares: σ², the largest first. total: the sum of all σ²."""
        resolved = int((squares > total * RESOLUTION**2).sum())
        enough = most
        if self.max_error is not None:
            left = total - np.concatenate([[0.0], np.cumsum(squares)])  # with 0, 1, 2 … terms
            met = np.flatnonzero(left <= self.max_error**2 * total)
            enough = int(met[0]) if met.size else most
        return max(1, min(enough, most, resolved))


class Fit(NamedTuple):
    """How well a layer's low rank holds its change."""

    rank: int
    size: float  # ‖ΔW‖, Frobenius
    error: float  # ‖ΔW − down @ up‖

    @property
    def relative(self) -> float:
        return self.error / self.size if self.size else 0.0


@dataclasses.dataclass(frozen=True)
class Fits:
    """How well low rank holds the change of several layers. print() it."""

    layers: Mapping[str, Fit]  # "unet/down_blocks_1/attentions_0/proj_in" -> its fit

    @property
    def size(self) -> float:
        """‖ΔW‖ of all layers together."""
        return math.hypot(*(fit.size for fit in self.layers.values()))

    @property
    def error(self) -> float:
        """‖ΔW − down @ up‖ / ‖ΔW‖ of all layers together."""
        return math.hypot(*(fit.error for fit in self.layers.values())) / self.size if self.size else 0.0

    @property
    def ranks(self) -> dict[int, int]:
        """Rank -> layers that have it."""
        return dict(Counter(fit.rank for fit in self.layers.values()))

    @property
    def worst(self) -> str:
        """The layer whose change is held worst."""
        return max(self.layers, key=lambda name: self.layers[name].relative)

    def rows(self) -> list[tuple[str, str]]:
        """(heading, text) for people."""
        worst, counts = self.layers[self.worst], by_component(name.partition("/")[0] for name in self.layers)
        return [
            ("layers", ", ".join(f"{n} in {component}" for component, n in counts.items())),
            ("rank", histogram(self.ranks)),
            ("error", f"{percent(self.error)} of the change, all layers together (Frobenius norm)"),
            ("worst layer", f"{percent(worst.relative)} with rank {worst.rank}: {self.worst}"),
        ]


def percent(share: float) -> str:
    """A share of any size for people: "12.3 %", "0.0021 %"."""
    return f"{100 * share:.3g} %"


Factors = tuple[Float[np.ndarray, "m k"], Float[np.ndarray, "k n"]]


def best_product(change: Float[np.ndarray, "m n"], truncation: Truncation, most: int) -> tuple[Factors, Fit]:
    """(down, up) of the nearest low rank to a matrix, float32, and its fit. most: ranks at most, 1 or more.

    Eigenvectors of the smaller Gram matrix, in float64: squaring costs digits, of which there are twice as many as
    needed. σ comes out to 1e-16 σ_1²/σ, and the error, the part of the trace that is not kept, to 1e-8 ‖ΔW‖. Only the
    kept vectors are computed (LAPACK's evr). That is 5 times as fast as the SVD of [1280, 1280], 11 times at
    [1280, 10240], so all of SDXL takes minutes. A randomised range finder would be faster still, but where singular
    values decay slowly, as those of a whole fine-tuning do, it finds no nearest matrix.
    """
    wide = change.shape[0] < change.shape[1]
    exact = change.astype(np.float64)
    gram = exact @ exact.T if wide else exact.T @ exact
    total = float(np.trace(gram))
    squares, vectors = scipy.linalg.eigh(
        gram, subset_by_index=(len(gram) - most, len(gram) - 1), driver="evr", overwrite_a=True, check_finite=False
    )
    squares, vectors = squares[::-1].clip(0), vectors[:, ::-1]
    rank = truncation.keep(squares, total, most)
    kept, root = vectors[:, :rank], squares[:rank] ** 0.25 if total else np.ones(rank)
    if wide:
        down, up = kept * root, (kept.T @ exact) / root[:, None]
    else:
        down, up = (exact @ kept) / root, (kept * root).T
    error = math.sqrt(max(0.0, total - float(squares[:rank].sum())))
    return (down.astype(np.float32), up.astype(np.float32)), Fit(rank, math.sqrt(total), error)


def shorter_product(
    down: Float[np.ndarray, "m r"], up: Float[np.ndarray, "r n"], truncation: Truncation, most: int
) -> tuple[Factors, Fit]:
    """(down, up) of the nearest lower rank to a product down @ up, float32, and its fit against that product.

    Exact and cheap: with down = Q R and upᵀ = P S, the product's singular values are those of R Sᵀ, which is [r, r].
    """
    (q, r), (p, s) = (np.linalg.qr(half.astype(np.float64)) for half in (down, up.T))
    left, sigma, right = np.linalg.svd(r @ s.T)
    squares = sigma**2
    total = float(squares.sum())
    rank = truncation.keep(squares, total, min(most, len(sigma)))
    root = np.sqrt(sigma[:rank])
    shorter = (q @ left[:, :rank]) * root, (root[:, None] * right[:rank]) @ p.T
    fit = Fit(rank, math.sqrt(total), math.sqrt(float(squares[rank:].sum())))
    return (shorter[0].astype(np.float32), shorter[1].astype(np.float32)), fit
