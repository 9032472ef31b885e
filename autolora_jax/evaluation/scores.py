"""What scores of pictures say together: means, the products with diversity, differences between two sets, and tables.

A set is one way of drawing: its pictures, the group (prompt) of each, what a judge or a classifier gave each, and the
features that diversity is measured on. Intervals are bootstrap intervals over the pictures of a group; a product takes
both its factors from the same resample, a difference both its sets.
Source: arXiv 2410.03941, section 5: Div-CPS, Div-PC, Div-SA = diversity × mean score.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from autolora_jax.evaluation.diversity import conditional_vendi_score, diversity_statistic, vendi_of
from autolora_jax.evaluation.intervals import (
    Interval,
    Statistic,
    bootstrap_interval,
    jackknife_interval,
    mean_statistic,
)

DIVERSITY, VENDI, CONDITIONAL = "Div", "Vendi", "Conditional Vendi"
# Indices of pictures -> the figures of these pictures, by name.
Measure = Callable[[Int[np.ndarray, "m"]], Mapping[str, Interval]]


@dataclass(frozen=True)
class Sample:
    """A set of pictures.

    groups: [n]; scores: name -> [n], NaN for a picture that has none; features: [n d], or none where diversity is not
    asked for; kinds: attribute -> [n], what each picture shows of it, as a number from 0 up.
    """

    groups: Int[np.ndarray, "n"]
    scores: Mapping[str, Float[np.ndarray, "n"]]
    features: Float[np.ndarray, "n d"] | None = None
    kinds: Mapping[str, Int[np.ndarray, "n"]] = field(default_factory=dict)

    def statistics(self) -> dict[str, Statistic]:
        """Means by the scores' names; with features also "Div" and the products, "Div-CPS"; "Div place" of a kind.

        The diversity of a kind is Eq. 8 of indicator vectors: how often two pictures of a prompt differ in it, a
        diversity that can be named.
        """
        found = {name: mean_statistic(values) for name, values in self.scores.items()}
        if self.features is not None:
            spread = diversity_statistic(self.features, self.groups)
            found |= {DIVERSITY: spread} | {
                f"{DIVERSITY}-{name}": product(spread, mean) for name, mean in found.items()
            }
        return found | {
            f"{DIVERSITY} {name}": diversity_statistic(np.eye(values.max(initial=0) + 1)[values], self.groups)
            for name, values in self.kinds.items()
        }

    def rows(self, rows: Int[np.ndarray, "m"]) -> "Sample":
        """These pictures of it, in this order."""
        features = None if self.features is None else self.features[rows]
        scores, kinds = ({name: values[rows] for name, values in of.items()} for of in (self.scores, self.kinds))
        return Sample(self.groups[rows], scores, features, kinds)


def product(one: Statistic, other: Statistic) -> Statistic:
    """Of two statistics of the same pictures."""
    return lambda weights: one(weights) * other(weights)


def intervals(sample: Sample, **bootstrap: Any) -> dict[str, Interval]:
    """Each of the sample's statistics. bootstrap: as bootstrap_interval takes them."""
    return {
        name: bootstrap_interval(statistic, sample.groups, **bootstrap)
        for name, statistic in sample.statistics().items()
    }


def paired_differences(first: Sample, second: Sample, **bootstrap: Any) -> dict[str, Interval]:
    """second − first, for the statistics that both have. Row i of both is drawn from the same prompt and noise.

    A picture without a score leaves its partner without one. Raises ValueError when the rows can't be the same ones.
    """
    if not np.array_equal(first.groups, second.groups):
        raise ValueError("the two sets are not pairs: row by row they should be of the same group; see pairs()")
    shared = first.scores.keys() & second.scores.keys()
    known = {name: ~np.isnan(first.scores[name] + second.scores[name]) for name in shared}
    before, after = (
        Sample(
            each.groups,
            {name: np.where(known[name], values, np.nan) for name, values in each.scores.items() if name in shared},
            each.features,
            each.kinds,
        ).statistics()
        for each in (first, second)
    )

    def difference(name: str) -> Statistic:
        return lambda weights: after[name](weights) - before[name](weights)

    return {name: bootstrap_interval(difference(name), first.groups, **bootstrap) for name in before if name in after}


def pairs(first: Sequence[Hashable], second: Sequence[Hashable]) -> tuple[Int[np.ndarray, "m"], Int[np.ndarray, "m"]]:
    """The rows of either set whose keys (prompt and seed, say) the other has as well, in the order of the first.

    Raises ValueError when a key occurs twice in a set, or none in both.
    """
    places = [{key: row for row, key in enumerate(keys)} for keys in (first, second)]
    for place, keys in zip(places, (first, second), strict=True):
        if len(place) < len(keys):
            twice = next(key for row, key in enumerate(keys) if place[key] != row)
            raise ValueError(f"{twice} occurs twice in a set: pictures can't be paired by it")
    shared = [key for key in first if key in places[1]]
    if not shared:
        raise ValueError("the two sets have no prompt and seed in common: there are no pairs to compare")
    one, other = (np.array([place[key] for key in shared]) for place in places)
    return one, other


class Row(NamedTuple):
    """A line of a table. label: what its pictures have in common."""

    label: tuple[str, ...]
    pictures: int
    figures: Mapping[str, Interval]


def sample_measure(sample: Sample, **bootstrap: Any) -> Measure:
    """Diversity, mean scores and their products, with bootstrap intervals; see `intervals`."""
    return lambda rows: intervals(sample.rows(rows), **bootstrap)


def vendi_measure(features: Float[np.ndarray, "n d"], groups: Int[np.ndarray, "n"], level: float = 0.95) -> Measure:
    """The Vendi score within a group, averaged over the groups, with a jackknife interval.

    A bootstrap would not do: pictures that are drawn twice are alike, so nearly all resamples score far lower.
    """

    def figure(rows: Int[np.ndarray, "m"]) -> dict[str, Interval]:
        found = jackknife_interval(vendi_of(features[rows]), groups[rows], level=level)
        return {VENDI: found._replace(low=np.maximum(found.low, 1.0))}  # no set has less than one picture

    return figure


def conditional_measure(features: Float[np.ndarray, "n d"], prompts: Float[np.ndarray, "n e"]) -> Measure:
    """The conditional Vendi score of pictures given their prompts' features, without an interval."""

    def figure(rows: Int[np.ndarray, "m"]) -> dict[str, Interval]:
        value = conditional_vendi_score(features[rows], prompts[rows])
        return {CONDITIONAL: Interval(value, np.nan, np.nan)}

    return figure


def tabulate(measures: Sequence[Measure], labels: Sequence[tuple[str, ...]]) -> tuple[list[Row], Row]:
    """A row for each group, in the order in which they appear, and one for all pictures, with an empty label.

    labels: the group of each picture. Raises ValueError when there are no pictures.
    """
    if not labels:
        raise ValueError("there are no pictures to measure")
    groups = numbered(labels)

    def row(label: tuple[str, ...], rows: Int[np.ndarray, "m"]) -> Row:
        return Row(label, len(rows), {name: value for of in measures for name, value in of(rows).items()})

    single = [row(label, np.flatnonzero(groups == i)) for i, label in enumerate(dict.fromkeys(labels))]
    return single, row((), np.arange(len(labels)))


def numbered(labels: Sequence[Hashable]) -> Int[np.ndarray, "n"]:
    """Labels as numbers, 0 for the first one that appears."""
    order = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return np.array([order[label] for label in labels], np.int64)
