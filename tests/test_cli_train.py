"""`autolora train` from its command line: a LoRA and what lies beside it, stopping and going on, messages."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open
from typer.testing import CliRunner, Result

from autolora_jax import ConfigError, overrides, pictures, presets
from autolora_jax.cli import app, train, training
from autolora_jax.cli.train import FLAGS, SQUARES
from autolora_jax.cli.training_display import Average, TrainingDisplay
from autolora_jax.cli.work_folder import WorkFolder
from autolora_jax.demo.world import character_set, write_folder
from autolora_jax.presets import GenerateConfig, ModelConfig, TrainingRun
from autolora_jax.training import DataConfig, LoraConfig, LossConfig, OptimizerConfig, TrainConfig, TrainProgress, loop
from autolora_jax.training.config import CROPS
from autolora_jax.training.deltas import GROUPS
from autolora_jax.training.interruption import uninterrupted
from autolora_jax.training.optimizer import SCHEDULES
from autolora_jax.weights.lora.export import DIALECTS

STEPS = 4


def autolora(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three squares and a wide picture, captioned."""
    folder = tmp_path_factory.mktemp("photos")
    drawn = character_set(4, size=64)
    drawn[3] = drawn[3][0].resize((64, 40)), "a wide zib"
    write_folder(drawn, folder)
    return folder


