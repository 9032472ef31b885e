"""Whole figures of results. Needs matplotlib: whoever can do without imports this where it is used.

Each is drawn as many inches wide as wanted. title: what stands above it; "": nothing does.
"""

import dataclasses
from collections.abc import Mapping, Sequence

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    told = "plots need matplotlib: pip install 'autolora-jax[plots]'"
    raise ModuleNotFoundError(told, name="matplotlib") from None

from autolora_jax.experiments.frontier import Frontier
from autolora_jax.experiments.labels import label
from autolora_jax.experiments.layout import number, sure
from autolora_jax.experiments.pareto import efficient
from autolora_jax.experiments.plotting.canvas import TEXT, entitle, label_ends, label_points, looks, new_figure, plain
from autolora_jax.experiments.plotting.panels import NONE, against, along_axis, beside
from autolora_jax.experiments.results import Results

PANEL = 3.5  # inches that a panel takes at least, where several stand side by side
ROOMY = 6.0  # inches from which on names stand beside their curves
FEW = 5  # methods whose steps can be told apart
SHORT = 24  # letters of a name that stands beside its curve


def pair(results: Results, x: str, y: str, width: float, title: str = "") -> Figure:
    """A figure along the axis, or against another figure."""
    if x == results.axis:
        return _along(results, y, label(y), width, title)
    figure, (axes,) = new_figure(1, 1, width, _height(width))
    marks = against(axes, results, x, y)
    entitle(figure, title, _note(results, "bars"), axes)
    label_points(axes, marks)
    return figure


def differences(results: Results, name: str, width: float, title: str = "") -> Figure:
    """A figure's paired differences: along the axis, or, where there is none, a row for each pair."""
    paired = dataclasses.replace(
        results, cells=tuple(cell._replace(figures=cell.differences, published={}) for cell in results.cells)
    )
    pairs = {cell.method: f"{cell.method} − {cell.against}" for cell in results.cells if cell.against}
    told = f"Difference in {name}"
    if any(cell.at is not None for cell in results.cells):
        return _along(paired, name, told, width, title, pairs)
    figure, (axes,) = new_figure(1, 1, width, 1.2 + 0.3 * len(pairs))
    beside(axes, paired, name, pairs)
    axes.set_xlabel(plain(told), fontsize=TEXT)
    entitle(figure, title, _note(paired, "bars"))
    return figure


def overview(results: Results, figures: Sequence[str], width: float, title: str = "") -> Figure:
    """A panel for each figure."""
    axis, columns = any(cell.at is not None for cell in results.cells), max(1, min(int(width / PANEL), len(figures)))
    height = 3.0 if axis else 1.0 + 0.3 * len(results.methods)
    figure, panels = new_figure(len(figures), columns, width / columns, height)
    for axes, name in zip(panels, figures, strict=True):
        axes.set_title(plain(label(name)), loc="left", fontsize=TEXT)
        if axis:
            along_axis(axes, results, name)
        else:
            beside(axes, results, name)
    entitle(figure, title, _note(results, "bands" if axis else "bars"), panels[0] if axis else None)
    return figure


def frontier(results: Results, found: Sequence[Frontier], width: float, title: str = "") -> Figure:
    """Each method's points in the plane of the two figures, the efficient ones large, with the steps below."""
    figure, (axes,) = new_figure(1, 1, width, max(0.74 * width, 3.4))
    names = {each.method: f"{each.method}: area {number(each.area)}" for each in found}
    x, y = results.frontier
    marks = against(axes, results, x, y, names)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # the steps go on to the axes, which may be far
    first = set()
    for each in found:
        look, points = looks(results.methods)[each.method], efficient(each.points)
        if len(found) <= FEW:
            corners = [(0.0, points[0].y), *points, (points[-1].x, 0.0)]
            axes.step(*zip(*corners, strict=True), where="pre", color=look.colour, linewidth=1, linestyle=":")
        axes.plot(*zip(*points, strict=True), look.marker, color=look.colour, markersize=7.5, markeredgecolor="black")
        first |= {(look.colour, *point) for point in points}
    more = ["large: efficient points", *(["dotted: what they dominate, down to (0, 0)"] if len(found) <= FEW else [])]
    entitle(figure, title, _note(results, "bars", *more), axes)
    label_points(axes, sorted(marks, key=lambda mark: (mark.colour, mark.x, mark.y) not in first))
    return figure


def _along(results: Results, name: str, told: str, width: float, title: str, pairs: Mapping[str, str] = NONE) -> Figure:
    """A figure along the axis, with the methods' names beside their curves, or above where there is no room."""
    figure, (axes,) = new_figure(1, 1, width, _height(width))
    ends = along_axis(axes, results, name, pairs)
    axes.set_ylabel(plain(told), fontsize=TEXT)
    named = width >= ROOMY and max((len(end.text) for end in ends), default=0) <= SHORT
    entitle(figure, title, _note(results, "bands"), None if named else axes)
    if named:
        label_ends(axes, ends)
    return figure


def _height(width: float) -> float:
    return max(0.64 * width, 3.4)


def _note(results: Results, how: str, *more: str) -> str:
    """What signs mean: those of intervals and of the paper's numbers where there are such."""
    known = any(sure(each) for cell in results.cells for each in cell.figures.values())
    parts = [f"{how}: {100 * results.confidence:g} % intervals"] if known else []
    parts += ["hollow, dashed: the paper's numbers"] if any(cell.published for cell in results.cells) else []
    return "; ".join([*parts, *more])
