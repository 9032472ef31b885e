"""`autolora train` from its command line: a LoRA and what lies beside it, stopping and going on, failing."""

import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import Result

from autolora_jax import pictures
from autolora_jax.cli import train as training
from autolora_jax.cli.learning import WorkFolder
from autolora_jax.settings import TrainingRun, changes
from autolora_jax.training import loop
from autolora_jax.training.interruption import uninterrupted
from recipes.builtin.world import character_set, write_folder
from tests.programs import autolora

STEPS = 4


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three squares and a wide picture, captioned."""
    folder = tmp_path_factory.mktemp("photos")
    drawn = character_set(4, size=64)
    drawn[3] = drawn[3][0].resize((64, 40)), "a wide zib"
    write_folder(drawn, folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """As most have: to be partitioned over eight takes longer than all else here; test_training_resume has two."""
    one = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda *_: one)
        yield


@pytest.fixture(scope="module")
def command(small_folder: Path, photos: Path) -> list[Any]:
    """Small steps of a small model; one compiled program serves every test."""
    numbers = ["--rank", 2, "--steps", STEPS, "--batch-size", 4, "--no-buckets", "--sample-every", 2]
    texts = ["--dtype", "float32", "--trigger", "a zib", "--sample-prompt", "a zib", "--sample-prompt", "the dog"]
    return ["train", small_folder, "--data", photos, *numbers, *texts]


@pytest.fixture(scope="module")
def finished(command: list[Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The LoRA of a run that was never stopped."""
    out = tmp_path_factory.mktemp("finished") / "lora.safetensors"
    return out, autolora(*command, "--out", out)


def log(work: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]


# ---- what a run leaves behind ----------------------------------------------------------------------------------------


def test_a_run_leaves_a_lora_and_its_story(finished: tuple[Path, Result]):
    out, result = finished
    assert result.exit_code == 0, result.output
    assert result.stdout == f"LoRA in {out}\n"
    work = out.with_suffix(".train")
    names = {str(path.relative_to(work)) for path in work.rglob("*") if path.is_file()}
    samples = {f"samples/step-{step:06}-{i}.png" for step in (2, 4) for i in range(2)}
    assert {"config.json", "log.jsonl", "samples/grid.png", "checkpoints/settings.json"} | samples <= names
    assert sum(name.startswith("latents/") for name in names) == 4
    assert not any(name.startswith(".") or name.endswith((".part", ".tmp")) for name in names)

    steps = log(work)
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert all(line.keys() == {"step", "loss", "gradient_norm", "learning_rate"} for line in steps)
    assert steps[0]["learning_rate"] == pytest.approx(1e-4) and steps[3]["learning_rate"] < 2e-5


def test_a_run_says_what_it_does(finished: tuple[Path, Result]):
    _, result = finished
    said = result.stderr
    for line in (
        r"pictures +4: 4 of 64x64\n",
        r"captions +2 distinct\n",
        r"layers +\d+ in unet; rank 2, alpha 2\n",
        r"parameters +[\d,]+\n",
        r"devices +1\n",
        r"steps +4 of 4 pictures: 4 epochs\n",
        r"Load 4/4\n",
        r"Latents 4/4\n",
        r"Captions 3/3\n",
        r"Compile the first step includes it",
        r"Train 1/4 loss \d\.\d{4}, rate 1\.0e-04\n",
        r"Train 4/4 loss \d\.\d{4}, rate 1\.5e-05, \S+ pictures/s, 0:00:00 left\n",
        r"Draw with it: autolora generate \S+ --lora \S+lora\.safetensors --prompt 'a zib'\n",
    ):
        assert re.search(line, said), f"{line} is not in\n{said}"
    assert "Traceback" not in said and "Warning" not in said


def test_samples_say_what_they_are_and_form_a_grid(finished: tuple[Path, Result]):
    samples = finished[0].with_suffix(".train") / "samples"
    settings = pictures.read_settings(samples / "step-000004-1.png")
    assert settings["prompt"] == "the dog" and settings["loras"] == ["lora"] and settings["lora_scales"] == [1.0]
    with Image.open(samples / "step-000004-1.png") as image:
        assert image.info["parameters"].startswith("the dog <lora:lora:1>\n")
        width, height = image.size
    with Image.open(samples / "grid.png") as grid:
        assert grid.width > 2 * width and grid.height > 2 * height


