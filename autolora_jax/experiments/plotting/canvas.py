"""What every plot shares: a look for each method, figures as PNG and SVG, labels that do not lie on each other.

The only module that decides about fonts and colours. No state of pyplot is touched. Importing it needs matplotlib.
"""

import functools
import io
import math
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

# M. Okabe, K. Ito, Color Universal Design (2008), without yellow, which white paper swallows
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")
LINES = ("-", ":", "-.")
DPI = 160
TITLE, TEXT, SMALL = 11, 9, 7.5  # points
BOLD = 1.15  # as wide as other letters
GREY, LINE = "#666666", "#dddddd"
TELLING = "tells-"  # how the names of what points say begin in an SVG
SIDES = ((1, 1), (-1, 1), (1, -1), (-1, -1), (0, 1), (0, -1), (1, 0), (-1, 0))  # of a point, where a text may be


class Look(NamedTuple):
    colour: str
    marker: str
    line: str


class Mark(NamedTuple):
    """A point of a plot and what is written at it."""

    x: float
    y: float
    text: str
    colour: str


def looks(methods: Sequence[str]) -> dict[str, Look]:
    """The same for the same methods in every plot: a colour for each; past the last one other markers and lines."""
    known = len(COLOURS)
    return {
        method: Look(COLOURS[i % known], MARKERS[(i + i // known) % len(MARKERS)], LINES[i // known % len(LINES)])
        for i, method in enumerate(methods)
    }


def new_figure(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of panels, row by row, each of about so many inches."""
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = [*figure.subplots(rows, columns, squeeze=False).flat]
    for spare in axes[panels:]:
        spare.remove()
    for each in axes[:panels]:
        each.spines[["top", "right"]].set_visible(False)
        each.spines[["left", "bottom"]].set_color(GREY)
        each.grid(color=LINE, linewidth=0.6)
        each.set_axisbelow(True)
        each.tick_params(labelsize=SMALL + 0.5, color=GREY)
    return figure, axes[:panels]


def entitle(figure: Figure, title: str, note: str, legend: Axes | None = None) -> None:
    """Writes the title and the legend of some panel above, and what signs mean below: before points are labelled.

    A legend of several lines makes the figure higher.
    """
    letters = figure.get_figwidth() * 72 / 0.6  # of one point, in a line
    title, note = textwrap.fill(title, int(letters / TITLE / BOLD)), textwrap.fill(note, int(letters / SMALL))
    figure.supxlabel(plain(note), x=0.01, ha="left", fontsize=SMALL, color=GREY)
    if legend is None:
        figure.suptitle(plain(title), x=0.01, ha="left", fontsize=TITLE, fontweight="bold")
        return
    handles, texts = legend.get_legend_handles_labels()
    width = max(map(len, texts), default=0) + 8  # letters, with those that the line before them is as wide as
    lines = math.ceil(len(texts) / max(1, letters / TEXT // width))
    figure.set_figheight(figure.get_figheight() + 1.5 * TEXT / 72 * (lines - 1))
    figure.legend(
        handles,
        texts,
        loc="outside upper left",
        ncols=math.ceil(len(texts) / max(1, lines)),
        title=plain(title) or None,
        title_fontproperties={"size": TITLE, "weight": "bold"},
        alignment="left",
        fontsize=TEXT,
        frameon=False,
    )


def save(figure: Figure, path: Path) -> Path:
    """As a PNG, of the same bytes wherever the same matplotlib draws it."""
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def svg(figure: Figure) -> str:
    """As an <svg> element for a page with variables for colours: --paper, --ink, --quiet, --line and --m0, --m1, …

    Letters are shapes, points say what `tell` gave them. The same figure is the same text.
    """
    file = io.StringIO()
    about = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "autolora"}):
        figure.savefig(file, format="svg", transparent=True, metadata=about)
    text = file.getvalue()
    text = re.sub(r"<!--.*?-->|<style.*?</style>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' (d|x|y)="[^"]+"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)  # of a point
    text = re.sub(rf"<g id=([\"']){TELLING}(.*?)\1>", r"<g><title>\2</title>", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]*_\d+"', "", text)  # nothing refers to them, and several figures share a page
    return re.sub(r"#[0-9a-f]{6}\b", lambda found: _on_page().get(found[0], found[0]), text)


def tell(axes: Axes, x: float, y: float, text: str) -> None:
    """What a point says where one can ask it: in an SVG, when it is pointed at."""
    axes.plot([x], [y], "o", markersize=12, alpha=0, gid=TELLING + text, label="_", zorder=5)


def plain(text: str) -> str:
    """Without what matplotlib takes for formulas."""
    return text.replace("$", r"\$")


def label_points(axes: Axes, marks: Sequence[Mark]) -> None:
    """Writes texts at their points, the first ones first, and leaves out those that would lie on a text or a point."""
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]  # now limits and sizes are known
    pixel = axes.figure.dpi / 72
    line, letter = 1.2 * SMALL * pixel, 0.64 * SMALL * pixel
    drawn = [each for each in axes.lines if each.get_marker() not in (None, "None", "")]
    points = np.concatenate([np.empty((0, 2)), *(axes.transData.transform(each.get_xydata()) for each in drawn)])
    (left, bottom), (right, top) = axes.bbox.get_points()
    texts = np.empty((0, 4))
    for mark in marks:
        place, size = axes.transData.transform((mark.x, mark.y)), np.array([letter * len(mark.text), line])
        for side in SIDES:
            centre = place + side * (size / 2 + 3 * pixel)
            box = x0, y0, x1, y1 = np.concatenate([centre - size / 2, centre + size / 2])
            taken = ((texts[:, :2] < box[2:] + pixel) & (texts[:, 2:] > box[:2] - pixel)).all(1).any()
            hidden = ((points > box[:2] - 2 * pixel) & (points < box[2:] + 2 * pixel)).all(1).any()
            if left <= x0 and x1 <= right and bottom <= y0 and y1 <= top and not taken and not hidden:
                texts = np.concatenate([texts, [box]])
                x, y = axes.transAxes.inverted().transform(centre)
                written = axes.text(x, y, plain(mark.text), transform=axes.transAxes, ha="center", va="center")
                halo = withStroke(linewidth=1.5, foreground="white")
                written.set(fontsize=SMALL, color=_dark(mark.colour), path_effects=[halo], zorder=4)
                break


def _dark(colour: str) -> tuple[float, float, float]:
    """Of the same hue, to be read as text on white."""
    red, green, blue = to_rgb(colour)
    return 0.75 * red, 0.75 * green, 0.75 * blue


@functools.cache
def _on_page() -> dict[str, str]:
    """Colours -> what a page calls them, which may be light or dark."""
    variables = {GREY: "var(--quiet)", LINE: "var(--line)", "#ffffff": "var(--paper)"}
    for i, colour in enumerate(COLOURS):
        variables[to_hex(_dark(colour))] = f"color-mix(in srgb, var(--m{i}) 75%, var(--ink))"
        variables[colour.lower()] = f"var(--m{i})"
    return variables
