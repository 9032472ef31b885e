"""The flags of `autolora train`: what they mean, how they are explained, what is wrong with them; its display."""

import json
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from autolora_jax import ConfigError
from autolora_jax.cli import train as training
from autolora_jax.cli.learning import Average, TrainingDisplay
from autolora_jax.settings import GenerateConfig, ModelConfig, TrainingRun, changes
from autolora_jax.training import DataConfig, LoraConfig, LossConfig, OptimizerConfig, TrainConfig, TrainProgress
from tests.programs import autolora


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
            model=ModelConfig(
                "model",
                dtype="float32",
                variant="fp16",
                tokenizer="tok",
                text_encoders="clips",
                text_encoder_3="host",
            ),
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
    assert changes.override(TrainingRun(), dict(changes.flatten(changes.to_json(run)))) == run
    assert "--variant fp16 --tokenizer tok --text-encoders-from clips --lora o.safetensors" in training.usage(
        run, no_report()
    )


def no_report() -> Any:
    from autolora_jax.lora import LoraReport

    return LoraReport("o.safetensors", "peft", {}, {}, {}, 0, ("sks dog",), {})


def test_settings_that_only_fit_together_may_come_together():
    short = TrainingRun(training=TrainConfig(optimizer=OptimizerConfig(warmup_steps=10), steps=20))
    longer = changes.override(short, {"training.optimizer.warmup_steps": 100, "training.steps": 200})
    shorter = changes.override(longer, {"training.optimizer.warmup_steps": 5, "training.steps": 6})
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
    saved.write_text(json.dumps(changes.record(GenerateConfig())))
    with pytest.raises(ConfigError, match=r"config\.json: \w+ is not a setting of TrainingRun"):
        changes.load_preset(saved, TrainingRun)
    assert changes.record(TrainingRun())["jax"] == jax.__version__
