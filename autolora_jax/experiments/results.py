"""What came out of an experiment: all that tables, plots and the report need, and a JSON file of it.

A figure has a short name ("Div", "CPS", "Div-CPS") here, in files and in columns; its label explains it on an axis. All
that have a label are the better the higher they are. Any other goes by its name, last and without a direction.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax import files, foreign
from autolora_jax.evaluation import Interval
from autolora_jax.experiments.experiment import Chart, Spot

UNKNOWN = Interval(math.nan, math.nan, math.nan)
UP = "↑"
INTERVALS = ("figures", "differences", "beyond")  # of a cell
EVALUATIONS = "Evaluations"  # of the network, a picture: a figure where a plot asks for it
LABELS = {
    "Div": f"Diversity {UP} (Eq. 8)",
    "CPS": f"Character presence score (CPS) {UP}",
    "PC": f"Prompt correspondence (PC) {UP}",
    "SA": f"Style adherence (SA) {UP}",
    "Div-CPS": f"Diversity × CPS {UP}",
    "Div-PC": f"Diversity × PC {UP}",
    "Div-SA": f"Diversity × SA {UP}",
    "Surroundings": f"Surroundings as the prompt says {UP}",
    "All right": f"All as the prompt says {UP}",
    "Vendi": f"Vendi score {UP}",
    "CLIPScore": f"CLIPScore {UP}",
    "Div-CLIPScore": f"Diversity × CLIPScore {UP}",
}


def label(figure: str) -> str:
    """For an axis or a panel of a plot; what is no known figure, such as an experiment's axis, is its own label."""
    return "Evaluations of the network, a picture" if figure == EVALUATIONS else LABELS.get(figure, figure)


def heading(figure: str) -> str:
    """For a column: the name, with an arrow where more is better."""
    return f"{figure} {UP}" if figure in LABELS else figure


def ordered(figures: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the paper's order, then the others in theirs."""
    order = {name: place for place, name in enumerate(LABELS)}
    return tuple(sorted(dict.fromkeys(figures), key=lambda name: order.get(name, len(order))))


class CellResult(NamedTuple):
    """A cell's figures: "Div", "CPS", "Div-CPS", …; also "CLIPScore", "Vendi" and others, where they were measured.

    pictures: that were measured. evaluations: of the network, a picture. settings: all that its pictures share, as the
    manifest names it. differences: its figures minus those of `against`, over the same prompts and seeds; "": of none.
    beyond: minus the best that its rivals on the map have where they are at its level.
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
    beyond: Mapping[str, Interval] = {}

    @property
    def pair(self) -> str:
        """The method and the one that it is compared with."""
        return f"{self.method} − {self.against}"

    def figure(self, name: str) -> Interval:
        """NaN where it was not measured."""
        return self.figures.get(name, UNKNOWN)

    def difference(self, name: str) -> Interval:
        """NaN where there is none."""
        return self.differences.get(name, UNKNOWN)

    def further(self, name: str) -> Interval:
        """Beyond its rivals; NaN where that is not known."""
        return self.beyond.get(name, UNKNOWN)

    def paper(self, name: str) -> float:
        """NaN where the paper has none."""
        return self.published.get(name, math.nan)

    def has(self, *figures: str) -> bool:
        """Whether all of these were measured."""
        return all(math.isfinite(self.figure(name).value) for name in figures)


@dataclasses.dataclass(frozen=True)
class Results:
    """axis, plots, frontier, chart, assumptions: the experiment's, as this run has them. confidence: of the intervals.

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
    chart: Chart | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def places(self) -> list[float]:
        """On the axis, where cells are; none where no cell has one."""
        return sorted({cell.at for cell in self.cells if cell.at is not None})

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of the figures that any cell has, in order."""
        return tuple(dict.fromkeys(name for cell in self.cells for name in cell.figures))

    def curve(self, method: str) -> tuple[CellResult, ...]:
        """The cells of a method, along the axis."""
        cells = [cell for cell in self.cells if cell.method == method]
        return tuple(sorted(cells, key=lambda cell: -math.inf if cell.at is None else cell.at))

    def plain(self) -> dict[str, Any]:
        """As JSON values: figures that are not defined are null, what the paper does not have is left out."""
        return dataclasses.asdict(self) | {"cells": [_plain(cell) for cell in self.cells]}

    def write(self, path: Path) -> None:
        """As JSON. Raises OSError."""
        files.write(path, json.dumps(self.plain(), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Results":
        """What `write` wrote. Raises OSError, ValueError."""
        content = foreign.read_file(path, foreign.MOST_JSON)
        try:
            told = foreign.parse_object(content)
            told |= {name: tuple(told[name]) for name in ("prompts", "frontier", "assumptions")}
            told["plots"] = tuple((x, y) for x, y in told["plots"])
            told["cells"] = tuple(_cell(cell) for cell in told["cells"])
            told["chart"] = _chart(told["chart"]) if told.get("chart") else None
            return cls(**told)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise ValueError(f"{path} holds no results ({type(e).__name__}: {e}); measure again") from None


def _chart(content: Sequence[Any]) -> Chart:
    level, figures, spots, falling = content
    placed = (Spot(method, tuple(rivals), row, column) for method, rivals, row, column in spots)
    return Chart(level, tuple(figures), tuple(placed), tuple(falling))


def _plain(cell: CellResult) -> dict[str, Any]:
    intervals = {
        part: {name: [x if math.isfinite(x) else None for x in found] for name, found in getattr(cell, part).items()}
        for part in INTERVALS
    }
    published = {name: value for name, value in cell.published.items() if math.isfinite(value)}
    return {**cell._asdict(), **intervals, "published": published}


def _cell(content: Mapping[str, Any]) -> CellResult:
    intervals = {
        part: {name: Interval(*(math.nan if x is None else x for x in found)) for name, found in content[part].items()}
        for part in INTERVALS
        if part in content
    }
    return CellResult(**{**content, **intervals})
