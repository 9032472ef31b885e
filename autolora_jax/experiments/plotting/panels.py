"""Panels of plots: a figure along the axis, two figures against each other, a figure of methods beside each other."""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.labels import label
from autolora_jax.experiments.plotting.canvas import TEXT, Look, Mark, looks, plain
from autolora_jax.experiments.results import CellResult, Results

BAND: dict[str, Any] = {"alpha": 0.15, "linewidth": 0}
LINE: dict[str, Any] = {"linewidth": 1.6, "markersize": 4.5, "markeredgewidth": 0}
ERROR: dict[str, Any] = {"fmt": "none", "linewidth": 0.8, "alpha": 0.5}
PAPER: dict[str, Any] = {"markerfacecolor": "white", "linestyle": (0, (3, 2)), "linewidth": 0.9, "markersize": 4}
LEVEL: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (7, 2))}
BELOW = 1.9  # where lines are drawn: the paper's below what was measured


def along_axis(axes: Axes, results: Results, figure: str) -> list[Mark]:
    """Draws a figure of all methods and returns where their curves end. Cells without a place on it are level lines."""
    ends: list[Mark] = []
    for method, look in looks(results.methods).items():
        curve = results.curve(method)
        placed = [(cell.at, cell.figures[figure]) for cell in measured(curve, figure) if cell.at is not None]
        level = [cell.figures[figure] for cell in measured(curve, figure) if cell.at is None]
        if placed:
            places, found = [at for at, _ in placed], [interval for _, interval in placed]
            _line(axes, places, found, look, method)
            ends.append(Mark(places[-1], found[-1].value, method, look.colour))
        for interval in level:
            axes.axhline(interval.value, color=look.colour, label=None if placed else plain(method), **LEVEL)
            if math.isfinite(interval.low + interval.high):
                axes.axhspan(interval.low, interval.high, color=look.colour, **BAND)
        if level and not placed:
            ends.append(Mark(_last(results), level[-1].value, method, look.colour))
        _paper(axes, look, [(cell.at, cell.published.get(figure)) for cell in curve])
    _ticks(axes, results)
    axes.set_xlabel(plain(results.axis), fontsize=TEXT)
    return ends


def against(
    axes: Axes, results: Results, x: str, y: str, names: Mapping[str, str] = MappingProxyType({})
) -> list[Mark]:
    """Draws y against x, joined along the axis, and returns the points with their places on it, or their methods.

    names: what a legend calls the methods, where it should be something else.
    """
    marks: list[Mark] = []
    for method, look in looks(results.methods).items():
        cells = measured(results.curve(method), x, y)
        if cells:
            across, up = ([cell.figures[name] for cell in cells] for name in (x, y))
            told = plain(names.get(method, method))
            axes.plot(_values(across), _values(up), look.marker + look.line, color=look.colour, label=told, **LINE)
            axes.errorbar(_values(across), _values(up), _errors(up), _errors(across), ecolor=look.colour, **ERROR)
            marks += [
                Mark(one.value, other.value, method if cell.at is None else f"{cell.at:g}", look.colour)
                for cell, one, other in zip(cells, across, up, strict=True)
            ]
        _paper(axes, look, [(cell.published.get(x), cell.published.get(y)) for cell in results.curve(method)])
    axes.set_xlabel(plain(label(x)), fontsize=TEXT)
    axes.set_ylabel(plain(label(y)), fontsize=TEXT)
    return marks


def beside(axes: Axes, results: Results, figure: str) -> None:
    """Draws a figure with a row for each method."""
    for row, (method, look) in enumerate(looks(results.methods).items()):
        found = [cell.figures[figure] for cell in measured(results.curve(method), figure)]
        dots: dict[str, Any] = {"color": look.colour, "markersize": 6}
        axes.errorbar(_values(found), [row] * len(found), xerr=_errors(found), fmt=look.marker, **dots)
        paper = [cell.published[figure] for cell in results.curve(method) if figure in cell.published]
        axes.plot(paper, [row] * len(paper), look.marker, markerfacecolor="white", zorder=BELOW, **dots)
    axes.set_yticks(range(len(results.methods)), [plain(method) for method in results.methods])
    axes.set_ylim(len(results.methods) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)


def measured(cells: Iterable[CellResult], *figures: str) -> list[CellResult]:
    """Those that have all these figures."""
    return [
        cell
        for cell in cells
        if all(name in cell.figures and math.isfinite(cell.figures[name].value) for name in figures)
    ]


def _line(axes: Axes, places: Sequence[float], found: Sequence[Interval], look: Look, method: str) -> None:
    """With a band of the intervals, or a bar where a single point has none."""
    axes.plot(places, _values(found), look.marker + look.line, color=look.colour, label=plain(method), **LINE)
    if len(places) > 1:
        axes.fill_between(places, [i.low for i in found], [i.high for i in found], color=look.colour, **BAND)
    else:
        axes.errorbar(places, _values(found), _errors(found), ecolor=look.colour, **ERROR)


def _paper(axes: Axes, look: Look, points: Sequence[tuple[float | None, float | None]]) -> None:
    """The published points, where both parts of a point are known."""
    known = [(x, y) for x, y in points if x is not None and y is not None]
    if known:
        axes.plot(*zip(*known, strict=True), marker=look.marker, color=look.colour, zorder=BELOW, **PAPER)


def _values(found: Sequence[Interval]) -> list[float]:
    return [interval.value for interval in found]


def _errors(found: Sequence[Interval]) -> Float[np.ndarray, "2 n"]:
    """Distances down and up; NaN: no bar. A value may lie outside of its interval by a hair."""
    distances = [(each.value - each.low, each.high - each.value) for each in found]
    return np.maximum(np.array(distances, float).reshape(-1, 2).T, 0)


def _last(results: Results) -> float:
    return max((cell.at for cell in results.cells if cell.at is not None), default=1.0)


def _ticks(axes: Axes, results: Results) -> None:
    """The places of the axis themselves, as long as there is room to write them."""
    places = sorted({cell.at for cell in results.cells if cell.at is not None})
    if len(places) > 1 and min(np.diff(places)) >= (places[-1] - places[0]) / 14:
        axes.set_xticks(places, [f"{place:g}" for place in places])
