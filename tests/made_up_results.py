"""Results of experiments that were never run: from the paper's numbers, and small ones to compute by hand."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.results import CellResult, Results

METHODS = {"LoRA": "lora", "AutoLoRA": "autolora", "LoRA + CFG": "lora_cfg", "AutoLoRA + CFG": "autolora_cfg"}
TABLE1 = {"Div": "diversity", "CPS": "cps", "Div-CPS": "div_cps"}
TABLE2 = {
    "Div": "diversity",
    "PC": "prompt_correspondence",
    "SA": "style_adherence",
    "Div-PC": "div_pc",
    "Div-SA": "div_sa",
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


def paper_table1(path: Path, *, shift: float = 0.0) -> Results:
    """The paper's Table 1 as if it had been measured, moved at random by about `shift` of each figure."""
    rng, cells = np.random.default_rng(0), []
    for row in _rows(path):
        for method, column in METHODS.items():
            published = {name: float(row[f"{column}_{key}"]) for name, key in TABLE1.items()}
            moved = {name: value * (1 + shift * rng.normal()) for name, value in published.items()}
            against = method.removeprefix("Auto") if method.startswith("Auto") else ""
            other = {name: float(row[f"{METHODS[against]}_{key}"]) for name, key in TABLE1.items()} if against else {}
            cells.append(
                cell(
                    method,
                    float(row["lora_scale"]),
                    {name: about(value, 0.04 * value + 0.002) for name, value in moved.items()},
                    pictures=512,
                    evaluations=30 * (1 + ("Auto" in method)) * (1 + ("CFG" in method)),
                    settings={"steps": 30, "guidance": {"rule": method, "w": 5.0 if "CFG" in method else None}},
                    against=against,
                    differences={name: about(moved[name] - value, 0.02) for name, value in other.items()},
                    published=published,
                )
            )
    plots = (("LoRA scale", "Div"), ("LoRA scale", "CPS"), ("LoRA scale", "Div-CPS"), ("Div", "CPS"))
    return results(*cells, title="Table 1: Anna, LoRA scale", plots=plots, prompts=("Anna",), seeds=512)


def paper_table2(path: Path) -> Results:
    """The paper's Table 2 as if it had been measured, with all figures 3 % higher."""
    cells = []
    for row in _rows(path):
        published = {name: float(row[key]) for name, key in TABLE2.items()}
        against = row["method"].replace("AutoLoRA", "CFG") if "Auto" in row["method"] else ""
        figures = {name: about(value * 1.03, 0.02 * value) for name, value in published.items()}
        differences = {"Div": about(0.03)} if against else {}
        cells.append(cell(row["method"], None, figures, published=published, against=against, differences=differences))
    plots = (("PC", "SA"), ("Div", "PC"))
    return results(*cells, title="Table 2: pixel art", frontier=("Div", "PC"), plots=plots)


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))
