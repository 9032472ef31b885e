"""How varied pictures are: one minus the mean cosine between the features of two of them.

    Div = 1 − 2 / (N (N−1)) · Σ_{i<j} cos(f(x_i), f(x_j))

Source: arXiv 2410.03941, Eq. 8. The pictures are those of one prompt; several prompts are averaged. Of unit vectors u,
Σ_{i≠j} u_i·u_j = |Σ u|² − Σ |u|², so that no pair is ever looked at: O(N d), in float64.
"""

import numpy as np
from jaxtyping import Float, Int

from autolora_jax.evaluation.bootstrap import Statistic, Weights


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
