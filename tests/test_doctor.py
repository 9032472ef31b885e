"""`autolora doctor`: what it finds is here, and each thing that would be slow or fail is said with what to do."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import pytest

from autolora_jax import __version__
from autolora_jax.cli import doctor
from autolora_jax.cli.doctor import Found
from tests.programs import autolora

WELL = Found(
    versions={"jax": "1"},
    extras={"batch": []},
    devices={"NVIDIA H200": 1},
    platform="gpu",
    failure="",
    unused=[],
    device_memory=100.0,
    cores=16,
    memory=128.0,
    available=100.0,
    cache="/programs",
    programs=3,
    programs_size=0.1,
    writable=True,
    hub="/hub",
    disk=64.0,
    token=False,
    offline=False,
    slow_settings=[],
    flags={},
)
CPU = {"platform": "cpu", "devices": {"cpu": 1}, "device_memory": None}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (CPU, "SDXL takes many minutes a picture"),
        (
            {**CPU, "unused": ["cuda"]},
            'an NVIDIA GPU is here, and JAX does not use it: pip install "autolora-jax[cuda]"',
        ),
        (
            {**CPU, "unused": ["tpu"], "flags": {"JAX_PLATFORMS": "cpu"}},
            "a TPU is here, and JAX does not use it: unset JAX_PLATFORMS",
        ),
        ({**CPU, "available": 4.0}, "some 7.0 GB of memory"),
        ({"device_memory": 6.0}, "--batch-size 1, or see docs/guides/memory.md"),
        ({"cache": None}, "compiled programs are not kept"),
        ({"writable": False}, "/programs can't be written"),
        ({"disk": 5.0}, "--cache-dir, or HF_HOME"),
        ({"slow_settings": ["jax_disable_jit"]}, "jax_disable_jit is set (nothing is compiled)"),
        ({"flags": {"XLA_FLAGS": "--xla_backend_optimization_level=0"}}, "not to optimise"),
        ({"failure": "no chip", "devices": {}, "platform": "none"}, "can't start its devices (no chip)"),
        ({"versions": {"jax": None}}, "jax: missing"),
    ],
)
def test_what_would_be_slow_or_fail_is_said(changes: dict[str, Any], said: str):
    assert [*doctor.broken(WELL), *doctor.slow(WELL)] == []
    found = dataclasses.replace(WELL, **changes)
    assert any(said in each for each in [*doctor.broken(found), *doctor.slow(found)])
    assert all(text for _, text in doctor.told(found))


def test_it_tells_of_this_machine(tmp_path: Path):
    with (tmp_path / "jit_advance-1-cache").open("wb") as file:
        file.truncate(200_000_000)
    result = autolora("doctor", "--json", "--compilation-cache", tmp_path)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["versions"]["autolora-jax"] == __version__ and found["versions"]["jax"] == jax.__version__
    assert found["devices"] == {"cpu": 8} and found["platform"] == "cpu" and found["broken"] == []
    assert (found["cache"], found["programs"], found["programs_size"]) == (str(tmp_path), 1, 0.2)
    assert found["memory"] >= found["available"] > 0 and found["disk"] > 0


def test_it_is_for_people_too_and_tells_no_token(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    result = autolora("doctor")
    assert result.exit_code == 0 and "8 × cpu" in result.stdout and "with a token" in result.stdout
    assert "hf_secret" not in result.output


def test_devices_that_do_not_start_are_an_exit_code(monkeypatch: pytest.MonkeyPatch):
    def fail() -> list[jax.Device]:
        raise RuntimeError("Unable to initialize backend 'tpu'\nmore")

    monkeypatch.setattr(jax, "local_devices", fail)
    result = autolora("doctor")
    assert result.exit_code == 1
    assert "Unable to initialize backend 'tpu'" in " ".join(result.stdout.split()) and "more" not in result.stdout


@pytest.fixture(autouse=True)
def cache_as_before():
    before = jax.config.jax_compilation_cache_dir
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_enable_compilation_cache", os.environ.get("AUTOLORA_COMPILATION_CACHE") != "off")
