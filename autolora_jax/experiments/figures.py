"""Which figures results have: the experiment's plots, an overview, paired differences, the frontier.

The files and the report's page have the same ones, by the same code. Drawing needs matplotlib, which is an extra; this
module is importable without.
"""

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from autolora_jax.experiments.findings import headlines
from autolora_jax.experiments.frontier import PICTURE, frontiers
from autolora_jax.experiments.labels import label, ordered
from autolora_jax.experiments.results import Results

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NARROW = 3.6  # inches: a phone's screen
HALF, PLANE, FULL = 6.4, 7.6, 10.8  # a figure that has another one beside it on a wide page, and those that have none


class Drawing(NamedTuple):
    """name: of its file. about: what it shows. wide: inches, where there is room; draw: (inches, title) -> figure.

    more: whether it shows something that no drawing before it does.
    """

    name: str
    about: str
    wide: float
    draw: Callable[[float, str], "Figure"]
    more: bool = True


def drawings(results: Results) -> list[Drawing]:
    """In the page's order. Raises ModuleNotFoundError where matplotlib is missing."""
    from autolora_jax.experiments.plotting import differences, frontier, overview, pair

    found = []
    plots = [plot for plot in dict.fromkeys(results.plots) if _measured(results, *plot)]
    for x, y in plots:
        about = f"{label(y)} {'over' if x == results.axis else 'against'} {label(x)}"
        name = f"plot-{_slug(y)}-by-{_slug(x)}"
        found.append(Drawing(name, about, HALF, functools.partial(pair, results, x, y)))
    figures = tuple(name for name in ordered(results.figures) if _measured(results, name))
    for name in headlines(results):
        if any(_known(cell.differences.get(name)) for cell in results.cells):
            draw = functools.partial(differences, results, name)
            found.append(Drawing(f"plot-difference-in-{_slug(name)}", f"Paired difference in {name}", HALF, draw))
    if figures:
        more = bool({*figures} - {name for plot in plots for name in plot})
        draw = functools.partial(overview, results, figures)
        found.append(Drawing("plot-overview", "All figures", FULL, draw, more))
    if across := frontiers(results):
        x, y = map(label, results.frontier)
        draw = functools.partial(frontier, results, across)
        found.append(Drawing(PICTURE, f"Frontier: {y} against {x}", PLANE, draw))
    return found


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Writes a PNG of each drawing. Raises OSError, and ModuleNotFoundError where matplotlib is missing."""
    found = drawings(results)
    if found:
        from autolora_jax.experiments.plotting.canvas import save

        folder.mkdir(parents=True, exist_ok=True)
    return [save(each.draw(each.wide, results.title), folder / f"{each.name}.png") for each in found]


def page_figures(results: Results) -> list[dict[str, Any]]:
    """Each that shows more than those before it, for a page: what it shows, as SVG for a wide and a narrow screen.

    Raises ModuleNotFoundError where matplotlib is missing.
    """
    found = [each for each in drawings(results) if each.more]
    if found:
        from autolora_jax.experiments.plotting.canvas import svg
    return [
        {
            "about": each.about,
            "across": each.wide > HALF,
            "frontier": each.name == PICTURE,
            "wide": svg(each.draw(each.wide, "")),
            "narrow": svg(each.draw(NARROW, "")),
        }
        for each in found
    ]


def _measured(results: Results, *names: str) -> bool:
    """Whether some cell has all of these figures; what is the axis is no figure."""
    return any(all(_known(cell.figures.get(name)) for name in {*names} - {results.axis}) for cell in results.cells)


def _known(figure: Any) -> bool:
    return figure is not None and math.isfinite(figure.value)


def _slug(text: str) -> str:
    """As part of a file's name."""
    return "-".join(re.findall(r"\w+", text.lower()))
