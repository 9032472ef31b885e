"""Presets, --set and config.json: one mechanism, one spelling."""

import json
import re
from pathlib import Path

import pytest

from autolora_jax import (
    CFG,
    AutoLoRA,
    ConfigError,
    NoGuidance,
    PersonalizationGuidance,
    guidance,
)
from autolora_jax.batch import Job
from autolora_jax.canvas import Canvas
from autolora_jax.config import SchedulerConfig
from autolora_jax.settings import DrawingConfig, GenerateConfig, Lora, ModelConfig, TrainingRun, changes
from autolora_jax.settings.changes import override
from tests.conftest import ROOT

PRESETS = sorted((ROOT / "configs").glob("*.py"))
# What a preset returns -> its type, and the command that it says.
COMMANDS = {
    "GenerateConfig": (GenerateConfig, "generate MODEL --config"),
    "TrainingRun": (TrainingRun, "train --config"),
    "Job": (Job, "batch"),
}

FULL = GenerateConfig(
    model=ModelConfig(
        "sdxl.safetensors",
        dtype="float32",
        variant="fp16",
        tokenizer="sdxl",
        text_encoders="a/b",
        text_encoder_3=None,
        weight_shards=4,
        vae_dtype="bfloat16",
    ),
    loras=(Lora("a.safetensors", 0.1 + 0.2, "all"), Lora(r"C:\loras\b.safetensors"), Lora("own:er/c", -1.0)),
    embeddings=("a:b.safetensors", "own:er/c"),
    prompts=("a, b: c", "süß 猫"),
    negative_prompt=None,
    seeds=(1, 5, 9, 10, 11, 2**63 - 1),
    guidance=PersonalizationGuidance(3.0, 0.4, start=0.1, stop=0.9),
    num_inference_steps=28,
    scheduler="ddim",
    timestep_spacing="trailing",
    guidance_rescale=0.7,
    noise="torch",
    size=(832, 1216),
    clip_skip=1,
    base_text="lora",
    max_sequence_length=77,
    batch_size=2,
    compare=True,
    out="elsewhere",
)


@pytest.mark.parametrize("config", [GenerateConfig(), FULL, GenerateConfig(guidance=AutoLoRA((1.0, 2.0)))])
def test_a_config_survives_its_json(config: GenerateConfig, tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"settings": changes.to_json(config)}))
    assert changes.load_preset(path, GenerateConfig) == config


# Preset -> the timesteps that it asks SDXL at, and evaluations of a picture.
FEW_STEPS = {
    "sdxl_lightning": ([999, 749, 499, 249], 8),
    "sdxl_hyper_cfg": ([999, 874, 749, 624, 499, 374, 249, 124], 32),
    "sdxl_lcm": ([999, 879, 759, 639, 499, 379, 259, 139], 16),
    "sdxl_dmd2": ([999, 749, 499, 249], 8),
    "sdxl_turbo": ([999, 749, 499, 249], 8),
}


@pytest.mark.parametrize("name", FEW_STEPS)
def test_presets_of_few_steps_ask_where_their_models_learned(name: str):
    preset = changes.load_preset(ROOT / "configs" / f"{name}.py", GenerateConfig)
    canvas = Canvas(8, 1, 128, 4, 5.0, SchedulerConfig())
    drawing = canvas.resolved(DrawingConfig(**preset.drawing()), tuned=True)
    timesteps, evaluations = FEW_STEPS[name]
    assert canvas.schedule(drawing).timestep.tolist() == timesteps
    assert guidance.evaluations(guidance.plan(drawing.guidance, 1, len(timesteps)).segments) == evaluations
    text = (ROOT / "configs" / f"{name}.py").read_text()
    assert ("@all" in text) == (name != "sdxl_turbo") and f"`{name}.py`" in (
        ROOT / "docs" / "guides" / "few_steps.md"
    ).read_text()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_load_and_say_their_command(path: Path):
    text = path.read_text()
    (returns,) = re.findall(r"def get_config\(\) -> (\w+):", text)
    kind, command = COMMANDS[returns]
    assert isinstance(changes.load_preset(path, kind), kind)
    assert f"autolora {command} configs/{path.name} " in text
    assert len(text.splitlines()) < 40


@pytest.mark.parametrize(
    ("text", "source", "scale"),
    [
        ("pixel.safetensors", "pixel.safetensors", 1.0),
        ("pixel.safetensors:0.8", "pixel.safetensors", 0.8),
        ("pixel.safetensors:-1", "pixel.safetensors", -1.0),
        (r"C:\loras\pixel.safetensors", r"C:\loras\pixel.safetensors", 1.0),
        (r"C:\loras\pixel.safetensors:.5", r"C:\loras\pixel.safetensors", 0.5),
        ("nerijs/pixel-art-xl", "nerijs/pixel-art-xl", 1.0),
        ("nerijs/pixel-art-xl:1.2", "nerijs/pixel-art-xl", 1.2),
        ("a:b.safetensors", "a:b.safetensors", 1.0),
    ],
)
def test_only_a_number_after_the_last_colon_is_a_scale(text: str, source: str, scale: float):
    assert Lora.parse(text) == Lora(source, scale)