def test_the_lora_is_read_and_drawn_with(finished: tuple[Path, Result], small_folder: Path, tmp_path: Path):
    out, _ = finished
    info = autolora("info", out)
    assert info.exit_code == 0 and "kohya" in info.stdout and "a zib" in info.stdout
    with safe_open(out, "np") as file:
        header = file.metadata()
        assert any(file.get_tensor(key).any() for key in file.keys() if "lora_up" in key)  # noqa: SIM118  # no mapping
    assert header["modelspec.trigger_phrase"] == "a zib"
    assert (header["ss_batch_size_per_device"], header["ss_total_batch_size"]) == ("4", "4")
    small = ["--steps", 1, "--dtype", "float32", "--guidance", "none", "--out", tmp_path]  # VAE compiled for samples
    drawn = autolora("generate", small_folder, "--lora", out, "--prompt", "a zib", *small)
    assert drawn.exit_code == 0, drawn.output


# ---- stopping and going on -------------------------------------------------------------------------------------------


def stop_in_step(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """A signal comes while a step runs: after it gave the old state's memory away, before it gives the new one back."""
    real, calls = loop.train_step, []

    def stopping(*arguments: Any) -> Any:
        result = real(*arguments)
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), number)
        return result

    monkeypatch.setattr(loop, "train_step", stopping)


