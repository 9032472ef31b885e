"""How varied against how well: each method's frontier, what it dominates, and how varied it is at equal adherence.

More of one is had for less of the other, by a LoRA's scale or a guidance weight alone, so a figure at one setting says
little about a method. What counts is which pairs of the two it offers over all its settings.
"""

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from autolora_jax.experiments.labels import heading
from autolora_jax.experiments.layout import NOTHING, UNKNOWN, Entry, Table, best, number, span
from autolora_jax.experiments.markup import markdown_table, markdown_text
from autolora_jax.experiments.pareto import Point, dominated_area, efficient, known, levels, reach
from autolora_jax.experiments.results import CellResult, Results

PICTURE = "frontier"  # the name of its file, which `figures` draws


class Frontier(NamedTuple):
    """A method's points in the plane of the two figures, along its axis. NaN: not measured, or not published.

    lowest, highest: the points whose figures are the low, the high ends of the intervals.
    """

    method: str
    cells: tuple[CellResult, ...]
    points: tuple[Point, ...]
    lowest: tuple[Point, ...]
    highest: tuple[Point, ...]
    published: tuple[Point, ...]

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
    """Writes frontier.md and frontier.csv, or nothing where there is no frontier. Raises OSError."""
    found = frontiers(results)
    if not found:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table = (folder / f"{PICTURE}.{kind}" for kind in ("md", "csv"))
    markdown.write_text("\n".join(_markdown(results, found)), encoding="utf-8")
    with table.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(_rows(results, found))
    return [markdown, table]


def frontier_tables(results: Results, found: Sequence[Frontier]) -> tuple[Table, ...]:
    """The dominated areas, and how varied each method is at equal adherence."""
    return (_areas(results, found), _equal(results, found))


def _frontier(method: str, cells: tuple[CellResult, ...], x: str, y: str) -> Frontier:
    def points(part: Callable[[CellResult, str], float]) -> tuple[Point, ...]:
        return tuple(Point(part(cell, x), part(cell, y)) for cell in cells)

    return Frontier(
        method,
        cells,
        points(lambda cell, name: cell.figures.get(name, UNKNOWN).value),
        points(lambda cell, name: cell.figures.get(name, UNKNOWN).low),
        points(lambda cell, name: cell.figures.get(name, UNKNOWN).high),
        points(lambda cell, name: cell.published.get(name, math.nan)),
    )


def _range(frontier: Frontier) -> tuple[float, float]:
    """Of the area, when every figure is where its interval begins, and where it ends; NaN where one has no interval."""
    some = len(known(frontier.points))
    ends = frontier.lowest, frontier.highest
    low, high = (dominated_area(end) if len(known(end)) == some else math.nan for end in ends)
    return low, high


def _areas(results: Results, found: Sequence[Frontier]) -> Table:
    x, y = results.frontier
    paper = any(known(each.published) for each in found)
    ranges = {each.method: _range(each) for each in found}
    ranged = any(not math.isnan(low + high) for low, high in ranges.values())
    note = (
        f"Of the rectangle from ({x}, {y}) = (0, 0), what some point of the method is at least as good as in both. "
        "Nothing is interpolated, so more points make it larger: compare methods with the same number of them. "
    )
    if ranged:
        note += "The range is the area when every figure is at the low end, and at the high end, of its interval: "
        note += "bounds, not an interval of the area. "
    rows = []
    for each, strong in zip(found, best([each.area for each in found]), strict=True):
        low, high = ranges[each.method]
        texts = [
            *([NOTHING if math.isnan(low + high) else f"{number(low)} – {number(high)}"] if ranged else []),
            *([number(each.published_area)] if paper else []),
            *(str(len(known(each.points))), str(len(efficient(each.points)))),
            span(cell.evaluations for cell in each.cells),
        ]
        rows.append((each.method, (Entry(number(each.area), strong=strong), *map(Entry, texts))))
    columns = (
        "area",
        *(["range"] if ranged else []),
        *(["the paper's"] if paper else []),
        "points",
        "efficient",
        "evaluations a picture",
    )
    return Table("Dominated area", f"{note}Bold: the largest.", "", (), columns, tuple(rows))


def _equal(results: Results, found: Sequence[Frontier]) -> Table:
    x, y = results.frontier
    note = (
        f"The greatest {x} that a method has with no less than that {y}. What lies between neighbouring settings is "
        "taken to be on the straight line between them; nothing is taken to be beyond the first and the last. Bold: "
        "the best of a row."
    )
    if any(known(each.published) for each in found):
        note += " In brackets: the same from the paper's numbers."
    rows = []
    for level in levels([each.points for each in found]):
        values = [reach(each.points, level) for each in found]
        paper = [reach(each.published, level) for each in found]
        texts = zip(map(number, values), map(_brackets, paper), best(values), strict=True)
        rows.append((f"≥ {level:g}", tuple(Entry(*parts) for parts in texts)))
    return Table(f"{x} at equal {y}", note, y, (), tuple(each.method for each in found), tuple(rows))


def _brackets(value: float) -> str:
    return "" if math.isnan(value) else f"({number(value)})"


def _rows(results: Results, found: Sequence[Frontier]) -> Iterator[list[str | int | float]]:
    """A head, then a row a method; what is not known is empty."""
    x, y = results.frontier
    at = levels([each.points for each in found])
    yield [
        *("method", "area", "area_low", "area_high", "area_published", "points", "efficient"),
        *("evaluations_least", "evaluations_most", *(f"{x} at {y} {level:g}" for level in at)),
    ]
    for each in found:
        costs = [cell.evaluations for cell in each.cells]
        row = [
            *(each.area, *_range(each), each.published_area, len(known(each.points)), len(efficient(each.points))),
            *(min(costs), max(costs), *(reach(each.points, level) for level in at)),
        ]
        yield [each.method, *("" if math.isnan(value) else value for value in row)]


def _markdown(results: Results, found: Sequence[Frontier]) -> Iterator[str]:
    x, y = map(heading, results.frontier)
    yield f"# {markdown_text(results.title)}: {markdown_text(x)} against {markdown_text(y)}\n"
    yield f"![Each method's points and its frontier]({PICTURE}.png)\n"
    if len({cell.evaluations for each in found for cell in each.cells}) > 1:
        yield "The methods differ in how often the network is evaluated for a picture: see the last column.\n"
    for table in frontier_tables(results, found):
        yield f"## {markdown_text(table.title)}\n\n{markdown_text(table.note)}\n"
        yield from (*markdown_table(table), "")
