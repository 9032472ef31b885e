"""What the report's charts show, as plain values: its page draws them. NaN is None, as JSON has it."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.findings import headlines
from autolora_jax.experiments.frontier import Frontier
from autolora_jax.experiments.labels import label
from autolora_jax.experiments.pareto import efficient
from autolora_jax.experiments.results import CellResult, Results

Chart = dict[str, Any]
Value = Callable[[CellResult], Interval]
NONE = Interval(math.nan, math.nan, math.nan)


def charts(results: Results) -> list[Chart]:
    """The experiment's plots; the headline figures by method, where there is no axis; the paired differences."""
    along = any(cell.at is not None for cell in results.cells)
    figures = headlines(results)
    return [
        chart
        for chart in (
            *(_chart(results, x, y) for x, y in results.plots),
            *(_chart(results, "", figure) for figure in figures if not along),
            *(_differences(results, figure, along) for figure in figures),
        )
        if any(series["points"] for series in chart["series"])
    ]


def _chart(results: Results, x: str, y: str) -> Chart:
    """A series for each method. x: the axis or a figure; "": methods stand side by side."""
    methods = results.methods
    return {
        "title": label(y) if x in ("", results.axis) else f"{label(y)} against {label(x)}",
        "x": label(x),
        "y": label(y),
        "categories": [] if x else list(methods),
        "zero": False,
        "series": [
            {"method": method, "points": [*_points(results, method, _figure(y), x, y, float(i))]}
            for i, method in enumerate(methods)
        ],
    }


def _points(results: Results, method: str, value: Value, x: str, y: str, number: float) -> Iterator[dict[str, Any]]:
    """x is null of a point that stands at no place of the axis: it is a level."""
    for cell in results.curve(method):
        here = value(cell)
        if math.isnan(here.value):
            continue
        across, papers = _across(results, cell, x, number)
        if across is not None and math.isnan(across.value):
            continue
        published = cell.published.get(y)
        yield {
            "at": cell.at,
            "x": across and plain(across),
            "y": plain(here),
            "paper": None if published is None or papers is None else [papers, published],
        }


def _across(results: Results, cell: CellResult, x: str, number: float) -> tuple[Interval | None, float | None]:
    """(where a cell stands from left to right, where the paper's does)."""
    if x in ("", results.axis) and (not x or cell.at is not None):
        at = number if not x or cell.at is None else cell.at
        return Interval(at, at, at), at
    return (None, None) if x == results.axis else (cell.figures.get(x, NONE), cell.published.get(x))


def _differences(results: Results, figure: str, along: bool) -> Chart:
    """Only of the methods that are compared with one, by the name of the pair."""
    pairs = {cell.method: cell.against for cell in results.cells if figure in cell.differences}
    names = [f"{method} − {against}" for method, against in pairs.items()]
    series = [
        {"method": method, "pair": name, "points": [*_points(results, method, _difference(figure), x, "", float(i))]}
        for i, (method, name) in enumerate(zip(pairs, names, strict=True))
        for x in [results.axis if along else ""]
    ]
    return {
        "title": f"Paired difference in {figure}",
        "x": results.axis if along else "",
        "y": f"Difference in {figure}",
        "categories": [] if along else names,
        "zero": True,
        "series": series,
    }


def _difference(name: str) -> Value:
    return lambda cell: cell.differences.get(name, NONE)


def _figure(name: str) -> Value:
    return lambda cell: cell.figures.get(name, NONE)


def frontier_chart(results: Results, found: Sequence[Frontier]) -> Chart:
    """The plane of the two figures. dominated: each method's efficient points, from the highest y to the highest x."""
    x, y = results.frontier
    chart = _chart(results, x, y)
    dominated = {each.method: [list(point) for point in efficient(each.points)] for each in found}
    areas = {each.method: finite(each.area) for each in found}
    series = [
        {**each, "dominated": dominated[each["method"]], "area": areas[each["method"]]}
        for each in chart["series"]
        if each["method"] in dominated
    ]
    return {**chart, "series": series}


def plain(interval: Interval) -> list[float | None]:
    """As JSON has it."""
    return [finite(part) for part in interval]


def plain_figures(figures: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    """As JSON has them."""
    return {name: plain(interval) for name, interval in figures.items()}


def finite(value: float) -> float | None:
    """As JSON has it."""
    return value if math.isfinite(value) else None