@pytest.fixture(scope="module")
def command(small_folder: Path, photos: Path) -> list[Any]:
    """Small steps of a small model on all 8 devices; one compiled program serves every test."""
    numbers = ["--rank", 2, "--steps", STEPS, "--no-buckets", "--sample-every", 2]
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
        r"devices +8\n",
        r"steps +4 of 8 pictures: 4 epochs\n",
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
    assert (header["ss_batch_size_per_device"], header["ss_total_batch_size"]) == ("1", "8")
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
    one, two = (overrides.load_preset(path, TrainingRun) for path in (saved, work / "config.json"))
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give --data DIR"),
        (["--data", "d", "--out", "lora.pt"], "should be a file whose name ends in .safetensors"),
        (["--data", "d", "--rank", 0], "rank = 0 should be at least 1"),
        (["--data", "d", "--warmup", 9, "--steps", 9], "warmup_steps = 9 should be fewer than steps = 9"),
        (["--data", "d", "--schedule", "cosin"], "schedule = 'cosin' is not known"),
        (["--data", "d", "--crop", "left"], "crop = 'left' is not known"),
        (["--data", "d", "--format", "koya"], "did you mean 'kohya'?"),
        (["--data", "d", "--learning-rate", "nan"], "learning_rate = nan should be above 0"),
        (["--data", "d", "--noise-offset", "-1"], "noise_offset = -1.0 should be 0 (none) or above"),
        (["--data", "d", "--min-snr-gamma", "five"], "min_snr_gamma = 'five' should be a number"),
        (["--data", "d", "--set", "optimizer.weight_decay=0"], "did you mean training.optimizer.weight_decay?"),
        (["--data", "d", "--set", "training.lora=8"], "training.lora is several settings: training.lora.rank"),
        (["--data", "d", "--set", "rank"], "should be NAME=VALUE"),
        (["--data", "d", "--config", "configs/sdxl_cfg.py"], "should return a TrainingRun, not a GenerateConfig"),
        (["--rank", "x"], "Invalid value for '--rank'"),
    ],
)
def test_wrong_usage_is_explained(arguments: list[Any], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    result = autolora("train", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr and "Traceback" not in result.stderr


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
    for changes, message in (
        (["--data", tmp_path / "none"], "no such folder; check the path"),
        (["--data", bare], "write a .txt beside each, or give a default caption"),
        (["--out", tmp_path / "file" / "lora.safetensors"], "file can't be written: File exists"),
        (["--work", tmp_path / "file"], "file can't be written: File exists"),
        (["--out", tmp_path / "of another run.safetensors"], "or replace it with --overwrite"),
        (["--out", tmp_path / "folder.safetensors"], "should be a file that ends in .safetensors"),
        (["--work", photos / "work"], "lies among the pictures"),
    ):
        result = autolora("train", "model", "--data", photos, "--out", out, *changes)
        assert result.exit_code == 1, (changes, result.output)
        assert message in result.stderr and result.stderr.startswith("Error: ") and "Traceback" not in result.stderr
        assert result.stdout == ""
    assert not (photos / "work").exists()
    fine = ["--overwrite", "--out", tmp_path / "of another run.safetensors"]
    assert isinstance(autolora("train", "model", "--data", photos, *fine).exception, AttributeError)


def test_failures_of_a_run_are_one_line(command: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = [*command, "--out", tmp_path / "lora.safetensors"]
    for changes, message in (
        (["--target", "no_such_layer"], "target 'no_such_layer' is found in no layer of unet; layers are called like "),
        (["--min-snr-gamma", 0], "min_snr_gamma = 0.0 should be above 0"),
        (["--resolution", 100], "resolution 100"),
    ):
        result = autolora(*run, *changes)
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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ("builtin", "float32")),
        (["builtin"], ("builtin", "float32")),
        (["builtin", "--dtype", "bfloat16"], ("builtin", "bfloat16")),
        (["other"], ("other", "bfloat16")),
    ],
)
def test_the_builtin_model_is_trained_in_float32(
    arguments: list[str], expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    runs: list[TrainingRun] = []
    monkeypatch.setattr(training, "train", lambda run, *_: runs.append(run) or 1 / 0)
    autolora("train", *arguments, "--data", "photos")
    assert (runs[0].model.source, runs[0].model.dtype) == expected


def test_every_flag_reaches_the_run(monkeypatch: pytest.MonkeyPatch):
    runs: list[TrainingRun] = []
    monkeypatch.setattr(training, "train", lambda run, *_: runs.append(run) or 1 / 0)
    autolora(
        *("train", "model", "--dtype", "float32", "--variant", "fp16", "--tokenizer", "tok", "--data", "photos"),
        *("--text-encoders-from", "clips"),
        *("--resolution", 512, "--no-buckets", "--crop", "random", "--flip", "--caption-extension", ".cap"),
        *("--default-caption", "a dog", "--rank", 4, "--alpha", 2, "--target", "feed_forward", "--target", "attn2"),
        *("--text-encoders", "--steps", 70, "--batch-size", 3, "--accumulate", 2, "--learning-rate", "2e-5"),
        *("--warmup", 7, "--schedule", "linear", "--no-gradient-checkpointing", "--seed", 5, "--min-snr-gamma", "none"),
        *("--noise-offset", ".05", "--caption-dropout", ".2", "--out", "o.safetensors", "--format", "peft"),
        *(
            "--t5",
            "host",
            "--save-dtype",
            "float16",
            "--trigger",
            "sks dog",
            "--work",
            "w",
            "--save-every",
            11,
            "--sample-every",
            12,
            "--sample-prompt",
            "one",
        ),
        *("--set", "training.optimizer.weight_decay=0", "--set", "training.seed=6"),
    )
    assert runs == [
        TrainingRun(
            model=ModelConfig("model", "float32", "fp16", "tok", "clips", "host"),
            data="photos",
            out="o.safetensors",
            work="w",
            format="peft",
            save_dtype="float16",
            trigger="sks dog",
            training=TrainConfig(
                lora=LoraConfig(4, 2.0, ("feed_forward", "attn2"), True),
                data=DataConfig(512, 1.0, "random", True, True, ".cap", "a dog"),
                loss=LossConfig(0.2, None, 0.05),
                optimizer=OptimizerConfig(2e-5, 7, "linear", weight_decay=0.0),
                steps=70,
                batch_size=3,
                gradient_accumulation_steps=2,
                gradient_checkpointing=False,
                seed=5,
                save_every=11,
                sample_every=12,
                sample_prompts=("one",),
            ),
        )
    ]
    (run,) = runs
    assert overrides.override(TrainingRun(), dict(overrides.flatten(overrides.to_json(run)))) == run
    assert "--variant fp16 --tokenizer tok --text-encoders-from clips --lora o.safetensors" in training.usage(
        run, no_report()
    )


def no_report() -> Any:
    from autolora_jax.lora import LoraReport

    return LoraReport("o.safetensors", "peft", {}, {}, {}, 0, ("sks dog",), {})


def test_settings_that_only_fit_together_may_come_together():
    short = TrainingRun(training=TrainConfig(optimizer=OptimizerConfig(warmup_steps=10), steps=20))
    longer = overrides.override(short, {"training.optimizer.warmup_steps": 100, "training.steps": 200})
    shorter = overrides.override(longer, {"training.optimizer.warmup_steps": 5, "training.steps": 6})
    assert (shorter.training.optimizer.warmup_steps, shorter.training.steps) == (5, 6)
    with pytest.raises(Exception, match=r"(?s)targets.*'attention'"):  # the tests' import hook is the first to complain
        LoraConfig(targets=typing.cast(Any, "attention"))


# ---- help ------------------------------------------------------------------------------------------------------------


def test_help_does_not_wait_for_jax():
    code = (
        "import sys; from autolora_jax.cli import app; app(['train', '--help'], standalone_mode=False)\n"
        "slow = {'jax', 'numpy', 'transformers', 'torch', 'PIL'} & sys.modules.keys(); assert not slow, slow"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--min-snr-gamma" in result.stdout and "Examples" in result.stdout


def test_help_states_the_real_defaults():
    hints = typing.get_type_hints(train.train, include_extras=True)
    helps = {name: hint.__metadata__[0].help for name, hint in hints.items() if hasattr(hint, "__metadata__")}
    said = {name: m[1] for name, text in helps.items() if (m := re.search(r"\[default (.*)\]\[/dim\]", text))}
    defaults = dict(overrides.flatten(overrides.to_json(TrainingRun())))
    in_words = {  # flag -> (what None, or a value that isn't a text, means; that value)
        "resolution": ("the model's", None),
        "alpha": ("the rank", None),
        "gradient_checkpointing": ("above 512x512", None),
        "work": ("FILE with .train at its end", None),
        "sample_prompt": ("the first captions", []),
        "flip": ("no-flip", False),
        "text_encoders": ("no-text-encoders", False),
        "target": ("attention", ["attention"]),
    }
    for name, (words, value) in in_words.items():
        assert said.pop(name) == words and defaults[FLAGS[name]] == value
    assert said == {name: str(defaults[FLAGS[name]]) for name in said}
    without = FLAGS.keys() - said.keys() - in_words.keys()
    assert {FLAGS[name]: defaults[FLAGS[name]] for name in without} == dict.fromkeys(
        [
            *("model.source", "model.variant", "model.tokenizer", "model.text_encoders"),
            *("data", "training.data.default_caption", "trigger"),
        ]
    )
    for name, known in (("target", GROUPS), ("schedule", SCHEDULES), ("crop", CROPS), ("format", DIALECTS)):
        assert all(re.search(rf"\b{key}\b", helps[name]) for key in known)
    assert tuple(DIALECTS) == presets.LORA_FORMATS


def test_flags_are_settings():
    rare = {  # --set alone
        *("training.data.upscale", "training.loss.min_timestep", "training.loss.max_timestep", "model.weight_shards"),
        *("training.loss.logit_mean", "training.loss.logit_std"),
        *(f"training.optimizer.{name}" for name in ("beta1", "beta2", "epsilon", "weight_decay", "max_grad_norm")),
    }
    settings = {name for name, _ in overrides.flatten(overrides.to_json(TrainingRun()))}
    assert {*FLAGS.values(), *SQUARES, *rare} == settings
    assert FLAGS.keys() <= set(typing.get_type_hints(train.train))


# ---- the display -----------------------------------------------------------------------------------------------------


def test_the_display_smooths_the_loss_and_times_steps_alone(capsys: pytest.CaptureFixture[str]):
    times = iter([100.0, 102.0, 104.0, 1000.0, 1002.0])
    display = TrainingDisplay(clock=lambda: next(times))
    display._rows_a_step = 4
    for step, loss in enumerate((1.0, 3.0, 3.0, 5.0), start=1):
        if step == 4:
            display.train(TrainProgress("sample", 3, 10_000))
        said = display._said(TrainProgress("train", step, 10_000, {"loss": loss, "learning_rate": 1e-4}))
    # 2 s a step of 4 pictures; the pause for samples does not count.
    assert said.endswith("rate 1.0e-04, 2 pictures/s, 5:33:12 left")
    assert float(said.split()[1].rstrip(",")) == pytest.approx(np.mean([1, 3, 3, 5]), abs=0.1)
    assert Average(0.9).value is None
    assert "drawing samples" in capsys.readouterr().err


def test_presets_of_one_program_are_not_the_others(tmp_path: Path):
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(overrides.record(GenerateConfig())))
    with pytest.raises(ConfigError, match=r"config\.json: \w+ is not a setting of TrainingRun"):
        overrides.load_preset(saved, TrainingRun)
    assert overrides.record(TrainingRun())["jax"] == jax.__version__
