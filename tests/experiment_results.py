"""Results as they come out of the paper's Table 1 and 2, with intervals and differences made up around its numbers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.results import CellResult, Results

# LoRA scale -> (diversity, CPS) of LoRA, AutoLoRA, LoRA + CFG, AutoLoRA + CFG, as the paper has them.
TABLE_1 = {
    0.2: ((0.378, 0.010), (0.369, 0.014), (0.262, 0.742), (0.254, 1.072)),
    0.3: ((0.360, 0.016), (0.346, 0.029), (0.236, 1.863), (0.226, 2.906)),
    0.4: ((0.346, 0.037), (0.333, 0.059), (0.218, 3.326), (0.209, 3.994)),
    0.5: ((0.340, 0.100), (0.324, 0.314), (0.209, 4.217), (0.203, 4.430)),
    0.6: ((0.337, 0.152), (0.326, 0.771), (0.208, 4.467), (0.207, 4.723)),
    0.7: ((0.337, 0.389), (0.329, 1.260), (0.214, 4.666), (0.214, 4.793)),
    0.8: ((0.341, 0.496), (0.334, 1.850), (0.221, 4.729), (0.226, 4.711)),
    0.9: ((0.347, 0.543), (0.338, 2.115), (0.231, 4.674), (0.235, 4.703)),
    1.0: ((0.357, 0.693), (0.345, 1.998), (0.243, 4.543), (0.248, 4.631)),
    1.1: ((0.369, 0.650), (0.355, 1.803), (0.255, 4.535), (0.256, 4.529)),
    1.2: ((0.383, 0.582), (0.367, 1.492), (0.265, 4.311), (0.265, 4.283)),
    1.3: ((0.401, 0.463), (0.381, 1.115), (0.283, 3.975), (0.282, 3.914)),
}
METHODS = ("LoRA", "AutoLoRA", "LoRA + CFG", "AutoLoRA + CFG")
PAIRS = {"AutoLoRA": "LoRA", "AutoLoRA + CFG": "LoRA + CFG"}
MEANING = {
    "Div": "1 minus the mean cosine similarity of the features of two pictures of a prompt (Eq. 8)",
    "CPS": "how present the character is, from 0 to 5, as the judge says, averaged over the pictures",
    "Div-CPS": "the product of the two",
}
SHARED = {
    "model": "stable-diffusion-xl-base-1.0",
    "loras": ["princess"],
    "steps": 30,
    "scheduler": "ddim",
    "width": 1024,
}


def about(value: float, part: float = 0.02) -> Interval:
    """An interval around a value."""
    return Interval(value, value * (1 - part), value * (1 + part))


def table_1(**changes: Any) -> Results:
    """All of Table 1. Ours is a hundredth above the paper's, so some of the differences are told and some are not."""
    cells = []
    for m, method in enumerate(METHODS):
        for scale, numbers in TABLE_1.items():
            figures, other = _figures(*numbers[m]), _figures(*numbers[m - 1])
            against = PAIRS.get(method, "")
            rule = {"guidance": "autolora" if against else "cfg", "gamma": 1.5 if against else None}
            cells.append(
                CellResult(
                    method,
                    scale,
                    512,
                    30 * (1 if m == 0 else 2 if m < 3 else 4),
                    {**SHARED, **rule, "lora_scales": [scale], "w": 5.0 if "CFG" in method else 1.0},
                    {name: about(1.01 * value) for name, value in figures.items()},
                    against,
                    {name: _difference(value, other[name]) for name, value in figures.items()} if against else {},
                    figures,
                )
            )
    told = Results(
        name="table1",
        title="Table 1: a Disney princess at twelve LoRA scales",
        axis="LoRA scale",
        cells=tuple(cells),
        prompts=("Anna",),
        seeds=512,
        plots=(("LoRA scale", "Div-CPS"), ("LoRA scale", "Div"), ("LoRA scale", "CPS")),
        frontier=("Div", "CPS"),
        confidence=0.95,
        meaning=MEANING,
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
    return dataclasses.replace(told, **changes)


def table_2() -> Results:
    """In the form of Table 2: no axis, two products, no frontier."""
    numbers = {
        "SD3 CFG": (0.136, 3.985, 4.177),
        "SD3 AutoLoRA": (0.197, 3.725, 4.019),
        "SDXL CFG": (0.159, 3.846, 4.144),
        "SDXL AutoLoRA": (0.170, 3.756, 4.150),
    }
    all_figures = {
        method: {"Div": div, "PC": pc, "SA": sa, "Div-PC": div * pc, "Div-SA": div * sa}
        for method, (div, pc, sa) in numbers.items()
    }
    cells = []
    for method, figures in all_figures.items():
        against = method.replace("AutoLoRA", "CFG") if "AutoLoRA" in method else ""
        other = all_figures[against] if against else {}
        differences = {name: _difference(figures[name], value) for name, value in other.items()}
        settings = {**SHARED, "model": method.split()[0], "guidance": "autolora" if against else "cfg"}
        ours = {name: about(value * 0.99) for name, value in figures.items()}
        cells.append(CellResult(method, None, 480, 112, settings, ours, against, differences, figures))
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


def _difference(value: float, other: float) -> Interval:
    return Interval(value - other, value - other - 0.02 * value, value - other + 0.02 * value)
