"""The page to play on: what its controls mean, what it draws, stops and keeps, and what it says of itself elsewhere."""

import dataclasses
import runpy
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolora_jax.batch import draw_job
from autolora_jax.config import ConfigError
from autolora_jax.pictures import read_settings
from autolora_jax.schedules import own_scheduler
from autolora_jax.settings.changes import load_preset
from autolora_jax.settings.jobs import Job
from autolora_jax.settings.pictures import GenerateConfig
from autolora_jax.settings.rules import CFG, AutoLoRA
from autolora_jax.settings.values import Lora
from autolora_jax.ui import copies
from autolora_jax.ui.controls import Controls, LoraRow, of_settings
from autolora_jax.ui.studio import Cell, Event, Stopped, Studio, axis_values
from tests.programs import autolora

STEPS = 2


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    out = str(tmp_path_factory.mktemp("ui"))
    start = GenerateConfig.start({"num_inference_steps": STEPS, "out": out})
    return Studio(dataclasses.replace(start, num_inference_steps=STEPS, out=out))


@pytest.fixture
def controls(studio: Studio) -> Controls:
    return Controls.of(studio.start, 5.0, studio.size, own_scheduler(studio.pipe.canvas.scheduler))


def config_of(controls: Controls, studio: Studio) -> GenerateConfig:
    return controls.config(studio.start, studio.size, own_scheduler(studio.pipe.canvas.scheduler))


def last(events: Iterator[Event]) -> Event:
    *_, event = events
    assert event.done
    return event


def pixels(picture: Image.Image | Path) -> np.ndarray:
    return np.asarray(picture if isinstance(picture, Image.Image) else Image.open(picture)).astype(int)


