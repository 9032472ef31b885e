"""An experiment's results as table.md to read, table.csv to compute with, table.tex to print."""

import csv
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from autolora_jax.experiments.layout import Record, records, span, tables
from autolora_jax.experiments.markup import latex_table, markdown_table, markdown_text
from autolora_jax.experiments.results import Results
from autolora_jax.experiments.settings import settings_table, shared_settings

COLUMNS = (
    *("method", "at", "figure", "value", "low", "high", "published"),
    *("against", "difference", "difference_low", "difference_high", "pictures", "evaluations"),
)


def write_tables(results: Results, folder: Path) -> list[Path]:
    """Writes table.md, table.csv and table.tex. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown, table, latex = (folder / f"table.{kind}" for kind in ("md", "csv", "tex"))
    markdown.write_text("\n".join(_markdown(results)), encoding="utf-8")
    with table.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([COLUMNS, *map(_row, records(results))])
    latex.write_text("\n".join(_latex(results)), encoding="utf-8")
    return [markdown, table, latex]


def _row(record: Record) -> list[str | int | float]:
    """What is not known is empty; numbers have all their digits."""
    row = [
        *(record.method, record.at, record.figure, *record.interval, record.published),
        *(record.against, *record.difference, record.pictures, record.evaluations),
    ]
    return ["" if part is None or (isinstance(part, float) and math.isnan(part)) else part for part in row]


def _markdown(results: Results) -> Iterator[str]:
    yield f"# {markdown_text(results.title)}\n"
    drawn = span(cell.pictures for cell in results.cells)
    told = {"pictures a cell": drawn, "prompts": str(len(results.prompts)), "seeds": str(results.seeds)}
    yield from _list("", {**told, **results.provenance})
    yield from _list("Settings that all share", shared_settings(results))
    yield from _list("What the figures are", results.meaning)
    yield from _list("What the paper does not say, and was chosen here", dict.fromkeys(results.assumptions, ""))
    for table in (*tables(results), settings_table(results)):
        yield f"## {markdown_text(table.title)}\n\n{markdown_text(table.note)}\n"
        yield from (*markdown_table(table), "")


def _list(title: str, lines: Mapping[str, str]) -> Iterator[str]:
    if lines:
        yield from [f"## {title}\n"] if title else []
        yield from (f"- {markdown_text(': '.join(filter(None, line)))}" for line in lines.items())
        yield ""


def _latex(results: Results) -> Iterator[str]:
    yield r"% \usepackage[T1]{fontenc} \usepackage{booktabs,graphicx} … \input{table}"
    for table in (*tables(results), settings_table(results)):
        drawn = span(cell.pictures for cell in results.cells)
        yield from latex_table(table, f"{results.title}. {table.title}; {drawn} pictures a cell. {table.note}")
        yield ""
