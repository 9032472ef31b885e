"""An experiment's results as tables, and as table.md to read, table.csv to compute with, table.tex to print."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autolora_jax.batch.gallery.table import as_words
from autolora_jax.evaluation import Interval
from autolora_jax.experiments.markup import (
    NOTHING,
    Entry,
    Table,
    best,
    between,
    csv_text,
    latex_table,
    markdown_table,
    markdown_text,
    number,
    span,
    write_texts,
)
from autolora_jax.experiments.results import LABELS, UNKNOWN, CellResult, Results, heading, ordered

WIDEST = 12  # columns that a page holds
SEVERAL = 4  # values of a method's cells that are all told; of more, the first and the last
COLUMNS = (
    *("method", "at", "figure", "value", "low", "high", "published"),
    *("against", "difference", "difference_low", "difference_high", "beyond", "beyond_low", "beyond_high"),
    *("pictures", "evaluations"),
)
Row = tuple[str, float | None]  # a method, unless it is told above the columns, and its place on the axis
Column = Sequence[CellResult | None]


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Writes table.md, table.csv and table.tex. Raises OSError."""
    rows = (
        [
            *(cell.method, cell.at, figure, *cell.figure(figure), cell.paper(figure)),
            *(cell.against, *cell.difference(figure), *cell.further(figure), cell.pictures, cell.evaluations),
        ]
        for cell, figure in records(results)
    )
    texts = {"md": "\n".join(_markdown(results)), "csv": csv_text([COLUMNS, *rows]), "tex": "\n".join(_latex(results))}
    return write_texts(folder, {f"table.{kind}": text for kind, text in texts.items()})


def records(results: Results) -> list[tuple[CellResult, str]]:
    """Each cell with each figure that was measured or published of it, in the order of the cells."""
    return [(cell, name) for cell in results.cells for name in ordered([*cell.figures, *cell.published])]


def tables(results: Results) -> tuple[Table, ...]:
    """What was measured, and the differences, where methods are compared.

    A row is a place on the axis, with the methods side by side, as in the paper's Table 1; where cells have no place or
    the methods share few of them, a row is a cell, as in its Table 2.
    """
    found, level = records(results), f"{100 * results.confidence:g} % interval"
    compared = [(cell, name) for cell, name in found if not math.isnan(cell.difference(name).value)]
    paper = any(not math.isnan(cell.paper(name)) for cell, name in found)
    measured = (
        f"± is half of the {level}." if any(cell.figure(name).sure for cell, name in found) else "",
        "In brackets: the paper's number." if paper else "",
    )
    decided = any(cell.difference(name).sure for cell, name in compared)
    paired = f"Over the same prompts and seeds{f', with the {level}. Bold: 0 lies outside of it' if decided else ''}."
    columns = _pivoted("Measured", results.axis, found, lambda cell: cell.method, _measured)
    between_two = _entries(CellResult.difference)
    differences = _pivoted("Differences", results.axis, compared, lambda cell: cell.pair, between_two)
    note = " ".join(filter(None, measured))
    return (
        *(table._replace(note=note).explained("Bold: the best of a column.") for table in columns),
        *(table._replace(note=paired) for table in differences),
        *_beyond(results, f"with the {level}. Bold: 0 lies outside of it"),
    )


def shared_settings(results: Results) -> dict[str, str]:
    """What all pictures share, in words; what is not set is left out."""
    columns = _settings(results.cells)
    return {name: values[0] for name, values in columns.items() if len({*values}) == 1 and values[0] != NOTHING}


def settings_table(results: Results) -> Table:
    """A row a method, a column for each setting in which pictures differ. Strong: what the first method does not have.

    Along the axis a method's values stand from its first cell to its last.
    """
    differing = [name for name, values in _settings(results.cells).items() if len({*values}) > 1]
    curves = {method: results.curve(method) for method in results.methods}
    told = {
        method: [_along(_settings(cells).get(name, [NOTHING])) for name in differing]
        for method, cells in curves.items()
    }
    usual, rows = told[results.methods[0]], []
    for method, words in told.items():
        entries = (Entry(text, strong=text != first) for text, first in zip(words, usual, strict=True))
        rows.append((method, (*entries, Entry(span(cell.evaluations for cell in curves[method])))))
    columns = (*(name.replace("_", " ") for name in differing), "network evaluations a picture")
    note = "Marked: what the first method does not have."
    return Table("Where the methods differ", note, "", (), columns, tuple(rows))


def _beyond(results: Results, told: str) -> Iterator[Table]:
    """What methods of a map have more than the best of their rivals at their level."""
    if results.chart is None:
        return
    level, figures, _, _ = results.chart
    found = [(cell, name) for cell in results.cells for name in figures if name in cell.beyond]
    note = (
        f"More than the best of what its rivals have at no less {level}, {told}. What lies between neighbouring "
        f"settings is taken to be on a straight line; {NOTHING}: none has as much {level}."
    )
    title = f"At equal {level}"
    tables = _pivoted(title, results.axis, found, lambda cell: cell.method, _entries(CellResult.further))
    yield from (table._replace(note=note) for table in tables)


