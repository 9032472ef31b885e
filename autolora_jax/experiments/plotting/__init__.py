"""The figures of results: the experiment's plots, paired differences, an overview, the frontier.

Files and the report's page have the same ones. Needs matplotlib, an extra: whoever can do without imports this where it
is used. Each figure is drawn as many inches wide as wanted. title: what stands above it; "": nothing does.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

try:
    from matplotlib.figure import Figure
except ModuleNotFoundError:
    told = "plots need matplotlib: pip install 'autolora-jax[plots]'"
    raise ModuleNotFoundError(told, name="matplotlib") from None

from autolora_jax.experiments.findings import headlines
from autolora_jax.experiments.frontier import PICTURE, Frontier, efficient, frontiers
from autolora_jax.experiments.markup import number
from autolora_jax.experiments.plotting.canvas import (
    TEXT,
    entitle,
    label_points,
    looks,
    new_figure,
    plain,
    save,
    svg,
)
from autolora_jax.experiments.plotting.chart import CROWDED, LEGEND, charted, heading_of
from autolora_jax.experiments.plotting.panels import NONE, against, along_axis, beside
from autolora_jax.experiments.results import Results, label, ordered

NARROW = 3.6  # inches: a phone's screen
HALF, PLANE, FULL = 6.4, 7.6, 10.8  # a figure that has another one beside it on a wide page, and those that have none
PANEL = 3.5  # inches that a panel takes at least, where several stand side by side
FEW = 5  # methods whose steps can be told apart


class Drawing(NamedTuple):
    """name: of its file. about: what it shows. wide: inches, where there is room; draw: (inches, title) -> figure.

    more: whether it shows something that no drawing before it does.
    """

    name: str
    about: str
    wide: float
    draw: Callable[[float, str], Figure]
    more: bool = True


def drawings(results: Results) -> list[Drawing]:
    """In the page's order."""
    found = []
    if results.chart and any(cell.beyond for cell in results.cells):
        level = results.chart.level
        found.append(Drawing("map", f"Where there is more at equal {level}", FULL, partial(_map, results)))
    plots = [plot for plot in dict.fromkeys(results.plots) if _measured(results, *plot)]
    for x, y in plots:
        about = f"{label(y)} {'over' if x == results.axis else 'against'} {label(x)}"
        found.append(Drawing(f"plot-{_slug(y)}-by-{_slug(x)}", about, HALF, partial(_pair, results, x, y)))
    for name in headlines(results):
        if any(math.isfinite(cell.difference(name).value) for cell in results.cells):
            slug, about = f"plot-difference-in-{_slug(name)}", f"Paired difference in {name}"
            found.append(Drawing(slug, about, HALF, partial(_differences, results, name)))
    if figures := tuple(name for name in ordered(results.figures) if _measured(results, name)):
        more = bool({*figures} - {name for plot in plots for name in plot})
        found.append(Drawing("plot-overview", "All figures", FULL, partial(_overview, results, figures), more))
    if across := frontiers(results):
        x, y = map(label, results.frontier)
        found.append(Drawing(PICTURE, f"Frontier: {y} against {x}", PLANE, partial(_frontier, results, across)))
    return found


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Writes a PNG of each drawing. Raises OSError."""
    found = drawings(results)
    if found:
        folder.mkdir(parents=True, exist_ok=True)
    return [save(each.draw(each.wide, results.title), folder / f"{each.name}.png") for each in found]


def page_figures(results: Results) -> list[dict[str, Any]]:
    """Each that shows more than those before it, for a page: what it shows, as SVG for a wide and a narrow screen."""
    return [
        {
            "about": each.about,
            "across": each.wide > HALF,
            "frontier": each.name == PICTURE,
            "wide": svg(each.draw(each.wide, "")),
            "narrow": svg(each.draw(NARROW, "")),
        }
        for each in drawings(results)
        if each.more
    ]


def _measured(results: Results, *names: str) -> bool:
    """Whether some cell has all of these figures; what is the axis is no figure."""
    return any(cell.has(*({*names} - {results.axis})) for cell in results.cells)


def _slug(text: str) -> str:
    """As part of a file's name."""
    return "-".join(re.findall(r"\w+", text.lower()))


def _pair(results: Results, x: str, y: str, width: float, title: str = "") -> Figure:
    """A figure along the axis, or against another figure."""
    if x == results.axis:
        return _along(results, y, label(y), width, title)
    figure, (axes,) = new_figure(1, 1, width, _height(width))
    marks = against(axes, results, x, y)
    entitle(figure, title, _note(results, "bars"), axes)
    label_points(axes, marks)
    return figure


def _differences(results: Results, name: str, width: float, title: str = "") -> Figure:
    """A figure's paired differences: along the axis, or, where there is none, a row for each pair."""
    paired = dataclasses.replace(
        results, cells=tuple(cell._replace(figures=cell.differences, published={}) for cell in results.cells)
    )
    pairs = {cell.method: f"{cell.method} − {cell.against}" for cell in results.cells if cell.against}
    told = f"Difference in {name}"
    if results.places:
        return _along(paired, name, told, width, title, pairs)
    figure, (axes,) = new_figure(1, 1, width, 1.2 + 0.3 * len(pairs))
    beside(axes, paired, name, pairs)
    axes.set_xlabel(plain(told), fontsize=TEXT)
    entitle(figure, title, _note(paired, "bars"))
    return figure


def _overview(results: Results, figures: Sequence[str], width: float, title: str = "") -> Figure:
    """A panel for each figure."""
    axis, columns = bool(results.places), max(1, min(int(width / PANEL), len(figures)))
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


def _frontier(results: Results, found: Sequence[Frontier], width: float, title: str = "") -> Figure:
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


def _map(results: Results, width: float, title: str = "") -> Figure:
    """A map for each figure, one below the other."""
    assert results.chart is not None
    names = [name for name in results.chart.figures if any(name in cell.beyond for cell in results.cells)]
    rows = len({spot.row for spot in results.chart.spots})
    across = sum(len({cell.at for cell in results.curve(methods[0])}) for methods in _columns(results).values())
    legible = 0.75 * width / across
    figure, panels = new_figure(len(names), 1, width, 1.0 + (0.24 if legible >= CROWDED else 0.42) * rows)
    for axes, name in zip(panels, names, strict=True):
        charted(axes, results, name, legible)
        heading_of(axes, results, name, legible)
    entitle(figure, title, f"{LEGEND}   {100 * results.confidence:g} % intervals decide")
    return figure


def _columns(results: Results) -> dict[str, list[str]]:
    """A map's columns -> their methods."""
    found: dict[str, list[str]] = {}
    for spot in results.chart.spots if results.chart else ():
        found.setdefault(spot.column, []).append(spot.method)
    return found


def _along(results: Results, name: str, told: str, width: float, title: str, pairs: Mapping[str, str] = NONE) -> Figure:
    """A figure along the axis."""
    figure, (axes,) = new_figure(1, 1, width, _height(width))
    along_axis(axes, results, name, pairs)
    axes.set_ylabel(plain(told), fontsize=TEXT)
    entitle(figure, title, _note(results, "bands"), axes)
    return figure


def _height(width: float) -> float:
    return max(0.64 * width, 3.4)


def _note(results: Results, how: str, *more: str) -> str:
    """What signs mean: those of intervals and of the paper's numbers where there are such."""
    known = any(each.sure for cell in results.cells for each in cell.figures.values())
    parts = [f"{how}: {100 * results.confidence:g} % intervals"] if known else []
    parts += ["hollow, dashed: the paper's numbers"] if any(cell.published for cell in results.cells) else []
    return "; ".join([*parts, *more])
