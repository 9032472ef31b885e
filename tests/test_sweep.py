"""The sweeps of the built-in model: which cells there are, what is said of them, and that the program makes them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.sources import Standins
from autolora_jax.demo.classifier import Judgement
from autolora_jax.demo.judge import world_scores
from autolora_jax.demo.world import CONTEXT, LABELS, named
from autolora_jax.experiments import catalogue
from autolora_jax.experiments.parts import CONTEXTS, METHODS
from autolora_jax.experiments.results import Results
from autolora_jax.settings.rules import CFG, AutoLoRA, NoGuidance
from tests.programs import autolora

SWEEPS = ("sweep", "sweep_contexts", "sweep_contexts_gamma", "sweep_gamma")
# Pictures, and network evaluations of a picture, over all cells.
SIZES = {
    "sweep": (48 * 256, 12 * 16 * (1 + 2 + 2 + 4)),
    "sweep_contexts": (12 * 256, 3 * 16 * (1 + 2 + 2 + 4)),
    "sweep_gamma": (10 * 256, 16 * (1 + 2 + 4 * (2 + 4))),
    "sweep_contexts_gamma": (6 * 256, 16 * (1 + 2 + 2 * (2 + 4))),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_has_its_size_on_the_built_in_model_in_any_case(name: str):
    experiment = catalogue.load(name)
    assert experiment.name == name and experiment.world
    assert catalogue.load(name, builtin=True) == experiment
    plan = make_plan(experiment.whole_job, Standins())
    assert (len(plan), sum(recipe.evaluations for recipe in plan.recipes)) == SIZES[name]
    assert {recipe.drawing.num_inference_steps for recipe in plan.recipes} == {16}


def test_the_table_has_the_papers_shape():
    experiment = catalogue.load("sweep")
    assert experiment.methods == tuple(METHODS)
    assert sorted({cell.at for cell in experiment.cells}) == [round(0.1 * i, 1) for i in range(2, 14)]
    rules = {recipe.rule for recipe in make_plan(experiment.whole_job, Standins()).recipes}
    assert rules == {NoGuidance(), AutoLoRA(1.5, 1.0, 1.0), CFG(5.0), AutoLoRA(1.5, 5.0, 5.0)}
    gammas = {cell.at for cell in catalogue.load("sweep_gamma").cells}
    assert gammas == {None, 1.25, 1.5, 1.75, 2.0}  # None: the LoRA alone


def test_contexts_are_not_those_of_the_training_pictures():
    assert len(CONTEXTS) == 8
    told = [named(text) for text in CONTEXTS]
    for name in ("place", "sky"):
        unseen = LABELS[name].index(getattr(CONTEXT, name))
        assert {each[name] for each in told} == {*range(len(LABELS[name]))} - {unseen}


def judgement_of(shown: list[tuple[str, ...]]) -> Judgement:
    """A sure judgement that pictures show these (subject, place, sky, size, side)."""
    names = ("subject", "place", "sky", "size", "side")
    probabilities = {name: np.full((len(shown), len(words)), 1 / len(words)) for name, words in LABELS.items()}
    for i, words in enumerate(shown):
        for name, word in zip(names, words, strict=True):
            probabilities[name][i] = np.eye(len(LABELS[name]))[LABELS[name].index(word)]
    exact = {name: p.astype(np.float32) for name, p in probabilities.items()}
    return Judgement(exact, np.ones((len(shown), 6), np.float32))


def scores(shown: list[tuple[str, ...]], prompts: list[str]) -> dict[str, list[float]]:
    found = world_scores(judgement_of(shown), np.zeros((len(shown), 96, 96, 3), np.uint8), prompts)
    return {name: values.tolist() for name, values in found.items()}


def test_scores_are_what_they_are_called():
    asked = "a small zib on the left in the city in the rain"
    shown = [
        ("zib", "city", "rain", "small", "left"),
        ("cat", "city", "rain", "small", "left"),  # all but the character
        ("zib", "desert", "sunset", "small", "middle"),  # where the training pictures were
        ("zib", "desert", "rain", "big", "left"),
    ]
    found = scores(shown, [asked] * 4)
    assert found["Surroundings"] == [1.0, 1.0, 0.25, 0.5]
    assert found["All right"] == [1.0, 0.0, 0.0, 0.0]
    assert found["Training context"] == [0.0, 0.0, 1.0, 0.0]
    assert found["CPS"] == [5.0, 0.0, 5.0, 5.0]
    assert found["PC"] == pytest.approx([5.0, 4.0, 2.0, 3.0])


def test_what_a_prompt_does_not_name_is_not_judged():
    found = scores([("zib", "city", "rain", "big", "left")] * 2, ["a zib", "hello"])
    assert np.isnan(found["Surroundings"]).tolist() == [True, True]
    assert np.isnan(found["All right"]).tolist() == [False, True]
    assert [ask.question for ask in catalogue.load("sweep").asks] == ["cps", "training context", "variety"]


def test_a_dry_run_needs_no_flag():
    result = autolora("reproduce", "sweep", "--dry-run")
    words = " ".join(result.stdout.split())
    assert result.exit_code == 0, result.output
    assert "sweep: The built-in model over LoRA scales" in words and "pictures 12,288" in words


def test_a_judge_cannot_be_asked_what_only_the_world_knows():
    result = autolora("reproduce", "sweep", "--judge", "someone", "--dry-run")
    assert result.exit_code == 2 and "leave --judge out" in result.stderr


@pytest.mark.slow  # of all the way test_reproduce goes all but the world's judge, which test_world_judge has
def test_the_program_draws_judges_and_reports(tmp_path: Path):
    """The whole way: contexts at one scale, one seed of each prompt, two steps."""
    flags = ["--at", "0.7", "--seeds", "1", "--set", "settings.sampler.steps=2", "--batch-size", 1]
    result = autolora("reproduce", "sweep_contexts", "--out", tmp_path, *flags)
    assert result.exit_code == 0, result.output
    results = Results.read(tmp_path / "results.json")
    assert [(cell.method, cell.at, cell.pictures) for cell in results.cells] == [(m, 0.7, 8) for m in METHODS]
    own = {"Div", "CPS", "Training context", "Surroundings", "All right"}
    named = {f"Div {name}" for name in ("place", "sky", "size", "side")}
    assert {*results.figures} == {*own, *named, "Div-CPS"} == {*results.meaning}  # and no product with a share
    for cell in results.cells:
        assert 0 <= cell.figures["CPS"].value <= 5 and np.isnan(cell.figures["Div"].value)  # one of a prompt: no pairs
        assert all(0 <= cell.figures[name].value <= 1 for name in own - {"Div", "CPS"})
        assert all(np.isnan(figure.low) for figure in cell.figures.values())
    text = (tmp_path / "table.md").read_text(encoding="utf-8") + (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "It draws with 2 steps" in text and "overlap" not in text and "± " not in text
    assert len([*tmp_path.glob("sheets/*.jpg")]) == 8 and (tmp_path / "plot-overview.png").exists()
    again = autolora("reproduce", "sweep_contexts", "--out", tmp_path, *flags, "--report-only")
    assert again.exit_code == 0 and dataclasses.replace(
        Results.read(tmp_path / "results.json"), provenance={}
    ) == dataclasses.replace(results, provenance={})
