"""How sure a figure is: percentile intervals over resampled pictures, or by leaving pictures out.

For the bootstrap, a statistic is a function of weights [resamples n], how often each picture was drawn, and gives
[resamples] values. Statistics of the same pictures may be added, multiplied or subtracted before the interval is taken:
one resample then serves them all, so the interval of a product or of a paired difference is right.
The jackknife is for figures of which a bootstrap can't tell: those that fall where pictures are twice, as a Vendi
score does.
"""

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

Weights = Float[np.ndarray, "r n"]
Statistic = Callable[[Weights], Float[np.ndarray, "r"]]
AT_ONCE = 2**24  # weights: 128 MiB
DEFINED = 2 / 3  # of the resamples; with two pictures half of them have no pair
BLOCKS = 50  # left out one after another by the jackknife; fewer pictures are left out singly


class Interval(NamedTuple):
    """A figure and the interval it lies in. NaN where it is not defined."""

    value: float
    low: float
    high: float

    @property
    def sure(self) -> bool:
        """Whether it has bounds."""
        return bool(np.isfinite(self.low + self.high))


def bootstrap_interval(
    statistic: Statistic,
    groups: Int[np.ndarray, "n"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The statistic of all pictures with its percentile bootstrap interval. The same seed gives the same resamples.

    groups: the group of each picture (its prompt, say); pictures are redrawn within their group. zeros(n): one group.
    Resamples for which the statistic is NaN are left out; where these are over a third, the pictures are too few for
    an interval, and it is NaN; so it is where every picture is alone in its group, for then all resamples are the same.
    Source: B. Efron, The Jackknife, the Bootstrap and Other Resampling Plans (1982), section 10.4.
    """
    if not len(groups) or not 0 < level < 1 or resamples < 1:
        raise ValueError(
            f"{len(groups)} pictures, level {level}, {resamples} resamples: need some, 0 < level < 1, some"
        )
    value = float(statistic(np.ones((1, len(groups))))[0])
    if len(np.unique(groups)) == len(groups):
        return Interval(value, np.nan, np.nan)
    rng, some = np.random.default_rng(seed), max(1, AT_ONCE // len(groups))
    parts = (min(some, resamples - done) for done in range(0, resamples, some))
    found = np.concatenate([statistic(resampled(groups, part, rng)) for part in parts])
    return percentile_interval(value, found, level)


def percentile_interval(value: float, found: Float[np.ndarray, "r"], level: float) -> Interval:
    """A figure with the percentiles of what it was in resamples, without those where it is NaN.

    NaN bounds where these are over a third, or the figure is.
    """
    known = found[~np.isnan(found)]
    if np.isnan(value) or len(known) < DEFINED * len(found):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def resampled(groups: Int[np.ndarray, "n"], resamples: int, seed: int | np.random.Generator) -> Weights:
    """How often each picture is drawn, when as many as a group has are drawn from it with replacement."""
    rng = np.random.default_rng(seed)  # a generator: as it is
    counts = np.zeros((resamples, len(groups)))
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        counts[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), resamples)
    return counts


def mean_statistic(values: Shaped[np.ndarray, "n"]) -> Statistic:
    """The mean of a figure that each picture has; NaN: this one has none."""
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0).astype(np.float64)

    def mean(weights: Weights) -> Float[np.ndarray, "r"]:
        with np.errstate(invalid="ignore"):  # 0 / 0: none of those that were drawn has it
            return (weights @ filled) / (weights @ known)

    return mean


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
