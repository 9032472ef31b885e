"""Settings: one field says all of one; what users give is never overridden; what version 0.1 wrote is still read."""

import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from autolora_jax import CFG, AutoLoRA, AutoLoRAPipeline, ConfigError
from autolora_jax.batch.plan import make_plan
from autolora_jax.batch.sources import Sources
from autolora_jax.canvas import Canvas
from autolora_jax.cli import app
from autolora_jax.cli.flags import build, flags_of, told
from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules import SOLVERS
from autolora_jax.schedules.grid import RESPACED
from autolora_jax.settings import Call, DrawingConfig, GenerateConfig, Job, Lora, ModelConfig, load_preset
from autolora_jax.settings.changes import override
from autolora_jax.settings.fields import settings_of
from autolora_jax.settings.jobs import Prompt
from autolora_jax.settings.pictures import SKIP, SKIPPING
from autolora_jax.settings.programs import PROGRAMS, Generate, Reproduce, Train
from autolora_jax.settings.rules import NEUTRAL, RULES
from tests.conftest import ROOT
from tests.programs import autolora

OLD = ROOT / "tests" / "data" / "version_0_1"
FIELD = """
    brightness: float = setting(
        0.5, "How light it is.", panel=PANEL, least=0, most=1, column="brightness", png="Brightness"
    )
    base_text: str"""
LOOKED_FOR = """
import dataclasses, inspect, json
from typer.testing import CliRunner
from autolora_jax import AutoLoRAPipeline
from autolora_jax.batch.manifest import COLUMNS
from autolora_jax.cli import app
from autolora_jax.pictures import parameters
from autolora_jax.settings import AutoLoRA, DrawingConfig, GenerateConfig, load_preset, override
from autolora_jax.settings.changes import record
from autolora_jax.settings.fields import told

print(json.dumps({
    "help": CliRunner().invoke(app, ["generate", "--help"], env={"COLUMNS": "200"}).output,
    "config.json": record(override(GenerateConfig(), {"brightness": "0.7"}))["settings"]["brightness"],
    "manifest": COLUMNS["brightness"],
    "pipe()": str(inspect.signature(AutoLoRAPipeline.__call__).parameters["brightness"]),
    "docstring": AutoLoRAPipeline.__call__.__doc__,
    "png": parameters({"prompt": "a", "negative_prompt": "", "seed": 0, "model": "m", "loras": [], "lora_scales": [],
                       **told(dataclasses.replace(DrawingConfig(), brightness=0.7, scheduler="ddim")),
                       "size": (8, 8), "guidance": AutoLoRA()}),
}))
"""


