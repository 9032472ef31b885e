"""The command as users have it, with a small model: killed, told to stop, started again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.batch_jobs import tree

PICTURES, MORE = 24, 75
JOB = """
from autolora_jax.batch import Job, Settings
from autolora_jax.settings import Lora, ModelConfig

def get_config():
    return Job(
        prompts=("a zib", "a red cat in the snow"),
        seeds=range(4),
        settings=Settings(
            model=ModelConfig({model!r}, dtype="float32"),
            loras=(Lora({lora!r}),),
            num_inference_steps=4,
            size=(32, 32),
        ),
        grid={{"lora_scale": [0.4, 0.7, 1.0]}},
        batch_size=2,
    )
"""


class Machine:
    """Runs the command, each time as a process of its own; programs are compiled once."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.file, self.programs = folder / "job.py", folder / "programs"
        self.file.write_text(JOB.format(model=str(model), lora=str(model / "small:0.5.safetensors")))

    def start(self, out: Path) -> subprocess.Popen[str]:
        program = "from autolora_jax.cli import main; main()"
        arguments = ["batch", self.file, "--out", out, "--compilation-cache", self.programs]
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop(self, out: Path, number: int, after: int) -> tuple[int, str, str]:
        """Sends a signal when so many batches are recorded: (exit status, stdout, stderr)."""
        process = self.start(out)
        while len(list(out.glob(".autolora/parts/*.jsonl"))) < after and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        told, said = process.communicate()
        return process.returncode, told, said

    def finish(self, out: Path) -> tuple[int, str, str]:
        process = self.start(out)
        told, said = process.communicate()
        return process.returncode, told, said


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, small_folder: Path) -> Iterator[Machine]:
    yield Machine(tmp_path_factory.mktemp("machine"), small_folder)


def test_a_killed_and_a_stopped_job_end_as_if_nothing_had_been(machine: Machine, tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, told, said = machine.finish(whole)
    assert (code, told) == (0, f"{PICTURES} pictures drawn into {whole}\n"), said
    assert "devices idle" in said
    code, _, said = machine.stop(broken, signal.SIGKILL, after=2)
    assert code == -signal.SIGKILL, said
    code, told, said = machine.stop(broken, signal.SIGTERM, after=4)
    assert (code, told) == (MORE, ""), said
    assert "the same command goes on from there" in said
    assert (broken / ".autolora" / "plan.json").exists() and not (broken / "manifest.jsonl").exists()
    code, told, said = machine.finish(broken)
    assert code == 0, said
    rows = [json.loads(line) for line in (broken / "manifest.jsonl").read_text().splitlines()]
    assert len(rows) == PICTURES and {row["status"] for row in rows} == {"ok"}
    assert tree(broken) == tree(whole)
    runs = [json.loads(line) for line in (broken / "log.jsonl").read_text().splitlines() if '"run"' in line]
    assert [run["more"] for run in runs] == [True, False]  # the killed one had no last word
