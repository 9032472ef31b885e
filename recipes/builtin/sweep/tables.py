"""The sweep's figures as files: cells.json and table.csv with intervals, table.md to read."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from autolora_jax.evaluation import Interval
from recipes.builtin.sweep.cells import ALONE, AUTOLORA, BLOCKS, CONTEXTS, GAMMA, GAMMA_SCALE, LORA, Cell
from recipes.builtin.sweep.figures import AGREEMENT, ALL_RIGHT, DIVERSITY, DRAGGED, MEANING, PRESENCE, PRODUCT

Figures = Mapping[str, Interval]
METHODS = (LORA, AUTOLORA, f"{LORA} + CFG", f"{AUTOLORA} + CFG")
SHOWN = (PRESENCE, DIVERSITY, PRODUCT), (DRAGGED, AGREEMENT, ALL_RIGHT)  # columns of a method, table by table
TITLES = {
    ALONE: "The prompt `a zib`",
    "contexts": f"{len(CONTEXTS)} prompts that put the zib elsewhere than in its training pictures",
}


class Results(NamedTuple):
    """cells: the figures of each; differences: of an AutoLoRA cell, minus the LoRA cell of the same scale and w."""

    cells: Mapping[Cell, Figures]
    differences: Mapping[Cell, Figures]

    def table(self, block: str) -> dict[float, dict[str, Figures]]:
        """LoRA scale -> method -> figures, of Table 1's cells."""
        found: dict[float, dict[str, Figures]] = {}
        for cell, figures in self.cells.items():
            if cell.block == block and cell.gamma in (1.0, GAMMA):
                found.setdefault(cell.scale, {})[cell.method] = figures
        return dict(sorted(found.items()))

    def gammas(self, block: str) -> dict[float, dict[float, Figures]]:
        """w -> γ -> figures, at the LoRA scale where γ is varied."""
        found: dict[float, dict[float, Figures]] = {}
        for cell, figures in sorted(self.cells.items(), key=lambda item: (item[0].w, item[0].gamma)):
            if (cell.block, cell.scale) == (block, GAMMA_SCALE):
                found.setdefault(cell.w, {})[cell.gamma] = figures
        return found


def write_tables(out: Path, results: Results, settings: Mapping[str, Any]) -> None:
    """Writes cells.json, table.csv and table.md."""
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / "cells.json", results, settings)
    _write_csv(out / "table.csv", results)
    (out / "table.md").write_text("\n".join(_markdown(results, settings)) + "\n", encoding="utf-8")


def _write_json(path: Path, results: Results, settings: Mapping[str, Any]) -> None:
    def rows(cells: Mapping[Cell, Figures]) -> list[dict[str, Any]]:
        return [
            {**asdict(cell), "method": cell.method, "figures": {n: [_number(x) for x in i] for n, i in figures.items()}}
            for cell, figures in cells.items()
        ]

    content = {
        "settings": settings,
        "figures": {**MEANING, "": "each is [value, low, high]: 95 % percentile bootstrap"},
        "cells": rows(results.cells),
        "AutoLoRA minus LoRA": rows(results.differences),
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_csv(path: Path, results: Results) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        ends = ("", " low", " high")
        writer.writerow(["block", "method", "lora_scale", "gamma", "cfg", *(n + end for n in MEANING for end in ends)])
        for cell, figures in results.cells.items():
            values = [x for name in MEANING for x in figures.get(name, (math.nan,) * 3)]
            row = [cell.block, cell.method, cell.scale, cell.gamma, cell.w]
            writer.writerow([*row, *("" if math.isnan(x) else f"{x:.4f}" for x in values)])


def _markdown(results: Results, settings: Mapping[str, Any]) -> Iterable[str]:
    yield "# LoRA scale and AutoLoRA on the built-in model\n"
    yield from (f"- {name}: {value}" for name, value in settings.items())
    yield from (f"- **{name}**: {text}" for name, text in MEANING.items())
    yield "- ± is half of the 95 % percentile bootstrap interval; all cells have the same prompts and noise\n"
    for block in BLOCKS:
        if not (table := results.table(block)):
            continue
        known = {name for methods in table.values() for figures in methods.values() for name in figures}
        methods = [method for method in METHODS if any(method in row for row in table.values())]
        yield f"## {TITLES[block]}\n"
        for shown in SHOWN:
            names = [name for name in shown if name in known]
            yield from _rows(
                ["LoRA scale", *(f"{method}: {name}" for method in methods for name in names)],
                [
                    [f"{scale:g}", *(_cell(row.get(method, {}), name) for method in methods for name in names)]
                    for scale, row in table.items()
                ],
            )
        yield "The LoRA scale that is best for each method:\n"
        yield from _best(table, methods, [name for name in (PRODUCT, AGREEMENT, ALL_RIGHT) if name in known])
        yield f"AutoLoRA (γ = {GAMMA:g}) minus LoRA at the same scale, pair by pair, with 95 % intervals:\n"
        changes = {c: f for c, f in results.differences.items() if c.block == block and c.gamma == GAMMA}
        names = [name for name in MEANING if name in known]
        yield from _rows(
            ["LoRA scale", "", *names],
            [
                [f"{cell.scale:g}", _guided(cell.w), *(_change(figures[name]) for name in names)]
                for cell, figures in sorted(changes.items(), key=lambda item: (item[0].w, item[0].scale))
            ],
        )
        yield f"γ at LoRA scale {GAMMA_SCALE:g} (γ = 1 is the LoRA alone):\n"
        yield from _rows(
            ["γ", "", *names],
            [
                [f"{gamma:g}", _guided(w), *(_cell(figures, name) for name in names)]
                for w, rows in results.gammas(block).items()
                for gamma, figures in rows.items()
            ],
        )


def _best(table: Mapping[float, Mapping[str, Figures]], methods: Sequence[str], names: Sequence[str]) -> Iterable[str]:
    """Each method at the scale where a figure is highest."""
    rows = []
    for method in methods:
        row = [method]
        for name in names:
            found = {
                s: m[method][name] for s, m in table.items() if method in m and not math.isnan(m[method][name].value)
            }
            scale = max(found, key=lambda s: found[s].value, default=None)
            row.append("–" if scale is None else f"{_plus_minus(found[scale])} at {scale:g}")
        rows.append(row)
    return _rows(["", *names], rows)


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterable[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    yield from (f"| {' | '.join(row)} |" for row in rows)
    yield ""


def _guided(w: float) -> str:
    return "without CFG" if w == 1 else f"CFG {w:g}"


def _cell(figures: Figures, name: str) -> str:
    return _plus_minus(figures[name]) if name in figures else "–"


def _plus_minus(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "–"
    return f"{interval.value:.3f} ± {(interval.high - interval.low) / 2:.3f}"


def _change(interval: Interval) -> str:
    if math.isnan(interval.value):
        return "–"
    return f"{interval.value:+.3f} ({interval.low:+.3f} … {interval.high:+.3f})"


def _number(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 5)
