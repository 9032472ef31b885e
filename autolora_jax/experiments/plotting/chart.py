"""The map: where methods have more than the best of their rivals, as much, or less, at the same level of a figure."""

import textwrap
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.findings import advantage
from autolora_jax.experiments.markup import between, number
from autolora_jax.experiments.plotting.canvas import COLOURS, GREY, LINE, SMALL, TEXT, plain, tell
from autolora_jax.experiments.results import CellResult, Results

WINS, LOSES = COLOURS[0], COLOURS[1]
SIGNS = {1: "+", 0: "=", -1: "−", None: "·"}
LEGEND = "+ more   = no difference that is decided   − less   · no rival comes up to its level"
ROOM, CROWDED = 0.55, 0.3  # inches that a number takes, and those below which texts stand upright


def charted(axes: Axes, results: Results, figure: str, legible: float) -> None:
    """Draws a figure's map: a rectangle a cell, coloured where the difference is decided, stronger the larger it is.

    legible: how many inches a cell is wide; with little room there are signs in place of numbers.
    """
    chart = results.chart
    assert chart is not None
    columns, rows = ([*dict.fromkeys(each)] for each in zip(*((s.column, s.row) for s in chart.spots), strict=True))
    places = {column: _places(results, column) for column in columns}
    starts = {column: sum(len(places[other]) for other in columns[:i]) for i, column in enumerate(columns)}
    cells = {(cell.method, cell.at): cell for cell in results.cells}
    largest = max((abs(cell.further(figure).value) for cell in results.cells if cell.further(figure).sure), default=1.0)
    for spot in chart.spots:
        for i, at in enumerate(places[spot.column]):
            if (cell := cells.get((spot.method, at))) is None:
                continue
            x, y = starts[spot.column] + i, rows.index(spot.row)
            won = advantage(cell.further(figure), figure in chart.falling)
            colour, ink = _colours(won, abs(cell.further(figure).value) / largest)
            axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=1))
            text = number(cell.further(figure).value, signed=True, digits=2) if legible > ROOM and won else SIGNS[won]
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=SMALL, color=ink)
            tell(axes, x + 0.5, y + 0.5, _told(results, cell, figure))
    width = sum(map(len, places.values()))
    axes.set(xlim=(0, width), ylim=(len(rows), 0))
    narrow = legible < CROWDED
    named = [plain(textwrap.fill(row, 14) if narrow else row) for row in rows]
    axes.set_yticks([i + 0.5 for i in range(len(rows))], named, fontsize=SMALL)
    ticks = [(starts[column] + i + 0.5, at) for column in columns for i, at in enumerate(places[column])]
    axes.set_xticks([x for x, _ in ticks], [f"{at:g}" if at is not None else "" for _, at in ticks], fontsize=SMALL)
    axes.tick_params(axis="x", rotation=90 if narrow else 0)
    axes.set_xlabel(plain(results.axis), fontsize=SMALL)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for column in columns:
        middle, turned = starts[column] + len(places[column]) / 2, 90 if narrow else 0
        axes.text(middle, -0.15, plain(column), ha="center", va="bottom", fontsize=SMALL, rotation=turned)
        axes.axvline(starts[column], color=GREY, linewidth=0.8)


def _places(results: Results, column: str) -> Sequence[float | None]:
    methods = {spot.method for spot in (results.chart.spots if results.chart else ()) if spot.column == column}
    found = {cell.at for cell in results.cells if cell.method in methods}
    return sorted(found, key=lambda at: (at is not None, at))


def _colours(won: int | None, share: float) -> tuple[Any, str]:
    """(of the rectangle, of the text): what is hardly more is pale."""
    if not won:
        return LINE if won == 0 else "none", GREY
    strength = 0.35 + 0.65 * min(share, 1.0)
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(WINS if won > 0 else LOSES))
    return to_hex((red, green, blue)), "white" if strength > 0.6 else "black"


def _told(results: Results, cell: CellResult, figure: str) -> str:
    chart, found = results.chart, cell.further(figure)
    assert chart is not None
    at = "" if cell.at is None else f", {results.axis} {cell.at:g}"
    lines = [f"{cell.method}{at}", f"{figure}: {number(cell.figure(figure).value)}"]
    lines.append(f"{chart.level}: {number(cell.figure(chart.level).value)}")
    if isinstance(found, Interval) and found.sure:
        lines.append(f"beyond its rivals: {number(found.value, signed=True)} {between(found, signed=True)}")
    return "\n".join(lines)


def heading_of(axes: Axes, results: Results, figure: str, legible: float) -> None:
    """Says above a map what it is of."""
    chart = results.chart
    assert chart is not None
    less = ", of which less is better" if figure in chart.falling else ""
    narrow = legible < CROWDED
    text = f"{figure} at equal {chart.level}{less}"
    axes.set_title(
        plain(textwrap.fill(text, 28) if narrow else text), loc="left", fontsize=TEXT, pad=46 if narrow else 18
    )
