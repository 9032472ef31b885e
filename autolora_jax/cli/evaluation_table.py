"""The table of `autolora evaluate`: on the terminal, and as JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autolora_jax import files
from autolora_jax.evaluation import Interval
from autolora_jax.evaluation.scores import Row

WIDTH = 160  # columns of a table that goes to a file


class Results(NamedTuple):
    """Rows of groups and of all pictures. names: the fields that the rows' labels are values of."""

    rows: Sequence[Row]
    overall: Row
    names: Sequence[str]
    confidence: float

    def show(self) -> None:
        """Prints the table to stdout."""
        sure = any(np.isfinite(figure.low) for row in (*self.rows, self.overall) for figure in row.figures.values())
        caption = f"intervals: {self.confidence:.0%} confidence" if sure else None
        table = Table(caption=caption, caption_justify="left")
        for name in self.names:
            table.add_column(name, overflow="fold")
        for heading in ("pictures", *self.overall.figures):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows if self.names else []:
            table.add_row(*map(Text, row.label), *_cells(row))
        table.add_section()
        table.add_row(
            *[Text("all", "bold"), *map(Text, [""] * len(self.names))][: len(self.names)], *_cells(self.overall)
        )
        Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDTH).print(table)

    def write(self, path: Path, told: Mapping[str, Any]) -> None:
        """Writes the table and what else should be known of it, whole or not at all. Raises OSError."""
        content = {
            **told,
            "confidence": self.confidence,
            "group by": list(self.names),
            "all": _plain(self.overall),
            "groups": [{"label": dict(zip(self.names, row.label, strict=True)), **_plain(row)} for row in self.rows],
        }
        files.write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _cells(row: Row) -> list[str]:
    return [str(row.pictures), *map(_shown, row.figures.values())]


def _shown(figure: Interval) -> str:
    if np.isnan(figure.value):
        return "–"
    value = f"{figure.value:.4g}"
    return value if np.isnan(figure.low) else f"{value} ({figure.low:.4g} to {figure.high:.4g})"


def _plain(row: Row) -> dict[str, Any]:
    """A row as JSON values: what is not defined is null."""
    figures = {
        name: {part: None if np.isnan(value) else value for part, value in figure._asdict().items()}
        for name, figure in row.figures.items()
    }
    return {"pictures": row.pictures, "figures": figures}
