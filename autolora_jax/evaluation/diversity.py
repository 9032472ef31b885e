"""How varied pictures are: one minus the mean cosine between the features of two of them; and Vendi scores.

    Div = 1 − 2 / (N (N−1)) · Σ_{i<j} cos(f(x_i), f(x_j))

Source: arXiv 2410.03941, Eq. 8. The pictures are those of one prompt; several prompts are averaged. Of unit vectors u,
Σ_{i≠j} u_i·u_j = |Σ u|² − Σ |u|², so that no pair is ever looked at: O(N d), in float64.

    VS = exp(− Σ_i λ_i log λ_i),    λ the eigenvalues of K / n,    K_ij = cos(f(x_i), f(x_j))

Source: arXiv 2210.02410, Definition 3.1. How many different pictures there are, were they all equally common and
nothing alike: 1 when all pictures are alike, n when no two have anything in common. It grows with n, so only sets of
one size compare.

    CVS = exp(H(K ∘ T / n) − H(T / n)),    H the entropy of the eigenvalues, T the cosines between the prompts

Source: arXiv 2411.02817, section 4 (order 1): of all pictures of many prompts, what variety the prompts do not explain.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from autolora_jax.evaluation.intervals import Statistic, Weights


def diversity(features: Float[np.ndarray, "n d"]) -> float:
    """Diversity of n >= 2 pictures of one prompt: 0 when all are alike, at most n / (n − 1).

    features: any length but zero. Raises ValueError when there are fewer than two or one has no direction.
    """
    if len(features) < 2:
        raise ValueError(f"diversity is between pictures: need 2 or more, got {len(features)}")
    groups = np.zeros(len(features), np.int64)
    return float(diversity_statistic(features, groups)(np.ones((1, len(features))))[0])


def diversity_statistic(features: Float[np.ndarray, "n d"], groups: Int[np.ndarray, "n"]) -> Statistic:
    """Diversity within each group (prompt), averaged over the groups, for `bootstrap_interval`.

    A resample holds some pictures twice. Pairs of a picture with itself are no evidence about others and are left out;
    a group where no other pair is left counts for nothing, and NaN comes out when no group has one.
    """
    units = unit_vectors(features)
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]

    def statistic(weights: Weights) -> Float[np.ndarray, "r"]:
        found = np.stack([_weighted(units[rows], weights[:, rows]) for rows in members])  # [groups r]
        known = ~np.isnan(found)
        with np.errstate(invalid="ignore"):  # 0 / 0
            return np.where(known, found, 0.0).sum(axis=0) / known.sum(axis=0)

    return statistic


def _weighted(units: Float[np.ndarray, "n d"], weights: Weights) -> Float[np.ndarray, "r"]:
    """Diversity of pictures that occur so many times, over pairs of different ones."""
    squares = np.square(weights)
    cosines = np.square(weights @ units).sum(axis=1) - squares.sum(axis=1)
    pairs = np.square(weights.sum(axis=1)) - squares.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):  # without pairs: NaN
        return np.where(pairs > 0, 1 - cosines / pairs, np.nan)


def unit_vectors(features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """The features over their lengths, float64. Raises ValueError when one has no direction."""
    exact = features.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(lengths) & (lengths > 0)))
    if len(bad):
        raise ValueError(f"features of pictures {bad[:6].tolist()} have length 0 or are not finite: no direction")
    return exact / lengths


def vendi_score(features: Float[np.ndarray, "n d"]) -> float:
    """The Vendi score of n >= 1 pictures, 1 to n, in float64.

    features: any length but zero. Raises ValueError when there are none or one has no direction.
    """
    if not len(features):
        raise ValueError("the Vendi score is of pictures: need 1 or more, got 0")
    return _vendi(unit_vectors(features))


def conditional_vendi_score(features: Float[np.ndarray, "n d"], prompts: Float[np.ndarray, "n e"]) -> float:
    """The Vendi score of n >= 1 pictures given their prompts, 1 to n, in float64: of one prompt, the Vendi score.

    features, prompts: any length but zero, the prompts' of one picture each. It takes O(n³) time and O(n²) memory.
    Raises ValueError when there are none or one has no direction.
    """
    if not len(features):
        raise ValueError("the Vendi score is of pictures: need 1 or more, got 0")
    pictures, told = unit_vectors(features), unit_vectors(prompts)
    kernel = told @ told.T
    return _vendi_of_kernel(pictures @ pictures.T * kernel) / _vendi_of_kernel(kernel)


def vendi_of(features: Float[np.ndarray, "n d"]) -> Callable[[Int[np.ndarray, "m"]], float]:
    """The Vendi score of the pictures with these indices, for `jackknife_interval`."""
    units = unit_vectors(features)
    return lambda rows: _vendi(units[rows])


def _vendi(units: Float[np.ndarray, "n d"]) -> float:
    n, d = units.shape
    gram = units @ units.T if n <= d else units.T @ units  # both have the eigenvalues that are not 0
    return _vendi_of_kernel(gram)


def _vendi_of_kernel(gram: Float[np.ndarray, "n n"]) -> float:
    """exp of the eigenvalues' entropy, once they sum to 1."""
    shares = np.linalg.eigvalsh(gram / np.trace(gram))
    shares = shares[shares > 0]  # those below are rounding
    return float(np.exp(-(shares * np.log(shares)).sum()))
