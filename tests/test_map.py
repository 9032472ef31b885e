"""The map of when AutoLoRA helps: what a figure is at equal level, which cells there are, how it is shown."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.sources import Standins
from autolora_jax.evaluation import Interval
from autolora_jax.evaluation.equal import beyond, redrawn
from autolora_jax.evaluation.scores import Sample
from autolora_jax.experiments import catalogue, changes
from autolora_jax.experiments.experiment import Cell, Chart, Experiment, Spot
from autolora_jax.experiments.findings import findings
from autolora_jax.experiments.frontier import Point, reach
from autolora_jax.experiments.parts import TUNINGS
from autolora_jax.experiments.plotting import drawings
from autolora_jax.experiments.results import Results
from autolora_jax.experiments.scoring import _beyond
from autolora_jax.experiments.tables import tables, write_tables
from tests.made_up_results import cell, results

SPOT = Spot("auto", ("weak", "strong"), "300 steps", "γ 1.5")
CHART = Chart("CPS", ("right", "lost"), (SPOT,), falling=("lost",))
SURE = Interval(0.2, 0.1, 0.3)


def sample(presence: float, right: float, n: int = 400, seed: int = 0) -> Sample:
    """Pictures of two prompts, so many of which are right and lose what they should; features of no meaning."""
    rng = np.random.default_rng(seed)
    scores = {"CPS": rng.normal(presence, 0.1, n), "right": rng.random(n) < right, "lost": rng.random(n) < 1 - right}
    scores = {name: values.astype(np.float64) for name, values in scores.items()}
    return Sample(np.arange(n) % 2, scores, rng.normal(size=(n, 3)))


def test_a_figure_is_compared_where_the_level_is_equal():
    """On a line between two strengths of the best rival; each resample by itself, as the scalar rule has it."""
    auto, rivals = redrawn(sample(3.0, 0.7)), [sample(2.0, 0.8, seed=1), sample(4.0, 0.4, seed=2)]
    strong, weak = [redrawn(each) for each in rivals], [redrawn(sample(1.0, 1.0, seed=3))]
    found = beyond(auto, [strong, weak], "CPS", ("lost",))
    assert found.keys() == {"right", "lost", "Div", "Div-CPS", "Div-right", "Div-lost"}
    exact = 0.7 - (0.8 + 0.4) / 2
    assert found["right"].value == pytest.approx(exact, abs=0.05)
    assert found["right"].low < found["right"].value < found["right"].high
    wanted = [
        right
        - reach([Point(*each) for each in zip((s["right"][i] for s in strong), (s["CPS"][i] for s in strong))], at)  # noqa: B905
        for i, (right, at) in enumerate(zip(auto["right"], auto["CPS"], strict=True))
    ]
    assert found["right"] == pytest.approx([wanted[0], *np.quantile(wanted[1:], (0.025, 0.975))])
    assert found["lost"].value == pytest.approx(-exact, abs=0.05)  # less than the least of them


def test_a_level_that_no_rival_comes_up_to_is_no_comparison():
    auto, weak = redrawn(sample(3.0, 0.7)), redrawn(sample(1.0, 0.9, seed=1))
    found = beyond(auto, [[weak]], "CPS")
    assert all(math.isnan(part) for each in found.values() for part in each)
    assert beyond(weak, [[auto]], "CPS")["right"].value == pytest.approx(0.2, abs=0.06)  # all of it is enough


def test_cells_are_compared_over_the_pictures_that_all_have():
    made = dict(auto=[(3.0, 0.7)], weak=[(1.0, 1.0)], strong=[(2.0, 0.8), (4.0, 0.4)])
    cells = tuple(Cell(name, float(at), {}) for name, each in made.items() for at in range(len(each)))
    experiment = Experiment("small", "Small", catalogue.load("map").job, cells[::-1], chart=CHART)
    sets = []
    for seed, (cps, right) in enumerate([each for points in made.values() for each in points][::-1]):
        of = sample(cps, right, seed=seed)
        order = np.random.default_rng(seed).permutation(400)[: 400 - seed]  # in another order, some of them lost
        sets.append(([(int(of.groups[i]), int(i)) for i in order], of.rows(order)))
    found = _beyond(experiment, sets, 0.95)
    assert [*found] == [3] and found[3]["right"].value == pytest.approx(0.1, abs=0.08)
    assert _beyond(dataclasses.replace(experiment, chart=None), sets, 0.95) == {}


def test_the_map_is_of_all_tunings_and_its_rivals_cost_no_more():
    experiment = catalogue.load("map")
    assert experiment.chart and experiment.world and catalogue.load("map", builtin=True) == experiment
    plan = make_plan(experiment.whole_job, Standins())
    costs = {cell.method: recipe.evaluations for cell, recipe in zip(experiment.cells, plan.recipes, strict=True)}
    assert {len(seeds) * len(plan.prompts) for seeds in plan.seeds} == {260}
    assert {spot.row for spot in experiment.chart.spots} == {each.told for each in TUNINGS}
    for spot in experiment.chart.spots:
        assert all(costs[rival] <= costs[spot.method] for rival in spot.rivals)
        assert max(costs[rival] for rival in spot.rivals) == costs[spot.method]  # some cost as much
        assert all(spot.row in rival for rival in spot.rivals)
    left = changes.only(experiment, methods=["LoRA (300 steps, 30*80*", "γ*"])
    assert left.chart and {len(spot.rivals) for spot in left.chart.spots} == {1}
    assert changes.only(experiment, methods=["γ*"]).chart is None


@pytest.fixture
def mapped() -> Results:
    beyonds = [
        {"right": SURE, "lost": SURE},
        {"right": Interval(0.01, -0.1, 0.1)},
        {"right": Interval(*[math.nan] * 3)},
    ]
    auto = (
        cell("auto", at, {"CPS": 3.0, "right": 0.7}, beyond=each)
        for at, each in zip((0.5, 0.8, 1.0), beyonds, strict=True)
    )
    plain = (cell(name, 0.5, {"CPS": 3.0, "right": 0.7}) for name in ("weak", "strong"))
    return results(*auto, *plain, chart=CHART, frontier=())


def test_it_is_told_where_there_is_more(mapped: Results, tmp_path: Path):
    told = {found.label: found for found in findings(mapped)}
    right, lost = told["right at equal CPS"], told["lost at equal CPS"]
    assert (right.value, right.tone) == ("1 of 3", "up")
    assert right.text == "better at 1, level at 1, worse at 0; at 1 no rival comes up to its CPS"
    assert (lost.value, lost.tone) == ("0 of 1", "down")  # more of what is better less
    table = next(table for table in tables(mapped) if table.title.startswith("At equal CPS"))
    assert [entries[0].strong for _, entries in table.rows] == [True, False, False]
    assert table.rows[0][1][0].text == "+0.200"
    write_tables(mapped, tmp_path)
    assert ",0.2,0.1,0.3,8,60" in (tmp_path / "table.csv").read_text(encoding="utf-8")
    mapped.write(tmp_path / "results.json")
    again = Results.read(tmp_path / "results.json")
    assert again.chart == mapped.chart and again.cells[0].beyond == mapped.cells[0].beyond


@pytest.mark.parametrize("width", [2.0, 10.8])
def test_the_map_says_who_wins_by_colour_and_by_sign(mapped: Results, width: float):
    drawn = next(each for each in drawings(mapped) if each.name == "map")
    right, lost = drawn.draw(width, "").axes
    colours = [patch.get_facecolor()[:3] for patch in right.patches]
    assert len(colours) == 3 and colours[0][2] > colours[0][0]  # blue: more
    assert lost.patches[0].get_facecolor()[0] > lost.patches[0].get_facecolor()[2]  # less is better
    texts = [text.get_text() for text in right.texts]
    assert texts[:3] == ["+0.20" if width > 2 else "+", "=", "·"]
    assert [label.get_text() for label in right.get_yticklabels()] == ["300 steps"]
