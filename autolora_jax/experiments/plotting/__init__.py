"""Whole pictures of results. Needs matplotlib: whoever can do without imports this where it is used."""

import math
from collections.abc import Sequence
from pathlib import Path

from autolora_jax.experiments.frontier import Frontier
from autolora_jax.experiments.labels import label
from autolora_jax.experiments.layout import number
from autolora_jax.experiments.pareto import efficient
from autolora_jax.experiments.plotting.canvas import (
    TEXT,
    entitle,
    label_ends,
    label_points,
    looks,
    new_figure,
    plain,
    save,
)
from autolora_jax.experiments.plotting.panels import against, along_axis, beside
from autolora_jax.experiments.results import Results

COLUMNS = 3  # panels side by side
FEW = 5  # methods whose steps can be told apart
SHORT = 24  # letters of a name that stands beside its curve


def plot_pair(results: Results, x: str, y: str, path: Path) -> Path:
    """A figure along the axis, or against another figure."""
    figure, (axes,) = new_figure(1, 1, 7.2, 4.6)
    if x != results.axis:
        marks = against(axes, results, x, y)
        entitle(figure, results.title, _note(results, "bars"), axes)
        label_points(axes, marks)
        return save(figure, path)
    ends = along_axis(axes, results, y)
    axes.set_ylabel(plain(label(y)), fontsize=TEXT)
    short = max(len(end.text) for end in ends) <= SHORT
    entitle(figure, results.title, _note(results, "bands"), None if short else axes)
    if short:
        label_ends(axes, ends)
    return save(figure, path)


def plot_overview(results: Results, figures: Sequence[str], path: Path) -> Path:
    """A panel for each figure."""
    axis, columns = any(cell.at is not None for cell in results.cells), min(COLUMNS, len(figures))
    figure, panels = new_figure(len(figures), columns, 3.6, 3.0 if axis else 1.0 + 0.3 * len(results.methods))
    for axes, name in zip(panels, figures, strict=True):
        axes.set_title(plain(label(name)), loc="left", fontsize=TEXT)
        if axis:
            along_axis(axes, results, name)
        else:
            beside(axes, results, name)
    entitle(figure, results.title, _note(results, "bands" if axis else "bars"), panels[0] if axis else None)
    return save(figure, path)


def plot_frontier(results: Results, found: Sequence[Frontier], path: Path) -> Path:
    """Each method's points in the plane of the two figures, the efficient ones large, with the steps below."""
    figure, (axes,) = new_figure(1, 1, 7.6, 6.0)
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
    entitle(figure, results.title, _note(results, "bars", *more), axes)
    label_points(axes, sorted(marks, key=lambda mark: (mark.colour, mark.x, mark.y) not in first))
    return save(figure, path)


def _note(results: Results, sure: str, *more: str) -> str:
    """What signs mean: those of intervals and of the paper's numbers where there are such."""
    known = any(math.isfinite(each.low + each.high) for cell in results.cells for each in cell.figures.values())
    parts = [f"{sure}: {100 * results.confidence:g} % bootstrap intervals"] if known else []
    parts += ["hollow, dashed: the paper's numbers"] if any(cell.published for cell in results.cells) else []
    return "; ".join([*parts, *more])
