"""What a figure is where another one is equal, such as how varied pictures are at the same presence of a character.

A method that has more of the one has less of the other, by its strength alone. So a set of pictures is compared with
curves of sets, each along a strength, at its own level: with the best of what they have there. All sets are of the same
prompts and seeds, and are redrawn together, so the interval is that of the difference.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from autolora_jax.evaluation.intervals import Interval, percentile_interval, resampled
from autolora_jax.evaluation.scores import Sample

Values = Float[np.ndarray, "r"]  # of a figure, by resample
Redrawn = Mapping[str, Values]  # figure -> in all pictures, then in each resample


def redrawn(sample: Sample, resamples: int = 2000, seed: int = 0) -> Redrawn:
    """The sample's figures in all its pictures, then in resamples: the same ones for all samples of the same groups."""
    weights = np.concatenate([np.ones((1, len(sample.groups))), resampled(sample.groups, resamples, seed)])
    return {name: statistic(weights) for name, statistic in sample.statistics().items()}


def reach(curve: Sequence[tuple[Values, Values]], level: Values) -> Values:
    """The greatest x with y no less than the level; NaN where there is none.

    curve: (x, y) of points in their order along an axis; a point that lacks one is NaN. What lies between neighbours is
    taken to be on the line between them.
    """
    best = np.full(np.shape(level), np.nan)
    known = [(x, y) for x, y in curve if not np.isnan(x + y).all()]
    for x, y in known:
        best = np.fmax(best, np.where(y >= level, x, np.nan))
    for (x, y), (x2, y2) in itertools.pairwise(known):
        crossed = (np.minimum(y, y2) < level) & (level < np.maximum(y, y2))
        share = (level - y) / np.where(crossed, y2 - y, 1.0)
        best = np.fmax(best, np.where(crossed, x + share * (x2 - x), np.nan))
    return best


def beyond(
    sample: Redrawn, curves: Sequence[Sequence[Redrawn]], level: str, falling: Iterable[str] = (), sure: float = 0.95
) -> dict[str, Interval]:
    """How much more a sample has of each figure than the best of the curves at no less of `level` than it has itself.

    falling: figures of which less is better; of these, how much more it has than the least. sure: of the intervals.
    The best of several is a little better by chance, so the differences are against the sample, if anything. NaN where
    no curve comes up to its level; an interval is NaN where that is so in more than a third of the resamples.
    """
    found, less = {}, {*falling}
    for name in sample.keys() - {level}:
        sign = -1.0 if name in less else 1.0
        best = np.full(np.shape(sample[level]), np.nan)
        for curve in curves:
            points = [(sign * each[name], each[level]) for each in curve if name in each]
            best = np.fmax(best, reach(points, sample[level]))
        differences = sample[name] - sign * best
        found[name] = percentile_interval(float(differences[0]), differences[1:], sure)
    return found
