"""What came out of an experiment: all that tables, plots and the report need, and a JSON file of it."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax import files
from autolora_jax.evaluation import Interval


class CellResult(NamedTuple):
    """A cell's figures: "Div", "CPS", "Div-CPS", …; also "CLIPScore", "Vendi" and others, where they were measured.

    pictures: that were measured. evaluations: of the network, a picture. settings: all that its pictures share, as the
    manifest names it. differences: its figures minus those of `against`, over the same prompts and seeds; "": of none.
    """

    method: str
    at: float | None
    pictures: int
    evaluations: int
    settings: Mapping[str, Any]
    figures: Mapping[str, Interval]
    against: str = ""
    differences: Mapping[str, Interval] = {}
    published: Mapping[str, float] = {}


@dataclasses.dataclass(frozen=True)
class Results:
    """axis, plots, frontier, assumptions: the experiment's, as this run has them. confidence: of the intervals.

    meaning: what each figure is, in a sentence. provenance: what one needs to do it again or to judge it, as lines of a
    list: command, model and LoRA with their hashes, judge, features, versions, dates, pictures without a score and why.
    """

    name: str
    title: str
    axis: str
    cells: tuple[CellResult, ...]
    prompts: tuple[str, ...]
    seeds: int
    plots: tuple[tuple[str, str], ...]
    frontier: tuple[str, ...]
    confidence: float
    meaning: Mapping[str, str]
    assumptions: tuple[str, ...]
    provenance: Mapping[str, str]

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that any cell has, in order."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell.figures))

    def curve(self, method: str) -> tuple[CellResult, ...]:
        """The cells of a method, along the axis."""
        cells = [cell for cell in self.cells if cell.method == method]
        return tuple(sorted(cells, key=lambda cell: -math.inf if cell.at is None else cell.at))

    def write(self, path: Path) -> None:
        """As JSON; figures that are not defined are null. Raises OSError."""
        content = dataclasses.asdict(self) | {"cells": [_plain(cell) for cell in self.cells]}
        files.write(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """What `write` wrote. Raises OSError, ValueError."""
        content = json.loads(path.read_text(encoding="utf-8"))
        content |= {name: tuple(content[name]) for name in ("prompts", "frontier", "assumptions")}
        content["plots"] = tuple((x, y) for x, y in content["plots"])
        content["cells"] = tuple(_cell(cell) for cell in content["cells"])
        return cls(**content)


def _plain(cell: CellResult) -> dict[str, Any]:
    return cell._asdict() | {name: plain_intervals(getattr(cell, name)) for name in ("figures", "differences")}


def plain_intervals(figures: Mapping[str, Interval]) -> dict[str, list[float | None]]:
    """As JSON has them: what is not known is null."""
    return {name: [part if math.isfinite(part) else None for part in figure] for name, figure in figures.items()}


def _cell(content: Mapping[str, Any]) -> CellResult:
    figures = {
        name: {
            figure: Interval(*(math.nan if part is None else part for part in parts))
            for figure, parts in content[name].items()
        }
        for name in ("figures", "differences")
    }
    return CellResult(**{**content, **figures})
