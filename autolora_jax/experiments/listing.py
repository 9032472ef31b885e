"""Every number of an experiment in one table that a reader can sort: a row a cell, its intervals, what is decided.

The report shows it as it stands here; its script decides nothing about it.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.findings import sign
from autolora_jax.experiments.markup import NOTHING, best, between, number
from autolora_jax.experiments.results import LABELS, CellResult, Results, heading, ordered

_TONES = {1: ("▲ ", "up"), -1: ("▼ ", "down"), 0: ("", "level"), None: ("", "")}


class Value(NamedTuple):
    """text, and a detail below it. key: what it is sorted by; None: unknown, last. tone: its look. title: a tooltip."""

    text: str
    key: float | None
    detail: str = ""
    tone: str = ""
    title: str = ""


class Column(NamedTuple):
    """A value of each cell. group: what it stands under, with the columns beside it of the same. up: sorts so first."""

    name: str
    values: Sequence[Value]
    group: str = ""
    about: str = ""
    up: bool = False


def listing(results: Results) -> dict[str, Any]:
    """columns (name, group, about, up), rows (a Value a column) and the note below, as JSON values."""
    columns = [*_columns(results)]
    return {
        "columns": [{"name": c.name, "group": c.group, "about": c.about, "up": c.up} for c in columns],
        "rows": [[value._asdict() for value in row] for row in zip(*(c.values for c in columns), strict=True)],
        "note": " ".join(_note(results, columns)),
    }


def _columns(results: Results) -> Iterator[Column]:
    cells = results.cells
    yield Column("method", [Value(cell.method, results.methods.index(cell.method)) for cell in cells], up=True)
    if results.axis:
        places = [Value(NOTHING if cell.at is None else f"{cell.at:g}", cell.at) for cell in cells]
        yield Column(results.axis, places, up=True)
    for figure in ordered(name for cell in cells for name in (*cell.figures, *cell.published)):
        own = (
            ("here", _measured(cells, figure)),
            ("paper", _values([Interval(cell.paper(figure), math.nan, math.nan) for cell in cells], "published")),
            ("Δ", [_difference(cell, figure) for cell in cells]),
        )
        for name, values in own:
            if any(value.key is not None for value in values):
                yield Column(name, values, heading(figure), results.meaning.get(figure, ""))
    if len({cell.pictures for cell in cells}) > 1:
        yield Column("pictures", [Value(f"{cell.pictures:,}", cell.pictures) for cell in cells])


def _values(found: Sequence[Interval], tone: str = "") -> list[Value]:
    return [Value(number(each.value), _key(each), between(each), tone) for each in found]


def _measured(cells: Sequence[CellResult], figure: str) -> list[Value]:
    found = [cell.figure(figure) for cell in cells]
    chosen = best([each.value for each in found]) if figure in LABELS else [False] * len(cells)
    return [value._replace(tone="best" * strong) for value, strong in zip(_values(found), chosen, strict=True)]


def _difference(cell: CellResult, figure: str) -> Value:
    found = cell.difference(figure)
    glyph, tone = _TONES[sign(found)]
    title = f"minus {cell.against}" if cell.against else ""
    return Value(glyph + number(found.value, signed=True), _key(found), between(found, signed=True), tone, title)


def _key(found: Interval) -> float | None:
    return None if math.isnan(found.value) else found.value


def _note(results: Results, columns: Sequence[Column]) -> Iterator[str]:
    """Sentences on what the table shows."""
    cells = results.cells
    sure = any(found.sure for cell in cells for found in cell.figures.values())
    decided = any(found.sure for cell in cells for found in cell.differences.values())
    if sure:
        yield f"Below each number its {100 * results.confidence:g} % interval."
    if any(value.tone == "best" for column in columns for value in column.values):
        yield "Bold: the best of its column."
    if any(cell.published for cell in cells):
        yield "Paper: the number that it prints."
    if pairs := {cell.method: cell.against for cell in cells if cell.against}:
        told = "; ".join(f"{method} minus {against}" for method, against in pairs.items())
        chance = f"One in {round(1 / (1 - results.confidence))} does so by chance where nothing differs"
        yield f"Δ: {told}, over the same prompts and seeds{f'; ▲ ▼: the interval excludes 0. {chance}' * decided}."
    if columns[-1].name != "pictures":
        yield f"Each cell: {cells[0].pictures:,} pictures."
