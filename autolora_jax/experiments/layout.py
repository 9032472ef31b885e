"""What tables say, before it is Markdown or LaTeX: results as records, and records as rows and columns of text."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.labels import heading, more_is_better, ordered
from autolora_jax.experiments.results import Results

DIGITS = 3  # the paper's
WIDEST = 12  # columns that a page holds
NOTHING = "–"
UNKNOWN = Interval(math.nan, math.nan, math.nan)


class Record(NamedTuple):
    """A figure of a cell. NaN where the paper has none, and where a cell is compared with none (`against` is "")."""

    method: str
    at: float | None
    figure: str
    interval: Interval
    published: float
    against: str
    difference: Interval
    pictures: int
    evaluations: int


class Entry(NamedTuple):
    """A place of a table: its text, what is said smaller beside it, whether it stands out."""

    text: str
    detail: str = ""
    strong: bool = False


class Table(NamedTuple):
    """corner: what the rows' names are. groups: what stands above the columns, and above how many; (): nothing."""

    title: str
    note: str
    corner: str
    groups: tuple[tuple[str, int], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Entry, ...]], ...]


Row = tuple[str, float | None]  # a method, unless it is told above the columns, and its place on the axis
Column = Sequence[Record | None]


def records(results: Results) -> tuple[Record, ...]:
    """One for each cell and each figure that was measured or published of it, in the order of the cells."""
    return tuple(
        Record(
            cell.method,
            cell.at,
            figure,
            cell.figures.get(figure, UNKNOWN),
            cell.published.get(figure, math.nan),
            cell.against,
            cell.differences.get(figure, UNKNOWN),
            cell.pictures,
            cell.evaluations,
        )
        for cell in results.cells
        for figure in ordered([*cell.figures, *cell.published])
    )


def tables(results: Results) -> tuple[Table, ...]:
    """What was measured, and the differences, where methods are compared.

    A row is a place on the axis, with the methods side by side, as in the paper's Table 1; where cells have no place or
    the methods share few of them, a row is a cell, as in its Table 2.
    """
    found, level = records(results), f"{100 * results.confidence:g} % interval"
    compared = [record for record in found if not math.isnan(record.difference.value)]
    paper = "" if all(math.isnan(each.published) for each in found) else " In brackets: the paper's number."
    half = f"± is half of the {level}." if any(sure(each.interval) for each in found) else ""
    measured = f"{half}{paper} Bold: the best of a column.".strip()
    decided = any(sure(each.difference) for each in compared)
    paired = f"Over the same prompts and seeds{f', with the {level}. Bold: 0 lies outside of it' if decided else ''}."
    return (
        *_pivoted("Measured", measured, results.axis, found, lambda each: each.method, _measured),
        *_pivoted("Differences", paired, results.axis, compared, _compared, _differences),
    )


def number(value: float, *, signed: bool = False, digits: int = DIGITS) -> str:
    """As tables show it."""
    shown = round(value, digits) + 0.0  # not −0
    return NOTHING if math.isnan(value) else f"{shown:{'+' if signed else ''}.{digits}f}".replace("-", "−")


def sure(interval: Interval) -> bool:
    """Whether it has bounds."""
    return math.isfinite(interval.low + interval.high)


def between(interval: Interval, *, signed: bool = False) -> str:
    """Its bounds, as tables show them; "" where it has none."""
    low, high = (number(part, signed=signed) for part in interval[1:])
    return f"({low} … {high})" if sure(interval) else ""


def span(values: Iterable[int]) -> str:
    """The lowest and the highest of them, or the one they all are."""
    known = {*values}
    return NOTHING if not known else str(max(known)) if len(known) == 1 else f"{min(known)} – {max(known)}"


def best(values: Sequence[float]) -> list[bool]:
    """Which are the highest as far as they are shown; none where there is nothing to choose from."""
    shown = [round(value, DIGITS) for value in values]
    known = {value for value in shown if not math.isnan(value)}
    return [len(known) > 1 and value == max(known) for value in shown]


def _pivoted(
    title: str,
    note: str,
    axis: str,
    found: Sequence[Record],
    name: Callable[[Record], str],
    entries: Callable[[Column], list[Entry]],
) -> Iterator[Table]:
    """The records as a table, or as several where that would be too wide. name: of the method.

    Methods stand side by side along the axis where that fills at least half of the table and leaves no cell out.
    """
    filled = {(each.at, name(each)) for each in found}
    places, methods = ({part[i] for part in filled} for i in (0, 1))
    along = None not in places and 2 * len(filled) >= len(places) * len(methods)
    placed: dict[tuple[Row, str, str], Record] = {}
    for each in found:
        row, group = (("", each.at), name(each)) if along else ((name(each), each.at), "")
        placed[row, group, each.figure] = each
    rows, groups = [*dict.fromkeys(row for row, _, _ in placed)], dict.fromkeys(group for _, group, _ in placed)
    rows = sorted(rows) if along else rows
    figures = ordered(each.figure for each in found)
    some = max(1, WIDEST // max(1, len(groups)))
    for part in (figures[i : i + some] for i in range(0, len(figures), some)):
        columns = {
            (group, figure): [placed.get((row, group, figure)) for row in rows] for group in groups for figure in part
        }
        columns = {place: column for place, column in columns.items() if any(column)}
        cells = [entries(column) for column in columns.values()]
        spans = [(group, len([*same])) for group, same in itertools.groupby(group for group, _ in columns)]
        yield Table(
            f"{title}: {', '.join(part)}",
            note,
            axis if along else f"method, {axis}" if len(places) > 1 else "method",
            tuple(spans) if along else (),
            tuple(heading(figure) for _, figure in columns),
            tuple((_name(row), tuple(column[i] for column in cells)) for i, row in enumerate(rows)),
        )


def _measured(column: Column) -> list[Entry]:
    values = [math.nan if each is None else each.interval.value for each in column]
    chosen = best(values) if any(each and more_is_better(each.figure) for each in column) else [False] * len(column)
    return [
        Entry(number(value), "" if each is None else _beside(each), strong)
        for each, value, strong in zip(column, values, chosen, strict=True)
    ]


def _beside(record: Record) -> str:
    half, published = (record.interval.high - record.interval.low) / 2, record.published
    parts = (
        f"± {number(half)}" if sure(record.interval) else "",
        "" if math.isnan(published) else f"({number(published)})",
    )
    return " ".join(filter(None, parts))


def _differences(column: Column) -> list[Entry]:
    return [_difference(UNKNOWN if each is None else each.difference) for each in column]


def _difference(interval: Interval) -> Entry:
    return Entry(
        number(interval.value, signed=True), between(interval, signed=True), interval.low > 0 or interval.high < 0
    )


def _compared(record: Record) -> str:
    return f"{record.method} − {record.against}"


def _name(row: Row) -> str:
    method, at = row
    return " ".join(filter(None, (method, "" if at is None else f"{at:g}")))
