"""Figures of groups of pictures, with intervals: what a table of results is made of."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from autolora_jax.evaluation.bootstrap import Interval
from autolora_jax.evaluation.jackknife import jackknife_interval
from autolora_jax.evaluation.scores import Sample, intervals
from autolora_jax.evaluation.vendi import vendi_of

VENDI = "Vendi"
# Indices of pictures -> the figures of these pictures, by name.
Measure = Callable[[Int[np.ndarray, "m"]], Mapping[str, Interval]]


class Row(NamedTuple):
    """A line of a table. label: what its pictures have in common."""

    label: tuple[str, ...]
    pictures: int
    figures: Mapping[str, Interval]


def sample_measure(sample: Sample, **bootstrap: Any) -> Measure:
    """Diversity, mean scores and their products, with bootstrap intervals; see `scores.intervals`."""
    return lambda rows: intervals(sample.rows(rows), **bootstrap)


def vendi_measure(features: Float[np.ndarray, "n d"], groups: Int[np.ndarray, "n"], level: float = 0.95) -> Measure:
    """The Vendi score within a group, averaged over the groups, with a jackknife interval.

    A bootstrap would not do: pictures that are drawn twice are alike, so nearly all resamples score far lower.
    """

    def figure(rows: Int[np.ndarray, "m"]) -> dict[str, Interval]:
        found = jackknife_interval(vendi_of(features[rows]), groups[rows], level=level)
        return {VENDI: found._replace(low=np.maximum(found.low, 1.0))}  # no set has less than one picture

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
