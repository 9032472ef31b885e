"""The sweep: which cells there are, what is said of them, and that a second run draws nothing again."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autolora_jax.demo.classifier import Judgement
from autolora_jax.demo.world import CHARACTER, LABELS, full_caption
from autolora_jax.demo.world.character import CONTEXT
from autolora_jax.evaluation import diversity
from autolora_jax.guidance import evaluations, plan
from recipes.builtin.sweep import cells, figures
from recipes.builtin.sweep.cells import BLOCKS, CONTEXTS, Cell, gamma_cells, shots, table_cells
from recipes.builtin.sweep.judge import Store, judge_cells
from recipes.builtin.sweep.tables import METHODS, Results, write_tables


@pytest.mark.parametrize("block", BLOCKS)
def test_the_table_has_the_papers_shape(block: str):
    table = table_cells(block)
    assert len(set(table)) == 12 * 2 * 2
    assert {cell.scale for cell in table} == {round(0.1 * i, 1) for i in range(2, 14)}
    assert {cell.method for cell in table} == set(METHODS)
    assert len(set(gamma_cells(block)) - set(table)) == 2 * 3  # γ = 1 and 1.5 are in the table already


def test_a_cell_costs_what_it_says():
    for cell in {*table_cells("alone", (1.0,)), *gamma_cells("alone")}:
        assert evaluations(plan(cell.rule, 1, 4).segments) == 4 * cell.evaluations


def test_contexts_are_not_those_of_the_training_pictures():
    for scene in CONTEXTS:
        assert scene.subject == CHARACTER
        assert scene.place != CONTEXT.place and scene.sky != CONTEXT.sky
        assert not {"desert", "sunset"} & set(full_caption(scene).split())
    for name, unseen in (("place", CONTEXT.place), ("sky", CONTEXT.sky)):
        assert {getattr(scene, name) for scene in CONTEXTS} == set(LABELS[name]) - {unseen}


def test_every_picture_of_a_block_has_a_seed_of_its_own():
    for block in BLOCKS:
        drawn = shots(block, 20)
        assert [shot.seed for shot in drawn] == [*range(20)]
        assert len({shot.prompt for shot in drawn}) == len({shot.group for shot in drawn})
    assert all(shot.prompt == full_caption(shot.scene) for shot in drawn)


def judgement_of(scenes, rng: np.random.Generator) -> Judgement:
    """A sure judgement that pictures show these (subject, place, sky, size, side)."""
    names = ("subject", "place", "sky", "size", "side")
    probabilities = {name: np.full((len(scenes), len(words)), 1 / len(words)) for name, words in LABELS.items()}
    for i, words in enumerate(scenes):
        for name, word in zip(names, words, strict=True):
            probabilities[name][i] = np.eye(len(LABELS[name]))[LABELS[name].index(word)]
    exact = {name: p.astype(np.float32) for name, p in probabilities.items()}
    return Judgement(exact, rng.uniform(size=(len(scenes), 6)).astype(np.float32))


def test_figures_are_what_they_are_called():
    drawn = shots("contexts", 16)
    asked = [("zib", s.scene.place, s.scene.sky, s.scene.size or "medium", s.scene.side or "middle") for s in drawn]
    elsewhere = (
        [("desert", "sunset")] * 2 + [("desert", "night")] * 2 + [("mountains", "sunset")] * 4
    )  # never asked for
    shown = [*asked[:8], *[("cat", *where, *words[3:]) for where, words in zip(elsewhere, asked[8:], strict=True)]]
    judgement = judgement_of(shown, np.random.default_rng(0))
    found = figures.intervals(judgement, drawn)
    assert found["presence"].value == 0.5
    assert found["training context"].value == 2 / 16
    assert found["all right"].value == 0.5
    spoken = [bool(s.scene.size) + bool(s.scene.side) for s in drawn[8:]]
    assert found["agreement"].value == pytest.approx((8 + sum(n / (2 + n) for n in spoken)) / 16)
    by_prompt = [diversity(judgement.features[[i, i + 8]]) for i in range(8)]
    assert found["diversity"].value == pytest.approx(np.mean(by_prompt))
    assert found["diversity x presence"].value == pytest.approx(0.5 * np.mean(by_prompt))
    assert all(interval.low <= interval.value <= interval.high for interval in found.values())


def test_a_bare_prompt_is_not_judged_by_its_surroundings():
    judgement = judgement_of([("zib", "city", "rain", "big", "left")] * 4, np.random.default_rng(0))
    assert not {"agreement", "all right"} & figures.intervals(judgement, shots("alone", 4)).keys()


def test_other_files_and_settings_have_a_folder_of_their_own(tmp_path: Path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "a.safetensors").write_bytes(b"1")
    folder = Store(tmp_path / "work", [model], {"steps": 4}).folder
    assert Store(tmp_path / "work", [model], {"steps": 4}).folder == folder
    assert Store(tmp_path / "work", [model], {"steps": 5}).folder != folder
    (model / "a.safetensors").write_bytes(b"2")
    assert Store(tmp_path / "work", [model], {"steps": 4}).folder != folder


def test_a_finished_cell_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[float] = []

    def draw(pipe, prompts, seeds, rule, steps, batch, on_batch, lora_scale):
        asked.append(lora_scale)
        if lora_scale == 0.9:
            raise KeyboardInterrupt
        return seeds

    monkeypatch.setattr("recipes.builtin.sweep.judge.draw_pairs", draw)
    store = Store(tmp_path, [], {})
    judge = lambda seeds: judgement_of([("zib", "city", "rain", "big", "left")] * len(seeds), np.random.default_rng(1))  # noqa: E731

    def run(*scales: float) -> int:
        wanted = [Cell("alone", scale, 1.0, 5.0) for scale in scales]
        return judge_cells(None, judge, wanted, {"alone": shots("alone", 3)}, store, 2, 8)

    with pytest.raises(KeyboardInterrupt):
        run(0.4, 0.5, 0.9, 1.0)
    assert run(0.4, 0.5, 1.0) == 1
    assert run(0.4, 0.5, 1.0) == 0
    assert asked == [0.4, 0.5, 0.9, 1.0]
    kept = store[Cell("alone", 0.4, 1.0, 5.0)]
    np.testing.assert_array_equal(kept.features, judge(range(3)).features)
    assert kept.probabilities.keys() == set(LABELS)


def test_a_figure_that_is_not_defined_is_a_dash(tmp_path: Path):
    """One picture of a prompt has no diversity."""
    judgement = judgement_of([("zib", "city", "rain", "big", "left")] * 2, np.random.default_rng(0))
    found = {cell: figures.intervals(judgement, shots("contexts", 2)) for cell in table_cells("contexts", (0.2,))}
    write_tables(tmp_path, Results(found, {}), {})
    assert "| 0.2 | 1.000 ± 0.000 | – | – |" in (tmp_path / "table.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "cells.json").read_text())["cells"][0]["figures"]["diversity"] == [None] * 3


def test_the_program_draws_judges_and_reports_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The whole way on the built-in model: two LoRA scales (one of them γ's), two seeds, two steps, without CFG."""
    from recipes.builtin.sweep.__main__ import app

    given = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--block", "alone", "--seeds", "2"]
    given += ["--steps", "2", "--scale", "0.4", "--scale", "1.0", "--gamma", "2.0", "--cfg", "1"]
    run = CliRunner().invoke(app, given)
    assert run.exit_code == 0, run.output
    names = ("cells.json", "table.csv", "table.md", "presence_diversity.png", "gamma.png")
    written = {name: (tmp_path / "out" / name).read_bytes() for name in names}
    with (tmp_path / "out" / "table.csv").open(encoding="utf-8") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2 * 2 + 1
    assert {row["gamma"] for row in rows} == {"1.0", str(cells.GAMMA), "2.0"}
    assert all(0 <= float(row["presence"]) <= 1 and 0 <= float(row["diversity"]) <= 1 for row in rows)

    monkeypatch.setattr("recipes.builtin.sweep.judge.draw_pairs", None)  # a call would fail
    again = CliRunner().invoke(app, given)
    assert again.exit_code == 0, again.output
    assert all((tmp_path / "out" / name).read_bytes() == content for name, content in written.items())
