"""The frontier of two figures: what dominates what, the area below it, and how much is left at equal adherence."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from autolora_jax.evaluation import Interval
from autolora_jax.experiments.frontier import (
    Point,
    dominated_area,
    efficient,
    frontier_tables,
    frontiers,
    levels,
    reach,
    write_frontier,
)
from autolora_jax.experiments.plotting import write_figures
from tests.made_up_results import cell, results, table_1

NAN = math.nan
AREA = 2e-3  # of a grid of 1000 × 1000 cells: seen 9e-4


def points(*pairs: tuple[float, float]) -> list[Point]:
    return [Point(float(x), float(y)) for x, y in pairs]


def test_efficient_points_are_those_that_nothing_beats():
    given = points((1, 5), (2, 4), (1.5, 4), (3, 1), (3, 2), (2, 4), (NAN, 9), (0, 5))
    assert efficient(given) == points((1, 5), (2, 4), (2, 4), (3, 2))
    assert efficient([]) == []


def test_efficient_points_by_comparing_all_pairs():
    rng = np.random.default_rng(0)
    for _ in range(50):
        given = [Point(*pair) for pair in rng.integers(0, 6, (8, 2)).astype(float).tolist()]
        beaten = {p for p in given for q in given if q != p and q.x >= p.x and q.y >= p.y}
        assert {*efficient(given)} == {*given} - beaten


def test_area_by_hand():
    assert dominated_area(points((2, 3))) == 6
    assert dominated_area(points((1, 4), (3, 2))) == 1 * 4 + 2 * 2
    assert dominated_area(points((1, 4), (3, 2), (0.5, 3), (1, 4))) == 8  # dominated and equal points add nothing
    assert dominated_area(points((-1, 4), (3, 2), (4, -1), (NAN, 9), (9, NAN))) == 6
    assert dominated_area([]) == 0


def test_area_is_that_of_a_grid():
    rng, places = np.random.default_rng(1), (np.arange(1000) + 0.5) / 1000
    for count in (1, 3, 20):
        given = rng.random((count, 2))
        covered = np.zeros((1000, 1000), bool)
        for x, y in given:
            covered |= (places[:, None] <= x) & (places <= y)
        assert dominated_area([Point(*pair) for pair in given.tolist()]) == pytest.approx(covered.mean(), abs=AREA)


def test_reach_is_the_most_that_is_left_at_a_level():
    curve = points((0.4, 0), (0.3, 2), (0.2, 4), (0.3, 3))  # adherence rises, then falls
    assert reach(curve, 1.0) == pytest.approx(0.35)  # between the first two
    assert reach(curve, 2.0) == 0.3
    assert reach(curve, 3.0) == 0.3  # by the last point, not by the crossing at 0.25
    assert reach(curve, 3.5) == pytest.approx(0.25)  # both crossings
    assert reach(curve, 4.0) == 0.2
    assert math.isnan(reach(curve, 4.1)) and math.isnan(reach([], 1.0))
    assert reach(points((0.5, 3)), 1.0) == 0.5  # a single point: what it has is more than enough
    assert reach(points((0.4, 0), (NAN, 1), (0.2, 2)), 1.0) == pytest.approx(0.3)  # over what is not known


@pytest.mark.parametrize(
    ("top", "first", "last"), [(4.793, 0.5, 4.5), (1.0, 0.1, 1.0), (0.02, 0.002, 0.02), (5, 0.5, 5), (33, 5, 30)]
)
def test_levels_are_round(top: float, first: float, last: float):
    found = levels([points((1, top), (1, 0))])
    assert (found[0], found[-1]) == (first, last) and len(found) <= 10
    assert np.allclose(np.diff(found), first)
    assert levels([points((1, 0))]) == [] and levels([]) == []


@pytest.fixture
def small():
    return results(
        cell(
            "LoRA",
            1.0,
            {"Div": Interval(0.2, 0.1, 0.3), "CPS": Interval(4.0, 3.0, 5.0)},
            published={"Div": 0.3, "CPS": 4.0},
        ),
        cell("LoRA", 0.5, {"Div": Interval(0.4, 0.3, 0.5), "CPS": Interval(2.0, 1.0, 3.0)}, published={"Div": 0.5}),
        cell("LoRA", 0.2, {"Div": 0.3}),  # no CPS
        cell("Auto", None, {"Div": Interval(0.3, NAN, NAN), "CPS": Interval(3.0, NAN, NAN)}, evaluations=120),
        cell("none", 1.0, {"Div": Interval(NAN, NAN, NAN), "CPS": 1.0}),
    )


def test_frontiers_of_results(small):
    lora, auto = frontiers(small)
    assert lora.area == pytest.approx(0.2 * 4 + 0.2 * 2) and lora.published_area == pytest.approx(1.2)
    assert [point.x for point in lora.points] == [0.3, 0.4, 0.2]  # along the axis
    assert auto.area == pytest.approx(0.9) and math.isnan(auto.published_area)
    areas, equal = frontier_tables(small, (lora, auto))
    assert [row for row, _ in areas.rows] == ["LoRA", "Auto"]
    texts = [[entry.text for entry in entries] for _, entries in areas.rows]
    assert texts[0] == ["1.200", "0.500 – 2.100", "1.200", "2", "2", "60"]  # 0.1·3 + 0.2·1 and 0.3·5 + 0.2·3
    assert texts[1] == ["0.900", "–", "–", "1", "1", "120"]
    assert [entry.strong for _, (entry, *_) in areas.rows] == [True, False]
    at_3 = dict(equal.rows)["≥ 3"]
    assert [entry.text for entry in at_3] == ["0.300", "0.300"]
    assert [entry.detail for entry in at_3] == ["(0.300)", ""]


def test_files_say_it_all(small, tmp_path: Path):
    markdown, table = write_frontier(small, tmp_path / "new")
    assert "![" not in markdown.read_text(encoding="utf-8")  # as without matplotlib
    picture = write_figures(small, tmp_path / "new")[-1]
    assert write_frontier(small, tmp_path / "new") == [markdown, table]
    text = markdown.read_text(encoding="utf-8")
    assert "| LoRA | **1.200** | 0.500 – 2.100 |" in text and "The methods differ in how often" in text
    assert f"]({picture.name})" in text
    with table.open(encoding="utf-8") as file:
        lora, auto = csv.DictReader(file)
    assert float(lora["area"]) == pytest.approx(1.2, rel=1e-15) and lora["evaluations_most"] == "60"
    assert float(lora["Div at CPS 3"]) == pytest.approx(0.3) and auto["area_low"] == "" == auto["Div at CPS 4"]


def test_nothing_is_written_where_there_is_no_frontier(tmp_path: Path):
    folder = tmp_path / "none"
    assert write_frontier(results(cell("LoRA", 1.0, {"Div": 0.2, "CPS": 1.0}), frontier=()), folder) == []
    assert write_frontier(results(cell("LoRA", 1.0, {"Div": 0.2})), folder) == []
    assert not folder.exists()


def test_the_papers_own_frontier():
    """Its Table 1. With CFG, AutoLoRA's frontier is LoRA's, within a hundredth, at twice the evaluations."""
    found = {each.method: each for each in frontiers(table_1(times=1.0))}
    areas = {method: round(each.area, 3) for method, each in found.items()}
    assert areas == {"LoRA": 0.272, "AutoLoRA": 0.780, "LoRA + CFG": 1.315, "AutoLoRA + CFG": 1.326}
    assert all(each.area == each.published_area for each in found.values())
    at_4 = [reach(found[method].points, 4.0) for method in ("LoRA + CFG", "AutoLoRA + CFG")]
    assert at_4 == pytest.approx([0.2817, 0.2780], abs=1e-4)
