"""How sure a figure is where a bootstrap can't tell: one that falls where pictures are twice, as a Vendi score does."""

from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from jaxtyping import Int

from autolora_jax.evaluation.bootstrap import Interval

BLOCKS = 50  # left out one after another; fewer pictures are left out singly


def jackknife_interval(
    figure: Callable[[Int[np.ndarray, "m"]], float], groups: Int[np.ndarray, "n"], *, level: float = 0.95
) -> Interval:
    """A figure of each group, averaged over the groups, and its interval by the delete-a-block jackknife.

    figure: of the pictures with these indices, which are of one group.
    groups: the group of each picture. NaN bounds when a group has a single picture.
    Source: B. Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982), section 3.
    """
    if not len(groups) or not 0 < level < 1:
        raise ValueError(f"{len(groups)} pictures, level {level}: need some, 0 < level < 1")
    members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
    value = float(np.mean([figure(rows) for rows in members]))
    error = float(np.sqrt(sum(_variance(figure, rows) for rows in members))) / len(members)
    half = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(value, value - half, value + half)


def _variance(figure: Callable[[Int[np.ndarray, "m"]], float], rows: Int[np.ndarray, "m"]) -> float:
    blocks = min(BLOCKS, len(rows))
    if blocks < 2:
        return np.nan
    block = np.arange(len(rows)) % blocks
    without = np.array([figure(rows[block != i]) for i in range(blocks)])
    return float((blocks - 1) / blocks * np.square(without - without.mean()).sum())