def _markdown(results: Results) -> Iterator[str]:
    yield f"# {markdown_text(results.title)}\n"
    drawn = span(cell.pictures for cell in results.cells)
    told = {"pictures a cell": drawn, "prompts": str(len(results.prompts)), "seeds": str(results.seeds)}
    yield from _list("", {**told, **results.provenance})
    yield from _list("Settings that all share", shared_settings(results))
    yield from _list("What the figures are", results.meaning)
    yield from _list("What the paper does not say, and was chosen here", dict.fromkeys(results.assumptions, ""))
    for table in (*tables(results), settings_table(results)):
        yield from markdown_table(table)


def _list(title: str, lines: Mapping[str, str]) -> Iterator[str]:
    if lines:
        yield from [f"## {title}\n"] if title else []
        yield from (f"- {markdown_text(': '.join(filter(None, line)))}" for line in lines.items())
        yield ""


def _latex(results: Results) -> Iterator[str]:
    yield r"% \usepackage[T1]{fontenc} \usepackage{booktabs,graphicx} … \input{table}"
    drawn = span(cell.pictures for cell in results.cells)
    for table in (*tables(results), settings_table(results)):
        yield from latex_table(table, f"{results.title}. {table.title}; {drawn} pictures a cell. {table.note}")


def _pivoted(
    title: str,
    axis: str,
    found: Sequence[tuple[CellResult, str]],
    name: Callable[[CellResult], str],
    entries: Callable[[Column, str], list[Entry]],
) -> Iterator[Table]:
    """Figures of cells as a table, or as several where that would be too wide. name: of the method.

    Methods stand side by side along the axis where that fills at least half of the table and leaves no cell out.
    """
    filled = {(cell.at, name(cell)) for cell, _ in found}
    places, methods = ({part[i] for part in filled} for i in (0, 1))
    along = None not in places and 2 * len(filled) >= len(places) * len(methods)
    placed: dict[tuple[Row, str, str], CellResult] = {}
    for cell, figure in found:
        row, group = (("", cell.at), name(cell)) if along else ((name(cell), cell.at), "")
        placed[row, group, figure] = cell
    rows, groups = [*dict.fromkeys(row for row, _, _ in placed)], dict.fromkeys(group for _, group, _ in placed)
    rows = sorted(rows) if along else rows
    figures = ordered(figure for _, figure in found)
    some = max(1, WIDEST // max(1, len(groups)))
    for part in (figures[i : i + some] for i in range(0, len(figures), some)):
        columns = {
            (group, figure): [placed.get((row, group, figure)) for row in rows] for group in groups for figure in part
        }
        columns = {place: column for place, column in columns.items() if any(column)}
        cells = [entries(column, figure) for (_, figure), column in columns.items()]
        spans = [(group, len([*same])) for group, same in itertools.groupby(group for group, _ in columns)]
        yield Table(
            f"{title}: {', '.join(part)}",
            "",
            axis if along else f"method, {axis}" if len(places) > 1 else "method",
            tuple(spans) if along else (),
            tuple(heading(figure) for _, figure in columns),
            tuple((_name(row), tuple(column[i] for column in cells)) for i, row in enumerate(rows)),
        )


def _measured(column: Column, figure: str) -> list[Entry]:
    values = [math.nan if cell is None else cell.figure(figure).value for cell in column]
    chosen = best(values) if figure in LABELS else [False] * len(column)
    return [
        Entry(number(value), "" if cell is None else _beside(cell, figure), strong)
        for cell, value, strong in zip(column, values, chosen, strict=True)
    ]


def _beside(cell: CellResult, figure: str) -> str:
    found, paper = cell.figure(figure), cell.paper(figure)
    half = f"± {number((found.high - found.low) / 2)}" if found.sure else ""
    return " ".join(filter(None, (half, "" if math.isnan(paper) else f"({number(paper)})")))


def _entries(of: Callable[[CellResult, str], Interval]) -> Callable[[Column, str], list[Entry]]:
    """Differences, those that are decided in bold."""

    def entries(column: Column, figure: str) -> list[Entry]:
        found = [UNKNOWN if cell is None else of(cell, figure) for cell in column]
        return [
            Entry(number(each.value, signed=True), between(each, signed=True), each.low > 0 or each.high < 0)
            for each in found
        ]

    return entries


def _name(row: Row) -> str:
    method, at = row
    return " ".join(filter(None, (method, "" if at is None else f"{at:g}")))


def _settings(cells: Sequence[CellResult]) -> dict[str, list[str]]:
    """Setting -> its value in each cell, in words."""
    flat = [dict(_flat(cell.settings)) for cell in cells]
    names = dict.fromkeys(name for each in flat for name in each)
    return {name: [each.get(name, NOTHING) for each in flat] for name in names}


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, NOTHING if value in (None, "", [], ()) else as_words(value)


def _along(values: Sequence[str]) -> str:
    several = list(dict.fromkeys(values))
    return ", ".join(several) if len(several) <= SEVERAL else f"{several[0]} … {several[-1]}"
