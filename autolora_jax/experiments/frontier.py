"""How varied against how well: each method's frontier, what it dominates, and how varied it is at equal adherence.

More of one is had for less of the other, by a LoRA's scale or a guidance weight alone, so a figure at one setting says
little about a method. What counts is which pairs of the two it offers over all its settings.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from autolora_jax.evaluation import equal
from autolora_jax.experiments.markup import (
    NOTHING,
    Entry,
    Table,
    best,
    csv_text,
    markdown_table,
    markdown_text,
    number,
    span,
    write_texts,
)
from autolora_jax.experiments.results import CellResult, Results, heading

PICTURE = "frontier"  # the name of its file, which `figures` draws


class Point(NamedTuple):
    """Two figures that pull against each other, such as diversity and adherence: both the better the higher."""

    x: float
    y: float


def known(points: Sequence[Point]) -> list[Point]:
    """Those that have both figures."""
    return [point for point in points if not math.isnan(point.x + point.y)]


def efficient(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in one figure without losing in the other, from the highest y to the highest x."""
    found: list[Point] = []
    for point in sorted(known(points), reverse=True):  # from the highest x down: the next has to be higher
        if not found or point.y > found[-1].y or point == found[-1]:
            found.append(point)
    return found[::-1]


def dominated_area(points: Sequence[Point]) -> float:
    """Of all (x, y) above (0, 0) that some point is at least as good as in both: exact, the area under a staircase.

    Nothing is interpolated: between two points it goes down at once, for nothing was drawn there.
    Source: E. Zitzler, L. Thiele, Multiobjective Optimization Using Evolutionary Algorithms: A Comparative Case Study
    (1998), "size of the space covered".
    """
    area, top = 0.0, 0.0
    for x, y in sorted(known(points), reverse=True):
        if y > top:
            area, top = area + max(x, 0.0) * (y - top), y
    return area


def reach(curve: Sequence[Point], level: float) -> float:
    """The greatest x with y no less than the level; NaN where there is none. See evaluation.equal.reach."""
    points = [(np.array([x]), np.array([y])) for x, y in known(curve)]
    return float(equal.reach(points, np.array([level]))[0])


def levels(curves: Sequence[Sequence[Point]], at_most: int = 10) -> list[float]:
    """Round values of y, evenly spaced above 0, that some curve reaches."""
    top = max((point.y for curve in curves for point in known(curve)), default=0.0)
    if not 0 < top < math.inf:
        return []
    size = 10.0 ** math.floor(math.log10(top / at_most))
    step = next(size * part for part in (1, 2, 2.5, 5, 10) if top / (size * part) < at_most + 1)
    return [round(i * step, 12) for i in range(1, math.floor(top / step * (1 + 1e-9)) + 1)]


class Frontier(NamedTuple):
    """A method's points in the plane of the two figures, along its axis. NaN: not measured, or not published.

    range: of its area, when every figure is where its interval begins, and where it ends; NaN where one has none.
    """

    method: str
    cells: tuple[CellResult, ...]
    points: tuple[Point, ...]
    published: tuple[Point, ...]
    range: tuple[float, float]

    @property
    def area(self) -> float:
        return dominated_area(self.points)

    @property
    def published_area(self) -> float:
        return dominated_area(self.published) if known(self.published) else math.nan


def frontiers(results: Results) -> tuple[Frontier, ...]:
    """Of the methods that have a point; none where the experiment has no frontier."""
    if not results.frontier:
        return ()
    found = (_frontier(method, results.curve(method), *results.frontier) for method in results.methods)
    return tuple(each for each in found if known(each.points))


def write_frontier(results: Results, folder: Path) -> list[Path]:
    """Writes frontier.md and frontier.csv, or nothing where there is no frontier. Raises OSError.

    The first shows the plot that `write_figures` has written into the same folder, where it has.
    """
    found = frontiers(results)
    if not found:
        return []
    drawn = (folder / f"{PICTURE}.png").exists()
    texts = {"md": "\n".join(_markdown(results, found, drawn)), "csv": csv_text(_rows(results, found))}
    return write_texts(folder, {f"{PICTURE}.{kind}": text for kind, text in texts.items()})


def frontier_tables(results: Results, found: Sequence[Frontier]) -> tuple[Table, ...]:
    """The dominated areas, and how varied each method is at equal adherence."""
    return (_areas(results, found), _equal(results, found))


