"""Results of experiments that were never run: the paper's Tables 1 and 2 as if measured, and small ones."""

import csv
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.parts import PAPER
from autolora_jax.experiments.results import CellResult, Results

METHODS = ("LoRA", "AutoLoRA", "LoRA + CFG", "AutoLoRA + CFG")
PAIRS = {"AutoLoRA": "LoRA", "AutoLoRA + CFG": "LoRA + CFG"}
SHARED = {
    "model": "stable-diffusion-xl-base-1.0",
    "loras": ["princess"],
    "steps": 30,
    "scheduler": "ddim",
    "width": 1024,
}


def about(value: float, half: float = 0.01) -> Interval:
    return Interval(value, value - half, value + half)


def cell(method: str, at: float | None, figures: Mapping[str, float | Interval], **more: Any) -> CellResult:
    """Figures that are numbers get an interval of ± 0.01."""
    found = {name: each if isinstance(each, Interval) else about(each) for name, each in figures.items()}
    return CellResult(method, at, **({"pictures": 8, "evaluations": 60, "settings": {}} | more), figures=found)


def results(*cells: CellResult, **more: Any) -> Results:
    """Of these cells, with an axis where a cell has a place on one."""
    given: dict[str, Any] = dict(
        name="small",
        title="A small experiment",
        axis="LoRA scale" if any(cell.at is not None for cell in cells) else "",
        prompts=("a cat",),
        seeds=8,
        plots=(),
        frontier=("Div", "CPS"),
        confidence=0.95,
        meaning={"Div": "Eq. 8 of the paper", "CPS": "how present the character is, 0 to 5"},
        assumptions=("30 steps of Euler",),
        provenance={"model": "sdxl", "judge": "none"},
    )
    return Results(cells=cells, **(given | more))


def _published(name: str) -> list[tuple[str, str, dict[str, float]]]:
    """(method, place on the axis, the paper's figures of it), row by row."""
    with (PAPER / name).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [(row.pop("method"), row.pop("at"), {figure: float(text) for figure, text in row.items()}) for row in rows]


# LoRA scale -> (diversity, CPS) of each method, as the paper has them.
TABLE_1: dict[float, tuple[tuple[float, float], ...]] = {}
for _method, _at, _row in _published("table1.csv"):
    TABLE_1[float(_at)] = (*TABLE_1.get(float(_at), ()), (_row["Div"], _row["CPS"]))


def table_1(times: float = 1.01, **changes: Any) -> Results:
    """All of Table 1, with figures so many times the paper's: some of the differences are told and some are not."""
    cells = []
    for m, method in enumerate(METHODS):
        for scale, numbers in TABLE_1.items():
            figures, other = _figures(*numbers[m]), _figures(*numbers[m - 1])
            against = PAIRS.get(method, "")
            rule = {"guidance": "autolora" if against else "cfg", "gamma": 1.5 if against else None}
            made = cell(
                method,
                scale,
                {name: about(times * value, 0.02 * times * value) for name, value in figures.items()},
                pictures=512,
                evaluations=30 * (1 if m == 0 else 2 if m < 3 else 4),
                settings={**SHARED, **rule, "lora_scales": [scale], "w": 5.0 if "CFG" in method else 1.0},
                against=against,
                differences={name: about(value - other[name], 0.02 * value) for name, value in figures.items()}
                if against
                else {},
                published=figures,
            )
            cells.append(made)
    told: dict[str, Any] = dict(
        name="table1",
        title="Table 1: a Disney princess at twelve LoRA scales",
        prompts=("Anna",),
        seeds=512,
        plots=(("LoRA scale", "Div-CPS"), ("LoRA scale", "Div"), ("LoRA scale", "CPS")),
        meaning={
            "Div": "1 minus the mean cosine similarity of the features of two pictures of a prompt (Eq. 8)",
            "CPS": "how present the character is, from 0 to 5, as the judge says, averaged over the pictures",
            "Div-CPS": "the product of the two",
        },
        assumptions=("30 steps of DDIM: the paper does not say", "No negative prompt: the paper does not say"),
        provenance={
            "command": "autolora reproduce table1 --model sd_xl_base_1.0.safetensors --out table1",
            "model": f"stable-diffusion-xl-base-1.0, sha256 {'31e35c80' * 8}",
            "judge": "Qwen/Qwen2.5-VL-7B-Instruct at http://localhost:8000/v1",
            "features": "dinov2-giant",
            "versions": "autolora-jax 0.1.0, jax 0.10.2",
            "date": "2026-11-22",
        },
    )
    return results(*cells, **(told | changes))


def table_2() -> Results:
    """All of Table 2, a hundredth below the paper's: no axis, two products, no frontier."""
    numbers = {method: {name: row[name] for name in ("Div", "PC", "SA")} for method, _, row in _published("table2.csv")}
    cells = []
    for method, figures in numbers.items():
        figures |= {f"Div-{name}": figures["Div"] * figures[name] for name in ("PC", "SA")}
        against = method.replace("AutoLoRA", "CFG") if "AutoLoRA" in method else ""
        other = numbers[against] if against else {}
        made = cell(
            method,
            None,
            {name: about(0.99 * value, 0.02 * 0.99 * value) for name, value in figures.items()},
            pictures=480,
            evaluations=112,
            settings={**SHARED, "model": method.split()[0], "guidance": "autolora" if against else "cfg"},
            against=against,
            differences={name: about(figures[name] - value, 0.02 * figures[name]) for name, value in other.items()},
            published=figures,
        )
        cells.append(made)
    return dataclasses.replace(
        table_1(),
        name="table2",
        title="Table 2: pixel art, SDXL and SD3",
        axis="",
        cells=tuple(cells),
        prompts=tuple(f"pixel art, prompt {i}" for i in range(30)),
        seeds=16,
        plots=(("Div", "PC"),),
        frontier=(),
    )


def without_figures(results: Results) -> Results:
    """The same, when its pictures are only shown."""
    cells = tuple(cell._replace(figures={}, differences={}, published={}) for cell in results.cells)
    return dataclasses.replace(results, cells=cells, plots=(), frontier=(), meaning={})


def without_intervals(results: Results) -> Results:
    """The same, from too few pictures for an interval."""

    def values(figures: Mapping[str, Interval]) -> dict[str, Interval]:
        return {name: Interval(value.value, math.nan, math.nan) for name, value in figures.items()}

    cells = (c._replace(figures=values(c.figures), differences=values(c.differences)) for c in results.cells)
    return dataclasses.replace(results, cells=tuple(cells))


def with_gaps(results: Results) -> Results:
    """The same, with a cell that has no pictures, one without intervals and one without differences."""
    nan = math.nan
    first, second, third, *others = results.cells
    nothing: Mapping[str, Interval] = {name: Interval(nan, nan, nan) for name in first.figures}
    alone = {name: Interval(value.value, nan, nan) for name, value in second.figures.items()}
    cells = (
        first._replace(pictures=0, figures=nothing),
        second._replace(pictures=1, figures=alone),
        third._replace(figures={}, published={}),
        *(cell._replace(differences=nothing) if cell.against else cell for cell in others[:20]),
        *others[20:],
    )
    return dataclasses.replace(results, cells=cells)


def _figures(diversity: float, presence: float) -> dict[str, float]:
    return {"Div": diversity, "CPS": presence, "Div-CPS": diversity * presence}
