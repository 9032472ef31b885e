"""report.html: what was compared, what came out and how sure that is, in one file that needs nothing beside it.

Results become plain values, which stand in the page as JSON that nothing can break out of; its script puts every text
where only text can be, and the page's content security policy lets it load nothing and run no other script.
"""

import math
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from autolora_jax import files as whole_files
from autolora_jax.experiments.figures import page_figures
from autolora_jax.experiments.findings import compared, findings, headlines, outcome
from autolora_jax.experiments.frontier import frontier_tables, frontiers
from autolora_jax.experiments.inlining import inlined
from autolora_jax.experiments.labels import heading, more_is_better, ordered
from autolora_jax.experiments.layout import Table
from autolora_jax.experiments.results import Results, plain_intervals
from autolora_jax.experiments.settings import settings_table, shared_settings
from autolora_jax.pages import inert, sealed

PAGE = "report.html"
DATA = "REPORT-DATA"  # in the page, where the values stand
SHEETS = ("sheets/sheet-*.jpg", "sheet-*.jpg")
BESIDE = ("results.json", "table.*", "frontier.*", "plot*.png")


def write_report(
    results: Results, folder: Path, *, sheets: Sequence[Path] | None = None, files: Sequence[Path] | None = None
) -> Path:
    """Writes report.html into a folder and returns its path. Raises OSError.

    sheets: pictures that it shows, embedded and small enough that the page stays below some 25 MB; None: those that
    `write_sheets` wrote into the folder or its subfolder `sheets`. files: what it links to, such as tables and plots,
    which have to stay where they are beside it; None: those that are in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shown = _found(folder, SHEETS) if sheets is None else sheets
    beside = _found(folder, BESIDE) if files is None else files
    links = [Path(os.path.relpath(path, folder)).as_posix() for path in beside]
    page = sealed(resources.files("autolora_jax.experiments").joinpath(PAGE).read_text(encoding="utf-8"))
    content = page.replace(DATA, inert({**values(results), "sheets": inlined(shown), "files": links}), 1)
    path = folder / PAGE
    whole_files.write(path, content)
    return path


def values(results: Results) -> dict[str, Any]:
    """All that the page shows of the results, as JSON values."""
    found = frontiers(results)
    drawings, undrawn = _drawings(results)
    return {
        "title": results.title,
        "name": results.name,
        "lead": [sentence for sentence in (compared(results), outcome(results)) if sentence],
        "findings": [finding._asdict() for finding in findings(results)],
        "axis": results.axis,
        "confidence": results.confidence,
        "methods": list(results.methods),
        "figures": [
            {
                "name": name,
                "heading": heading(name),
                "up": more_is_better(name),
                "meaning": results.meaning.get(name, ""),
            }
            for name in ordered(name for cell in results.cells for name in (*cell.figures, *cell.published))
        ],
        "headlines": list(headlines(results)),
        "cells": [
            {
                **cell._asdict(),
                "settings": None,  # in a table of their own
                "published": {name: value for name, value in cell.published.items() if math.isfinite(value)},
                "figures": plain_intervals(cell.figures),
                "differences": plain_intervals(cell.differences),
            }
            for cell in results.cells
        ],
        "drawings": drawings,
        "undrawn": undrawn,
        "frontierTables": list(map(_table, frontier_tables(results, found))) if found else [],
        "settings": _table(settings_table(results)),
        "shared": shared_settings(results),
        "prompts": list(results.prompts),
        "seeds": results.seeds,
        "meaning": dict(results.meaning),
        "assumptions": list(results.assumptions),
        "provenance": dict(results.provenance),
    }


def _drawings(results: Results) -> tuple[list[dict[str, Any]], str]:
    """The page's figures, and why there are none."""
    try:
        return page_figures(results), ""
    except ModuleNotFoundError as e:
        if e.name != "matplotlib":
            raise
        return [], f"{e}. Then the same command with --report-only draws them."


def _table(table: Table) -> dict[str, Any]:
    rows = [{"name": name, "entries": [entry._asdict() for entry in entries]} for name, entries in table.rows]
    return {**table._asdict(), "rows": rows}


def _found(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return [path for pattern in patterns for path in sorted(folder.glob(pattern))]