def test_a_file_may_be_called_like_a_scale(tmp_path: Path):
    file = tmp_path / "epoch:2"
    file.touch()
    assert Lora.parse(str(file)) == Lora(str(file), 1.0)
    assert Lora.parse(f"{file}:0.5") == Lora(str(file), 0.5)


def test_values_change_the_rule_that_the_run_has():
    one_lora = {"loras": ["a.safetensors"]}
    assert override(GenerateConfig(), {"guidance.gamma": "2", **one_lora}).guidance == AutoLoRA(2.0)
    assert override(GenerateConfig(), {"guidance.w": 7.0}).guidance == CFG(7.0)
    preset = GenerateConfig(guidance=AutoLoRA(2.0, 3.0, 4.0))
    assert override(preset, {"guidance.w2": 6.0}).guidance == AutoLoRA(2.0, 3.0, 6.0)
    assert override(preset, {"guidance.w": 6.0, "guidance": "cfg"}).guidance == CFG(6.0)
    assert override(preset, {"guidance": "none"}).guidance == NoGuidance()
    assert override(GenerateConfig(), {}).guidance is None
    assert GenerateConfig().rule() == CFG() and GenerateConfig(loras=(Lora("a"),)).rule() == AutoLoRA()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_stepz": 1}, r"num_inference_stepz is not a setting.*did you mean num_inference_steps\?"),
        ({"steps": 1}, r"did you mean num_inference_steps\?"),
        ({"gama": 1}, r"gama is not a setting"),
        ({"guidance.gama": 1, "loras": ["a"]}, r"did you mean guidance\.gamma\?"),
        ({"guidance.gamma": 1}, r"guidance\.gamma is not a setting of CFG"),
        ({"seeds.x": 1}, r"seeds\.x is not a setting"),
        ({"model": 1}, r"model is several settings: model\.source"),
        ({"sampler.steps": "many"}, r"num_inference_steps = 'many' should be a whole number"),
        ({"sampler.steps": "2.5"}, r"should be a whole number"),
        ({"sampler.steps": 0}, r"num_inference_steps = 0 should be at least 1"),
        ({"sampler.scheduler": "eular"}, r"scheduler = 'eular' is not known: did you mean 'euler'\?"),
        ({"sampler.guidance_rescale": "nan"}, r"guidance_rescale = nan should be between 0 and 1"),
        ({"model.dtype": "int4"}, r"there are bfloat16, float16, float32"),
        ({"guidance": "auto"}, r"one of autolora, cfg, none, autoguidance, personalization"),
        ({"guidance.start": "0.9", "guidance.stop": "0.1"}, r"start=0\.9, stop=0\.1: need"),
        ({"guidance.w": "nan"}, r"need a finite number"),
        ({"seeds": "5-3"}, r"seeds such as 0-15"),
        ({"seeds": "-1"}, r"seeds = -1 should be .* from 0 to 2\^64 - 1; with noise='torch' down to -2\^63"),
        ({"seeds": "1--3"}, r"seeds such as 0-15"),
        ({"seeds": ""}, r"seeds such as 0-15"),
        ({"seeds": "0-99999999999"}, r"at most 1,000,000"),
        ({"seeds": str(2**64)}, r"from 0 to 2\^64 - 1"),
        ({"size": "1024"}, r"WIDTHxHEIGHT"),
        ({"size": "0x64"}, r"a width and a height"),
        ({"compare": "maybe"}, r"true or false"),
        ({"loras": ["a.safetensors:nan"]}, r"finite scale"),
        ({"batch_size": "0"}, r"batch_size = 0 should be at least 1"),
        ({"clip_skip": "-1"}, r"clip_skip = -1 should be at least 0"),
        ({"base_text": "lore"}, r"base_text = 'lore' is not known: did you mean 'lora'\?"),
        ({"embeddings": 3}, r"embeddings = 3 should be a text"),
    ],
)
def test_impossible_settings_say_what_is_possible(changes: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        override(GenerateConfig(), changes)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("x = 1", r"preset\.py.*defines no get_config\(\)"),
        ("def get_config():\n    return 1 / 0", r"preset\.py, line 2: ZeroDivisionError"),
        ("def get_config(:", r"preset\.py.*SyntaxError"),
        ("def get_config():\n    return {}", r"should return a GenerateConfig, not a dict"),
        (
            "from autolora_jax.settings import *\ndef get_config():\n    return GenerateConfig(prompts='one')",
            r"(?s)line 3: .*prompts",
        ),
    ],
)
def test_broken_presets_are_named_with_their_line(code: str, message: str, tmp_path: Path):
    path = tmp_path / "preset.py"
    path.write_text(code)
    with pytest.raises(ConfigError, match=message):
        changes.load_preset(path, GenerateConfig)


def test_a_missing_preset_is_named(tmp_path: Path):
    for name in ("none.py", "none.json"):
        with pytest.raises(ConfigError, match=name):
            changes.load_preset(tmp_path / name, GenerateConfig)