def _frontier(method: str, cells: tuple[CellResult, ...], x: str, y: str) -> Frontier:
    def points(part: Callable[[CellResult, str], float]) -> tuple[Point, ...]:
        return tuple(Point(part(cell, x), part(cell, y)) for cell in cells)

    measured = points(lambda cell, name: cell.figure(name).value)
    ends = (points(lambda cell, name: cell.figure(name).low), points(lambda cell, name: cell.figure(name).high))
    some = len(known(measured))
    low, high = (dominated_area(end) if len(known(end)) == some else math.nan for end in ends)
    return Frontier(method, cells, measured, points(CellResult.paper), (low, high))


def _areas(results: Results, found: Sequence[Frontier]) -> Table:
    x, y = results.frontier
    note = (
        f"Of the rectangle from ({x}, {y}) = (0, 0), what some point of the method is at least as good as in both. "
        "Nothing is interpolated, so more points make it larger: compare methods with the same number of them."
    )
    areas = [each.area for each in found]
    columns = {"area": [Entry(number(area), strong=strong) for area, strong in zip(areas, best(areas), strict=True)]}
    if not all(math.isnan(sum(each.range)) for each in found):
        note += " The range is the area when every figure is at the low end, and at the high end, of its interval: "
        note += "bounds, not an interval of the area."
        columns["range"] = [Entry(_between(*each.range)) for each in found]
    if any(known(each.published) for each in found):
        columns["the paper's"] = [Entry(number(each.published_area)) for each in found]
    columns["points"] = [Entry(str(len(known(each.points)))) for each in found]
    columns["efficient"] = [Entry(str(len(efficient(each.points)))) for each in found]
    columns["evaluations a picture"] = [Entry(span(cell.evaluations for cell in each.cells)) for each in found]
    rows = zip((each.method for each in found), zip(*columns.values(), strict=True), strict=True)
    return Table("Dominated area", note, "", (), tuple(columns), tuple(rows)).explained("Bold: the largest.")


def _equal(results: Results, found: Sequence[Frontier]) -> Table:
    x, y = results.frontier
    note = (
        f"The greatest {x} that a method has with no less than that {y}. What lies between neighbouring settings is "
        "taken to be on the straight line between them; nothing is taken to be beyond the first and the last."
    )
    if any(known(each.published) for each in found):
        note += " In brackets: the same from the paper's numbers."
    rows = []
    for level in levels([each.points for each in found]):
        values = [reach(each.points, level) for each in found]
        paper = [reach(each.published, level) for each in found]
        brackets = ["" if math.isnan(value) else f"({number(value)})" for value in paper]
        texts = zip(map(number, values), brackets, best(values), strict=True)
        rows.append((f"≥ {level:g}", tuple(Entry(*parts) for parts in texts)))
    table = Table(f"{x} at equal {y}", note, y, (), tuple(each.method for each in found), tuple(rows))
    return table.explained("Bold: the best of a row.")


def _between(low: float, high: float) -> str:
    return NOTHING if math.isnan(low + high) else f"{number(low)} – {number(high)}"


def _rows(results: Results, found: Sequence[Frontier]) -> Iterator[list[Any]]:
    """A head, then a row a method."""
    x, y = results.frontier
    at = levels([each.points for each in found])
    yield [
        *("method", "area", "area_low", "area_high", "area_published", "points", "efficient"),
        *("evaluations_least", "evaluations_most", *(f"{x} at {y} {level:g}" for level in at)),
    ]
    for each in found:
        costs = [cell.evaluations for cell in each.cells]
        areas = (each.method, each.area, *each.range, each.published_area)
        counts = (len(known(each.points)), len(efficient(each.points)), min(costs), max(costs))
        yield [*areas, *counts, *(reach(each.points, level) for level in at)]


def _markdown(results: Results, found: Sequence[Frontier], drawn: bool) -> Iterator[str]:
    x, y = map(heading, results.frontier)
    yield f"# {markdown_text(results.title)}: {markdown_text(x)} against {markdown_text(y)}\n"
    if drawn:
        yield f"![Each method's points and its frontier]({PICTURE}.png)\n"
    if len({cell.evaluations for each in found for cell in each.cells}) > 1:
        yield "The methods differ in how often the network is evaluated for a picture: see the last column.\n"
    for table in frontier_tables(results, found):
        yield from markdown_table(table)
