"""What is said of results: sentences that follow from the numbers, and all that the report's page shows of them."""

import dataclasses
import json
import math
import re
from collections.abc import Callable
from typing import Any

import pytest

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.findings import compared, findings, outcome
from autolora_jax.experiments.plotting import drawings
from autolora_jax.experiments.report import values
from autolora_jax.experiments.results import Results
from autolora_jax.experiments.tables import settings_table, shared_settings
from tests.made_up_results import PAIRS, TABLE_1, table_1, table_2, with_gaps, without_figures, without_intervals


def without(results: Results, published: bool = False, differences: bool = False) -> Results:
    """The same without what the paper has, without paired differences."""
    changes: dict[str, Any] = {"published": {}} if published else {}
    changes |= {"differences": {}, "against": ""} if differences else {}
    return dataclasses.replace(results, cells=tuple(cell._replace(**changes) for cell in results.cells))


def test_what_was_compared():
    assert compared(table_1()) == (
        "LoRA, AutoLoRA, LoRA + CFG and AutoLoRA + CFG at 12 values of LoRA scale (0.2 to 1.3), each with the same 512 "
        "seeds of the prompt “Anna”: 24,576 pictures."
    )
    assert compared(table_2()).endswith(
        "SDXL AutoLoRA, each with the same 16 seeds of each of 30 prompts: 1,920 pictures."
    )


def test_a_difference_whose_interval_includes_0_may_be_chance():
    assert outcome(table_1()) == (
        "The highest Div-CPS is 1.171 (95 % interval 1.148 to 1.194), of AutoLoRA + CFG at LoRA scale 1.1. Over the "
        "same prompts and seeds that is 0.003 more than LoRA + CFG there; the 95 % interval −0.020 to +0.026 includes "
        "0, so it may be chance. It takes 120 network evaluations a picture, LoRA + CFG 60."
    )
    assert "0.192 more than SD3 CFG; the 95 % interval +0.177 to +0.207 excludes 0." in outcome(table_2())


def test_the_method_that_others_are_compared_with_may_be_the_best():
    results = table_1()
    swapped = [
        cell._replace(figures={"Div-CPS": Interval(2.0, 1.9, 2.1)})
        if (cell.method, cell.at) == ("LoRA + CFG", 1.1)
        else cell._replace(differences={"Div-CPS": Interval(-0.8, -0.9, -0.7)} if cell.against else {})
        for cell in results.cells
    ]
    told = outcome(dataclasses.replace(results, cells=tuple(swapped)))
    assert "2.000" in told and "that is 0.800 more than AutoLoRA + CFG there" in told
    assert "interval +0.700 to +0.900 excludes 0" in told and "It takes 60 network evaluations" in told


def test_without_pairs_the_best_is_set_beside_the_next_method():
    told = outcome(without(table_1(), differences=True))
    assert told.endswith(
        "Next is LoRA + CFG at LoRA scale 1.1 with 1.168 (95 % interval 1.145 to 1.191); the intervals overlap."
    )


@pytest.mark.parametrize("make", [table_1, table_2])
def test_no_interval_is_told_where_there_is_none(make: Callable[[], Results]):
    """A figure of too few pictures has none; neither can it be said to overlap with another, or to exclude 0."""
    results = without_intervals(make())
    said = " ".join([compared(results), outcome(results), *map(str, findings(results))])
    best = "1.171, of AutoLoRA + CFG at LoRA scale 1.1." if make is table_1 else "0.726, of SD3 AutoLoRA."
    assert f"is {best} Next is" in said
    assert not re.search("interval|overlap|exclude|undecided|chance|nan|–", said)
    one = [
        cell._replace(figures=without_intervals(table_1()).cells[i].figures) if i else cell
        for i, cell in enumerate(table_1().cells)
    ]
    assert "overlap" not in outcome(without(dataclasses.replace(table_1(), cells=tuple(one)), differences=True))


def test_pictures_are_counted_as_they_are():
    assert compared(with_gaps(table_1())).endswith(": 23,553 of 24,576 pictures.")


def test_findings_count_what_they_say():
    results = table_1()
    found = {finding.label: finding for finding in findings(results)}
    assert found["Best Div-CPS"].value == "1.171"
    for method, against in PAIRS.items():
        intervals = [cell.differences["Div-CPS"] for cell in results.cells if cell.method == method]
        up, down = sum(each.low > 0 for each in intervals), sum(each.high < 0 for each in intervals)
        told = found[f"Div-CPS: {method} − {against}"]
        assert told.value == f"{up} of {len(TABLE_1)} higher" and told.tone == "up" and not down
        assert told.text.endswith(f"; {12 - up} undecided" if up < 12 else "is above 0 there")
    assert found["Agreement with the paper"].value == "144 of 144"
    assert "24 of 24" in found["Agreement with the paper"].text
    assert found["Largest area of Div and CPS"].text.startswith("AutoLoRA + CFG; then LoRA + CFG")
    assert "Not measured" not in found and found.keys() == {finding.label for finding in findings(results)}


def test_the_paper_is_not_mentioned_where_it_has_no_numbers():
    assert "Agreement" not in str(findings(without(table_1(), published=True)))


def test_pictures_without_figures_are_told():
    assert ("Not measured", "1,023") in [finding[:2] for finding in findings(with_gaps(table_1()))]
    assert findings(without_figures(table_1())) == () and outcome(without_figures(table_1())) == ""


def test_settings_that_differ_stand_in_a_table():
    table = settings_table(table_1())
    assert table.columns == ("guidance", "gamma", "lora scales", "w", "network evaluations a picture")
    rows = {name: [(entry.text, entry.strong) for entry in entries] for name, entries in table.rows}
    assert rows["LoRA"] == [("cfg", False), ("–", False), ("0.2 … 1.3", False), ("1", False), ("30", False)]
    assert [entry for entry in rows["AutoLoRA + CFG"] if entry[1]] == [("autolora", True), ("1.5", True), ("5", True)]
    assert shared_settings(table_1())["steps"] == "30" and "gamma" not in shared_settings(table_1())


def test_figures_are_the_experiments_plots_then_paired_differences():
    assert [drawing.about for drawing in drawings(table_1()) if drawing.more] == [
        "Diversity × CPS ↑ over LoRA scale",
        "Diversity ↑ (Eq. 8) over LoRA scale",
        "Character presence score (CPS) ↑ over LoRA scale",
        "Paired difference in Div-CPS",
        "Frontier: Character presence score (CPS) ↑ against Diversity ↑ (Eq. 8)",
    ]
    assert [drawing.about for drawing in drawings(table_2()) if drawing.more] == [
        "Prompt correspondence (PC) ↑ against Diversity ↑ (Eq. 8)",
        "Paired difference in Div-PC",
        "Paired difference in Div-SA",
        "All figures",
    ]


@pytest.mark.parametrize("make", [table_1, table_2, lambda: with_gaps(table_1()), lambda: without_figures(table_2())])
def test_values_are_json_without_nan(make: Callable[[], Results]):
    json.dumps(values(make()), allow_nan=False)
    unknown = [cell._replace(published={"Div": math.nan}) for cell in make().cells]
    json.dumps(values(dataclasses.replace(make(), cells=tuple(unknown))), allow_nan=False)
