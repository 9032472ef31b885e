"""The Vendi score: how many different pictures there are, were they all equally common and nothing alike.

    VS = exp(− Σ_i λ_i log λ_i),    λ the eigenvalues of K / n,    K_ij = cos(f(x_i), f(x_j))

Source: arXiv 2210.02410, Definition 3.1. 1 when all pictures are alike, n when no two have anything in common. It grows
with n, so only sets of one size compare.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int

from autolora_jax.evaluation.diversity import unit_vectors


def vendi_score(features: Float[np.ndarray, "n d"]) -> float:
    """The Vendi score of n >= 1 pictures, 1 to n, in float64.

    features: any length but zero. Raises ValueError when there are none or one has no direction.
    """
    if not len(features):
        raise ValueError("the Vendi score is of pictures: need 1 or more, got 0")
    return _score(unit_vectors(features))


def vendi_of(features: Float[np.ndarray, "n d"]) -> Callable[[Int[np.ndarray, "m"]], float]:
    """The Vendi score of the pictures with these indices, for `jackknife_interval`."""
    units = unit_vectors(features)
    return lambda rows: _score(units[rows])


def _score(units: Float[np.ndarray, "n d"]) -> float:
    n, d = units.shape
    gram = units @ units.T if n <= d else units.T @ units  # both have the eigenvalues that are not 0
    shares = np.linalg.eigvalsh(gram / n)
    shares = shares[shares > 0]  # those below are rounding
    return float(np.exp(-(shares * np.log(shares)).sum()))