def test_a_resumed_run_equals_an_uninterrupted_one(
    finished: tuple[Path, Result], command: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "lora.safetensors"
    work = out.with_suffix(".train")
    with monkeypatch.context() as patch:
        stop_in_step(patch, 3, signal.SIGTERM)
        stopped = autolora(*command, "--out", out)
    assert stopped.exit_code == 143
    assert stopped.stderr.splitlines()[-1] == "Stopped. Step 3 of 4 is saved: the same command goes on from there"
    assert not out.exists() and [line["step"] for line in log(work)] == [1, 2, 3]
    (work / "log.jsonl").open("a").write('{"step": 4, "loss": 7}\n{"step":')  # of a run that was killed later

    resumed = autolora(*command, "--out", out)
    assert resumed.exit_code == 0, resumed.output
    assert "Resuming at step 3 of 4" in resumed.stderr
    uninterrupted = finished[0]
    assert out.read_bytes() == uninterrupted.read_bytes()
    assert log(work) == log(uninterrupted.with_suffix(".train"))
    assert {path.name for path in (work / "samples").iterdir()} >= {
        "step-000002-0.png",
        "step-000004-1.png",
        "grid.png",
    }
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_nothing_is_saved_of_a_first_step_that_is_broken_off(
    finished: tuple[Path, Result], command: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    stop_in_step(monkeypatch, 1, signal.SIGINT)
    stopped = autolora(*command, "--out", tmp_path / "lora.safetensors")
    assert stopped.exit_code == 130 and stopped.stderr.splitlines()[-1] == "Stopped"
    assert WorkFolder(tmp_path / "lora.train").finished == 0
    monkeypatch.undo()
    # Without a checkpoint, other settings are welcome.
    monkeypatch.setattr(training, "describe", lambda *_: 1 / 0)
    again = autolora(*command, "--out", tmp_path / "lora.safetensors", "--seed", 1)
    assert isinstance(again.exception, ZeroDivisionError)


def test_a_finished_run_writes_its_file_again(
    finished: tuple[Path, Result], command: list[Any], monkeypatch: pytest.MonkeyPatch
):
    out, _ = finished
    before = out.read_bytes()
    out.write_bytes(b"")
    monkeypatch.setattr(loop, "train_step", None)
    again = autolora(*command, "--out", out, "--save-every", 1)  # which decides no number
    assert again.exit_code == 0, again.output
    assert "All 4 steps are done: writing the file again" in again.stderr
    assert out.read_bytes() == before and len(log(out.with_suffix(".train"))) == STEPS
    assert (out.with_suffix(".train") / "samples" / "grid.png").exists()


def test_other_settings_are_refused_until_asked_for_afresh(
    finished: tuple[Path, Result], command: list[Any], tmp_path: Path
):
    out = tmp_path / "lora.safetensors"
    shutil.copy(finished[0], out)
    shutil.copytree(finished[0].with_suffix(".train"), out.with_suffix(".train"))
    first = out.read_bytes()
    refused = autolora(*command, "--out", out, "--seed", 1)
    assert refused.exit_code == 1
    last = refused.stderr.splitlines()[-1]
    assert last.startswith("Error: ") and "seed was 0, is 1. " in last
    assert f"--fresh starts anew in {out.with_suffix('.train')}, --work DIR or another --out elsewhere" in last
    assert out.read_bytes() == first

    fresh = autolora(*command, "--out", out, "--seed", 1, "--fresh", "--sample-every", 0)
    assert fresh.exit_code == 0, fresh.output
    assert (
        "Starting anew: removing the checkpoints, log and samples of" in fresh.stderr and "Resuming" not in fresh.stderr
    )
    assert out.read_bytes() != first
    assert [line["step"] for line in log(out.with_suffix(".train"))] == [1, 2, 3, 4]
    assert list((out.with_suffix(".train") / "samples").iterdir()) == []
    assert json.loads((out.with_suffix(".train") / "config.json").read_text())["settings"]["training"]["seed"] == 1


def test_config_json_repeats_the_run(finished: tuple[Path, Result], tmp_path: Path):
    out, _ = finished
    work = tmp_path / "elsewhere"
    saved = out.with_suffix(".train") / "config.json"
    again = autolora(
        *("train", "--config", saved, "--out", tmp_path / "lora.safetensors", "--work", work),
        *("--format", "peft", "--sample-every", 0),
    )
    assert again.exit_code == 0, again.output
    assert log(work) == log(out.with_suffix(".train"))
    assert not (work / "samples").exists()
    with safe_open(tmp_path / "lora.safetensors", "np") as file:
        assert "lora_adapter_metadata" in file.metadata()
    one, two = (changes.load_preset(path, TrainingRun) for path in (saved, work / "config.json"))
    assert one.training.lora == two.training.lora and one.training.data == two.training.data and two.format == "peft"


def test_a_signal_waits_for_the_block_and_the_second_does_not():
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        done.append("block")
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("never")
    assert done == ["block"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def elsewhere() -> None:
        with uninterrupted():
            done.append("thread")

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert done == ["block", "thread"]


# ---- what can go wrong -----------------------------------------------------------------------------------------------


def test_what_can_be_known_early_is_told_before_the_model_loads(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(training, "AutoLoRAPipeline", None)
    out = tmp_path / "lora.safetensors"
    (tmp_path / "file").write_text("")
    (tmp_path / "of another run.safetensors").write_text("")
    (tmp_path / "folder.safetensors").mkdir()
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.new("RGB", (64, 64)).save(bare / "dog.png")
    for flags, message in (
        (["--data", tmp_path / "none"], "no such folder; check the path"),
        (["--data", bare], "write a .txt beside each, or give a default caption"),
        (["--out", tmp_path / "file" / "lora.safetensors"], "file can't be written: File exists"),
        (["--work", tmp_path / "file"], "file can't be written: File exists"),
        (["--out", tmp_path / "of another run.safetensors"], "or replace it with --overwrite"),
        (["--out", tmp_path / "folder.safetensors"], "should be a file that ends in .safetensors"),
        (["--work", photos / "work"], "lies among the pictures"),
    ):
        result = autolora("train", "model", "--data", photos, "--out", out, *flags)
        assert result.exit_code == 1, (flags, result.output)
        assert message in result.stderr and result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
        assert result.stdout == ""
    assert not (photos / "work").exists()
    fine = ["--overwrite", "--out", tmp_path / "of another run.safetensors"]
    assert isinstance(autolora("train", "model", "--data", photos, *fine).exception, AttributeError)


def test_failures_of_a_run_are_one_line(command: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = [*command, "--out", tmp_path / "lora.safetensors"]
    for flags, message in (
        (["--target", "no_such_layer"], "target 'no_such_layer' is found in no layer of unet; layers are called like "),
        (["--min-snr-gamma", 0], "min_snr_gamma = 0.0 should be above 0"),
        (["--resolution", 100], "resolution 100"),
    ):
        result = autolora(*run, *flags)
        assert result.exit_code == 1, result.output
        assert message in result.stderr and result.stderr.splitlines()[-1].startswith("Error: ")
        assert "Latents" not in result.stderr
    assert autolora("train", tmp_path / "none", *run[2:]).exit_code == 1

    def diverge(*_: Any, **__: Any) -> None:
        raise loop.TrainingError("the loss of step 3 is nan; lower the learning rate")

    monkeypatch.setattr(training, "train_lora", diverge)
    result = autolora(*run)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1].startswith(
        "Error: the loss of step 3 is nan; lower the learning rate. --fresh"
    )
    assert type(autolora(*run, "--debug").exception) is loop.TrainingError