def test_controls_mean_what_flags_would(studio: Studio, controls: Controls):
    assert controls.prompt == "a zib in the forest at night" and controls.size == "96x96"
    assert controls.loras == (LoraRow("builtin:character"),)
    config = config_of(controls._replace(gamma=2.0, w=3.0, seed=7), studio)
    assert config.guidance == AutoLoRA(2.0, 3.0, 3.0) and config.all_seeds == (7,) and config.size is None
    assert config.scheduler is None and config.loras == (Lora("builtin:character"),)
    config = config_of(controls._replace(rule="cfg", size="64x96", scheduler="ddim"), studio)
    assert (config.guidance, config.size, config.scheduler) == (CFG(5.0), (64, 96), "ddim")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": "  "}, "draw what"),
        ({"size": "large"}, "WIDTHxHEIGHT"),
        ({"loras": ()}, "autolora compares a LoRA with its base model"),
        ({"loras": (LoraRow("a", float("nan")),)}, "finite scale"),
        ({"seed": -1}, "whole numbers from 0"),
    ],
)
def test_what_can_not_be_meant_is_said(studio: Studio, controls: Controls, changes: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        config_of(controls._replace(**changes), studio)


def test_a_picture_is_drawn_and_kept(studio: Studio, controls: Controls):
    events = [*studio.picture(config_of(controls, studio), preview_steps=1)]
    assert [event.done for event in events if event.pictures][-1] and len(events) > 3
    path = events[-1].paths[0]
    assert np.array_equal(pixels(path), pixels(events[-1].pictures[0])) and path.parent == studio.folder.path
    assert len(events[-1].paths) == 1  # the preview is not kept
    told = read_settings(path)
    again = of_settings(told, controls._replace(prompt="x", gamma=3.0, w=1.0, steps=9, seed=5))
    assert again == controls


def test_it_draws_again_elsewhere(studio: Studio, controls: Controls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = config_of(
        controls._replace(gamma=2.0, seed=3, size="64x64", loras=(LoraRow("builtin:character", 0.8),)), studio
    )
    mine = pixels(last(studio.picture(config)).pictures[0])
    words = shlex.split(copies.command(dataclasses.replace(config, out=str(tmp_path / "command"))))
    result = autolora(*words[1:])
    assert result.exit_code == 0, result.output
    [drawn] = (tmp_path / "command").glob("0*.png")
    assert np.abs(pixels(drawn) - mine).max() <= 1
    assert "--start" not in words and "--steps" in words
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(copies.python(config))
    runpy.run_path(str(tmp_path / "script.py"))
    [drawn] = (tmp_path / "pictures").glob("*.png")
    assert np.abs(pixels(drawn) - mine).max() <= 1
    (tmp_path / "job.yaml").write_text(copies.job(config, seeds=(3,)))
    job = load_preset(tmp_path / "job.yaml", Job)
    assert draw_job(dataclasses.replace(job, batch_size=1), tmp_path / "job").ok == 1
    [drawn] = (tmp_path / "job").rglob("*.png")
    assert np.abs(pixels(drawn) - mine).max() <= 1


def test_three_are_compared_from_one_noise(studio: Studio, controls: Controls):
    config = config_of(controls, studio)
    base, lora, mine = map(pixels, last(studio.compared(config)).pictures)
    assert np.abs(mine - pixels(last(studio.picture(config)).pictures[0])).max() <= 1
    assert np.abs(base - lora).max() > 10 < np.abs(lora - mine).max()
    alone = dataclasses.replace(config, guidance=CFG(5.0))
    assert np.abs(lora - pixels(last(studio.picture(alone)).pictures[0])).max() <= 1


def test_a_grid_holds_every_value(studio: Studio, controls: Controls):
    config = config_of(controls, studio)
    event = last(studio.grid(config, ("γ", "1, 2"), ("scale", "0.5; 1")))
    assert len(event.paths) == 4
    told = [read_settings(path) for path in event.paths]
    values = [(row["guidance"]["gamma"], row["lora_scales"][0]) for row in told]
    assert values == [(1.0, 0.5), (1.0, 1.0), (2.0, 0.5), (2.0, 1.0)] and len({row["seed"] for row in told}) == 1
    assert event.pictures[0].size[0] > 2 * 96
    other = dataclasses.replace(config, num_inference_steps=STEPS)
    assert len(last(studio.grid(other, ("steps", "1, 2"), ("seed", "0"))).paths) == 2
    for axes, words in (
        ((("γ", ""), ("w", "1")), "γ: which values"),
        ((("γ", "a"), ("w", "1")), "γ = 'a'"),
        ((("seed", ",".join(map(str, range(65)))), ("w", "1")), "at most 64"),
    ):
        with pytest.raises(ConfigError, match=words):
            last(studio.grid(config, *axes))
    with pytest.raises(ConfigError, match="CFG has no gamma"):
        last(studio.grid(dataclasses.replace(config, guidance=CFG(5.0)), ("γ", "1"), ("w", "1")))
    assert axis_values("w", "1;2, 3") == (1.0, 2.0, 3.0)


def test_stop_ends_a_drawing_and_the_newest_wish_comes_first(studio: Studio, controls: Controls):
    long = dataclasses.replace(config_of(controls, studio), num_inference_steps=400)
    events = studio.draw([Cell(long)])
    next(events)
    studio.stop()
    with pytest.raises(Stopped):
        last(events)
    older = studio.draw([Cell(long)])
    next(older)
    begun = time.monotonic()
    assert last(studio.picture(config_of(controls, studio))).done
    with pytest.raises(Stopped):
        last(older)
    assert time.monotonic() - begun < 60
    abandoned = studio.draw([Cell(long)])
    next(abandoned)
    abandoned.close()  # a browser that went away
    assert last(studio.picture(config_of(controls, studio))).done


def test_a_lora_that_is_none_is_said_and_the_next_one_is_drawn(studio: Studio, controls: Controls, tmp_path: Path):
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of the kind")
    bad = config_of(controls._replace(loras=(LoraRow(str(tmp_path / "bad.safetensors")),)), studio)
    with pytest.raises(ValueError, match=r"bad\.safetensors"):
        last(studio.picture(bad))
    assert last(studio.picture(config_of(controls, studio))).done
    with pytest.raises(ValueError, match="nowhere"):
        studio.change_model(str(tmp_path / "nowhere"))
    assert last(studio.picture(config_of(controls, studio))).done


def test_the_page_is_made_of_it(studio: Studio, controls: Controls):
    pytest.importorskip("gradio")
    from autolora_jax.ui.page import Page

    page = Page(studio)
    values = [*controls[:-1], *(value for row in [*controls.loras, *[LoraRow()] * 3] for value in row)]
    assert page._read(values).loras[0] == controls.loras[0] and len(page.controls) == len(values)
    shown = [*page._shown(studio.picture, values, lambda event: event.pictures[0])]
    assert "kept as" in shown[-1][0] and isinstance(shown[-1][1], Image.Image)
    [(said, _)] = page._shown(studio.picture, ["", *values[1:]], lambda event: event.pictures[0])
    assert 'role="alert"' in said and "draw what" in said
    assert page._uploaded("b", "a", "", "c", "") == ["a", "b", "c", ""]


def test_help_teaches_and_a_missing_gradio_is_said(monkeypatch: pytest.MonkeyPatch):
    assert "autolora ui" in autolora("ui", "--help").output
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    monkeypatch.delitem(__import__("sys").modules, "autolora_jax.ui.page", raising=False)
    result = autolora("ui", "--no-browser")
    assert result.exit_code == 1 and "pip install 'autolora-jax[ui]'" in " ".join(result.stderr.split())
