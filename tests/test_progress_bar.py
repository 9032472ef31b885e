"""The bar that a pipeline shows where somebody looks on: on a terminal, in a notebook, nowhere else."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from autolora_jax import AutoLoRAPipeline, display
from autolora_jax.progress import Progress

CALL = dict(prompt="a cat", num_inference_steps=3, height=64, width=64, output_type="latent")


@pytest.fixture(scope="module")
def pipe(small_folder: Path) -> AutoLoRAPipeline:
    return AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is written."""
    file = io.StringIO()
    monkeypatch.setattr(display, "console", Console(file=file, force_terminal=True, width=100))
    return file


def written(file: io.StringIO) -> str:
    text = file.getvalue()
    file.seek(0)
    file.truncate()
    return text


def test_a_terminal_is_shown_a_bar(pipe, small_folder: Path, terminal: io.StringIO, count_compilations):
    AutoLoRAPipeline.from_pretrained(small_folder, dtype="float32", devices=jax.devices()[:1])
    assert "Load" in written(terminal)
    pipe(**CALL, progress=False)
    assert written(terminal) == ""
    with count_compilations() as compiled:  # the program is the same: nothing in it knows of the bar
        pipe(**CALL)
    text = written(terminal)
    assert "Draw" in text and "3/3" in text and not compiled
    # Who is told shows it; who asks for both has both.
    told: list[Progress] = []
    pipe(**CALL, on_progress=told.append)
    assert written(terminal) == "" and told[-1].done == 3
    pipe(**CALL, on_progress=told.append, progress=True)
    assert "3/3" in written(terminal) and len(told) > 3
    # As a user of diffusers has it.
    pipe.set_progress_bar_config(disable=True)
    pipe(**CALL)
    assert written(terminal) == ""
    pipe(**CALL, progress=True)
    assert "3/3" in written(terminal)
    pipe.set_progress_bar_config(disable=None)
    pipe(**CALL)
    assert "3/3" in written(terminal)
    with pytest.raises(TypeError, match="desc is no argument of set_progress_bar_config"):
        pipe.set_progress_bar_config(desc="Drawing")


def test_elsewhere_there_is_silence_unless_it_is_asked_for(pipe, capfd: pytest.CaptureFixture[str]):
    pipe(**CALL)
    assert capfd.readouterr() == ("", "")
    code = "import autolora_jax.pipeline, autolora_jax; autolora_jax.AutoLoRAPipeline"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stderr == b""
    pipe(**CALL, progress=True)
    assert "Draw 3/3" in capfd.readouterr().err


def test_a_notebook_has_one_table_that_changes(pipe, monkeypatch: pytest.MonkeyPatch):
    import IPython.display

    pages: list[Any] = []

    class Handle:
        def update(self, shown: Any) -> None:
            pages.append(shown.data)

    def shown_first(shown: Any, display_id: bool) -> Handle:
        pages.append(shown.data)
        return Handle()

    monkeypatch.setattr(IPython.display, "display", shown_first)
    monkeypatch.setattr(display, "console", Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(display, "SHOW_EVERY", 0.0)
    pipe(**CALL)
    assert len(pages) >= 3 and "Compile" in pages[0]
    assert pages[-1].count("<tr>") == 2 and 'value="3" max="3"' in pages[-1] and "3/3 steps" in pages[-1]