def test_a_new_setting_is_one_field(tmp_path: Path):
    """Written into a copy of the library, it is in --help, config.json, the manifest, pipe() and the PNG's line."""
    shutil.copytree(ROOT / "autolora_jax", tmp_path / "autolora_jax", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "autolora_jax" / "settings" / "pictures.py"
    before = file.read_text(encoding="utf-8")
    assert before.count("\n    base_text: str") == 1
    file.write_text(before.replace("\n    base_text: str", FIELD), encoding="utf-8")
    ran = subprocess.run([sys.executable, "-c", LOOKED_FOR], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert re.search(r"--brightness .*How light it is. \[default 0.5\]", found["help"])
    assert (found["config.json"], found["manifest"]) == (0.7, "double")
    assert found["pipe()"] == "brightness: float = 0.5"
    assert "brightness = 0.5: How light it is." in found["docstring"]
    assert "Brightness: 0.7" in found["png"]


def test_the_call_is_explained_and_typed_by_its_settings():
    call = inspect.signature(AutoLoRAPipeline.__call__).parameters
    assert list(call)[1:] == list(inspect.signature(Call).parameters)
    assert (call["num_inference_steps"].default, call["base_text"].default) == (None, "base")
    for field in settings_of(Call):
        assert f"\n{field.name}" in str(AutoLoRAPipeline.__call__.__doc__), field.name
    with pytest.raises(TypeError, match="did you mean guidance_rescale"):
        AutoLoRAPipeline.__call__(None, "a", guidance_rescal=0.5)


def is_named(name: str, text: str) -> bool:
    """As it is; or a solver by its name and, apart, by the end that says how its sigmas are spaced."""
    base, _, end = name.rpartition("_")
    words = [base, f"_{end}"] if end in RESPACED else [name]
    return all(re.search(rf"(?<!\w){re.escape(word)}\b", text) for word in words)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_every_setting_says_what_it_does(program: type):
    flags = list(flags_of(program))
    assert len({flag.parameter for flag in flags}) == len(flags)
    for flag in flags:
        said = flag.field.said
        assert said.help and said.help.strip() == said.help, flag.name
        assert all(is_named(name, said.help) for name in said.names()), flag.name
    assert program.__doc__


def generate(**given: Any) -> GenerateConfig:
    return build(Generate, given).settings


def test_what_is_given_is_never_overridden():
    """The built-in model's own run changes what nobody said, and nothing else."""
    usual = generate()
    assert (usual.seeds, usual.compare, usual.model.dtype, usual.rule()) == ((0, 1), True, "float32", AutoLoRA())
    given = {"settings.prompts": ["X"], "settings.seeds": "0", "settings.compare": False}
    own = generate(**given, **{"settings.model.dtype": "bfloat16"})
    assert (own.prompts, own.seeds, own.compare, own.model.dtype) == (("X",), (0,), False, "bfloat16")
    assert own.loras == usual.loras == (Lora("builtin:character"),)
    assert generate(**{"settings.guidance.gamma": 1.2}).guidance == AutoLoRA(1.2)
    with pytest.raises(ConfigError, match=r"guidance\.w is not a setting of AutoLoRA: it is one of cfg, autoguidance"):
        generate(**{"settings.guidance.w": 3.0})
    assert generate(**{"settings.guidance.w": 3.0, "settings.guidance": "cfg"}).guidance == CFG(3.0)
    config = build(Train, {"settings.data": "d", "settings.model.dtype": "bfloat16"}).settings
    assert (config.model.source, config.model.dtype) == ("builtin", "bfloat16")


def test_a_spacing_is_not_dropped_where_it_means_nothing():
    flow = Canvas(8, 2, 128, 16, 7.0, SchedulerConfig(solver="flow_euler", prediction_type="flow_prediction"))
    assert flow.resolved(DrawingConfig(), tuned=False).timestep_spacing is None
    with pytest.raises(ValueError, match="timestep_spacing 'trailing' means nothing to a flow model"):
        flow.schedule(flow.resolved(DrawingConfig(timestep_spacing="trailing"), tuned=False))


def test_one_picture_of_the_builtin_model_is_one(tmp_path: Path):
    given = ["--prompt", "X", "--seeds", "0", "--no-compare", "--steps", 1, "--size", "32x32", "--gamma", 1.2]
    result = autolora("generate", *given, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "1 pictures in" in result.stdout and "No model given" in result.stderr
    assert len(list((tmp_path / "out").glob("*.png"))) == 1


# ---- what version 0.1 wrote ------------------------------------------------------------------------------------------


def test_an_older_config_is_read():
    config = load_preset(OLD / "config.json", GenerateConfig)
    assert config == GenerateConfig(
        model=ModelConfig("builtin"),
        loras=(Lora("builtin:character", 0.8),),
        guidance=AutoLoRA(1.2, None, 3.0, stop=0.5),
        num_inference_steps=2,
        scheduler="ddim",
        timestep_spacing="trailing",
        guidance_rescale=0.2,
        noise="torch",
        size=(32, 48),
        clip_skip=1,
        base_text="lora",
        prompts=("X",),
        seeds=(0, 3, 4),
        out="old",
    )


def test_an_older_jobs_pictures_are_known():
    """The keys that version 0.1 gave the pictures of a job are still theirs, so none is drawn again."""
    job = override(load_preset(OLD / "job.py", Job), {"settings.sampler.scheduler": "ddim"})
    rows = [json.loads(line) for line in (OLD / "manifest.jsonl").read_text().splitlines()]
    plan = make_plan(job, Sources())
    assert [key.decode() for key in plan.keys] == [row["key"] for row in rows]
    new = plan.row(7).recipe.columns
    later = {
        "prompt_syntax": "plain",
        "prompt_chunks": 1,
        "vae_dtype": None,
        "int8": None,
        "strength": None,
        "eta": None,
        **dict.fromkeys(["lora_roles", "lora_strengths", "lora_blocks"]),
        **dict.fromkeys([SKIP, *SKIPPING]),
        **NEUTRAL,
    }  # columns that version 0.1 did not have
    assert {**later, **{name: rows[7][name] for name in new if name in rows[7]}} == new


def test_what_is_no_longer_read_says_what_to_write():
    with pytest.raises(ConfigError, match=r"line 4: .*SamplerConfig.*instead .* write num_inference_steps=28"):
        load_preset(OLD / "sampler_job.py", Job)


def test_the_words_of_a_program_ask_for_the_same_again():
    given = {"experiments": ["table1"], "seeds": "4", "at": "0.4,1", "lora": ["a=b c"], "vendi": True, "api_key": "x"}
    asked = build(Reproduce, given)
    assert told(asked) == "--seeds 4 --at 0.4,1 --lora 'a=b c' --vendi"
    assert told(asked, without=("at", "vendi")) == "--seeds 4 --lora 'a=b c'"


def test_a_rule_is_a_class_and_a_row():
    """Its numbers are flags that say whose they are."""
    helps = {flag.name: flag.field.said.help for flag in flags_of(Generate)}
    for name, kind in RULES.items():
        for field in settings_of(kind):
            assert name in (text := helps[f"settings.guidance.{field.name}"]) or not text.startswith("("), field


JOBS = Path(__file__).parents[1] / "configs"


def test_a_job_may_be_yaml_or_json(tmp_path: Path):
    python = load_preset(JOBS / "builtin_batch.py", Job)
    assert load_preset(JOBS / "builtin_batch.yaml", Job) == python
    table = yaml.safe_load((JOBS / "builtin_batch.yaml").read_text())
    (tmp_path / "job.json").write_text(json.dumps(table))
    assert load_preset(tmp_path / "job.json", Job) == python
    table |= {
        "prompts": [{"text": "a zib", "seeds": "3-4"}, "a cat"],
        "grid": [{"lora_scale": [0.4, 1]}, {"noise": ["torch"]}],
    }
    (tmp_path / "job.yml").write_text(yaml.safe_dump(table))
    job = load_preset(tmp_path / "job.yml", Job)
    assert job.prompts == (Prompt("a zib", seeds="3-4"), "a cat") and len(job.all_settings()) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompts: [a", "not valid YAML"),
        ("- a", "should hold a YAML object, not a list"),
        ("prompt: [a]", "did you mean prompts"),
        ("prompts: [{words: a}]", "should be a text, or a table of text, negative, seeds, id"),
        ("grid: [1]", "should be a table, name: list of values"),
        ("grid: {lora_scale: 1}", "should be a list of one or more values"),
        ("settings: {num_inference_steps: many}", "num_inference_steps = 'many'"),
        ("prompts: [a]\nseeds: x", "seeds"),
    ],
)
def test_what_is_wrong_in_a_yaml_job_is_said_with_its_file(text: str, said: str, tmp_path: Path):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s)job\.yaml.*{said}"):
        load_preset(tmp_path / "job.yaml", Job)


def test_what_a_rule_is_told_stands_together_in_help():
    numbers = [flag for flag in flags_of(Generate) if flag.name.startswith("settings.guidance.")]
    assert len(numbers) == 14 and {flag.field.said.panel for flag in numbers} == {"Guidance"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("generate --guidance ", [*RULES]),
        ("generate --dtype b", ["bfloat16"]),
        ("generate --scheduler euler_", [name for name in SOLVERS if name.startswith("euler_")]),
        ("generate --lora ", []),  # files: the shell's matter
        ("reproduce ta", ["table1", "table2"]),
        ("judge out --question p", ["pc", "pc-sa"]),
        ("resize a --dialect ", ["kohya", "peft"]),
        ("evaluate out --metrics ", ["diversity", "vendi", "conditional-vendi", "clipscore", "pickscore"]),
    ],
)
def test_a_shell_completes_values(typed: str, offered: list[str], monkeypatch: pytest.MonkeyPatch):
    line = f"autolora {typed}"
    monkeypatch.setenv("_AUTOLORA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - (not line.endswith(" "))))
    result = CliRunner().invoke(app, [], prog_name="autolora")
    assert result.stdout.split() == offered
