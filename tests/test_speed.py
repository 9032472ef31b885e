"""What evaluations buy: the experiment's cells, what it says of itself, and that the program measures distances."""

from pathlib import Path

import pytest

from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.sources import Standins
from autolora_jax.experiments import catalogue, changes
from autolora_jax.experiments.experiment import assumed
from autolora_jax.experiments.paper.speed import EXACT, W
from autolora_jax.experiments.results import Results
from tests.programs import autolora


def test_every_way_is_drawn_in_few_steps_and_in_many():
    experiment = catalogue.load("speed")
    plan = make_plan(experiment.whole_job, Standins())
    assert experiment.world and {len(seeds) * len(plan.prompts) for seeds in plan.seeds} == {256}
    told = {(cell.method, cell.at): recipe for cell, recipe in zip(experiment.cells, plan.recipes, strict=True)}
    assert experiment.reference == (EXACT, 30.0) and told[experiment.reference].evaluations == 120
    for (method, steps), recipe in told.items():
        assert recipe.drawing.num_inference_steps == steps
        assert recipe.scales == ((1.0,) if "distilled" in method else (0.7,))
        assert method == EXACT or recipe.evaluations < 4 * steps  # all others are cheaper
    said = " ".join(assumed(experiment))
    assert f"the scale of CFG is {W:g}." in said and "each cell's own steps" in said


def test_without_its_reference_there_is_no_distance():
    assert changes.only(catalogue.load("speed"), places=[4.0]).reference is None
    assert changes.only(catalogue.load("speed"), methods=[EXACT]).reference == (EXACT, 30.0)


@pytest.mark.slow  # a minute: 150 evaluations of pictures, two programs
def test_the_program_measures_what_is_lost(tmp_path: Path):
    flags = ["--only", "AutoLoRA", "--only", "LoRA", "--at", "30", "--seeds", "1", "--batch-size", "8"]
    result = autolora("reproduce", "speed", "--out", tmp_path, *flags)
    assert result.exit_code == 0, result.output
    exact, plain = Results.read(tmp_path / "results.json").cells
    assert (exact.figures["Evaluations"].value, plain.figures["Evaluations"].value) == (120, 30)
    assert "Distance" not in exact.figures and 0 < plain.figures["Distance"].value < 1
    assert 0 < plain.figures["Pixels"].value < 255
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "AutoLoRA at steps 30's from the same noise" in text and "Div place" in text
    assert (tmp_path / "plot-all-right-by-evaluations.png").exists()


@pytest.mark.parametrize("name", ["sweep", "figure2", "table1", "speed"])
def test_the_scale_of_cfg_is_the_cells(name: str):
    said = " ".join(assumed(catalogue.load(name, builtin=True)))
    wanted = {"figure2": "is each cell's own.", "speed": "is 3."}.get(name, "is 5 as in the paper.")
    assert f"the scale of CFG {wanted}" in said
