"""Panels of plots: a figure along the axis, two figures against each other, a figure of methods beside each other."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.markup import between, number
from autolora_jax.experiments.plotting.canvas import GREY, TEXT, Look, Mark, looks, plain, tell
from autolora_jax.experiments.results import EVALUATIONS, CellResult, Results, label

BAND: dict[str, Any] = {"alpha": 0.15, "linewidth": 0}
LINE: dict[str, Any] = {"linewidth": 1.6, "markersize": 4.5, "markeredgewidth": 0}
ERROR: dict[str, Any] = {"fmt": "none", "linewidth": 0.8, "alpha": 0.5}
PAPER: dict[str, Any] = {"markerfacecolor": "white", "linestyle": (0, (3, 2)), "linewidth": 0.9, "markersize": 4}
LEVEL: dict[str, Any] = {"linewidth": 1.2, "linestyle": (0, (7, 2))}
BELOW = 1.9  # where lines are drawn: the paper's below what was measured
ZERO: dict[str, Any] = {"color": GREY, "linewidth": 1, "zorder": BELOW}
NONE: Mapping[str, str] = MappingProxyType({})


def along_axis(axes: Axes, results: Results, figure: str, pairs: Mapping[str, str] = NONE) -> None:
    """Draws a figure of all methods. Cells without a place on it are level lines.

    pairs: where the figures are differences, what each method and the one it is compared with are called together.
    """
    if pairs:
        axes.axhline(0.0, **ZERO)
    for method, look in looks(results.methods).items():
        curve = results.curve(method)
        placed = [(cell.at, cell.figures[figure]) for cell in measured(curve, figure) if cell.at is not None]
        level = [cell.figures[figure] for cell in measured(curve, figure) if cell.at is None]
        told = pairs.get(method, method)
        if placed:
            places, found = [at for at, _ in placed], [interval for _, interval in placed]
            _line(axes, places, found, look, told)
        for interval in level:
            axes.axhline(interval.value, color=look.colour, label=None if placed else plain(told), **LEVEL)
            if interval.sure:
                axes.axhspan(interval.low, interval.high, color=look.colour, **BAND)
        _paper(axes, look, [(cell.at, cell.published.get(figure)) for cell in curve])
        for cell in measured(curve, figure):
            where = cell.at if cell.at is not None else max(results.places, default=1.0)
            tell(axes, where, cell.figures[figure].value, _told(results, cell, [figure], pairs))
    _ticks(axes, results)
    axes.set_xlabel(plain(results.axis), fontsize=TEXT)


def against(axes: Axes, results: Results, x: str, y: str, names: Mapping[str, str] = NONE) -> list[Mark]:
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
            for cell, one, other in zip(cells, across, up, strict=True):
                tell(axes, one.value, other.value, _told(results, cell, [x, y]))
                place = method if cell.at is None else f"{cell.at:g}"
                marks.append(Mark(one.value, other.value, place, look.colour))
        _paper(axes, look, [(cell.published.get(x), cell.published.get(y)) for cell in results.curve(method)])
    if x == EVALUATIONS:  # twice as many is the same step everywhere
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel(plain(label(x)), fontsize=TEXT)
    axes.set_ylabel(plain(label(y)), fontsize=TEXT)
    return marks


def beside(axes: Axes, results: Results, figure: str, pairs: Mapping[str, str] = NONE) -> None:
    """Draws a figure with a row for each method that has it. pairs: as for `along_axis`."""
    if pairs:
        axes.axvline(0.0, **ZERO)
    curves = {method: results.curve(method) for method in results.methods}
    rows = [m for m, curve in curves.items() if measured(curve, figure) or any(figure in c.published for c in curve)]
    for row, method in enumerate(rows):
        look, cells = looks(results.methods)[method], measured(curves[method], figure)
        found = [cell.figures[figure] for cell in cells]
        dots: dict[str, Any] = {"color": look.colour, "markersize": 6}
        axes.errorbar(_values(found), [row] * len(found), xerr=_errors(found), fmt=look.marker, **dots)
        paper = [cell.published[figure] for cell in curves[method] if figure in cell.published]
        axes.plot(paper, [row] * len(paper), look.marker, markerfacecolor="white", zorder=BELOW, **dots)
        for cell in cells:
            tell(axes, cell.figures[figure].value, float(row), _told(results, cell, [figure], pairs))
    axes.set_yticks(range(len(rows)), [plain(pairs.get(method, method)) for method in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.margins(x=0.15)


def measured(cells: Iterable[CellResult], *figures: str) -> list[CellResult]:
    """Those that have all these figures."""
    return [cell for cell in cells if cell.has(*figures)]


def _told(results: Results, cell: CellResult, figures: Sequence[str], pairs: Mapping[str, str] = NONE) -> str:
    """What a point says: its cell, its figures with their intervals, the paper's numbers."""
    lines = [pairs.get(cell.method, cell.method) + ("" if cell.at is None else f", {results.axis} {cell.at:g}")]
    for name in figures:
        found, signed = cell.figures[name], bool(pairs)
        lines.append(f"{name}: {number(found.value, signed=signed)} {between(found, signed=signed)}".strip())
        if name in cell.published:
            lines.append(f"the paper: {number(cell.published[name])}")
    return "\n".join(lines)


def _line(axes: Axes, places: Sequence[float], found: Sequence[Interval], look: Look, name: str) -> None:
    """With a band of the intervals, or a bar where a single point has none."""
    axes.plot(places, _values(found), look.marker + look.line, color=look.colour, label=plain(name), **LINE)
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


def _ticks(axes: Axes, results: Results) -> None:
    """The places of the axis themselves, as long as there is room to write them."""
    places = results.places
    room = min(14, 3.5 * axes.figure.get_figwidth() / axes.get_gridspec().ncols)  # type: ignore[union-attr]
    if len(places) > 1 and min(np.diff(places)) >= (places[-1] - places[0]) / room:
        axes.set_xticks(places, [f"{place:g}" for place in places])
