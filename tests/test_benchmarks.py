"""The benchmarks run: each in its tiny form, as a program."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpus, trace


def test_tracing_is_timed_for_both_families(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    monkeypatch.setattr("sys.argv", ["trace", "--tiny", "--json", str(tmp_path / "rows.json")])
    trace.main()
    assert [row.split(" | ")[0] for row in capsys.readouterr().out.splitlines()[2:]] == ["| sdxl", "| sd3-medium"]
    assert (tmp_path / "rows.json").stat().st_size > 50


# What needs no flags of its own runs in one process: their imports take longer than they do.
TOGETHER = {
    "batch_overhead": "| prompts | seconds | programs | idle |",
    "cheaper": "| AutoLoRA, base every 2 | 10 |",
    "checkpoint_loading": "| folder: load |",
    "lora_loading": "dora: 9 modules",
    "precision": "| the default on a TPU |",
    "step": "| AutoLoRA step, ours |",
    "verify": "| shards | 200 |",
    "soak": "all verified",
}
ALONE = {  # some read what the compiler writes, which it is told before it is loaded
    "gpu_compile": "| tiny | decoder 64² | h100 | 1 |",
    "tpu_blocks": "| tiny |",
    "tpu_compile": "| AutoLoRA step | v5e:2x2 |",
    "tpu_train_compile": "| distillation step | v5e:2x2 |",
    "splash_tiles": "| 512 |",
}
IN_TURN = """
import runpy, sys, traceback
names = sys.argv[1:]
for name in names:
    sys.argv = [name, "--tiny"]
    print("==", name)
    try:
        runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    except BaseException:
        traceback.print_exc(file=sys.stdout)
    else:
        print("-- ended")
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def together() -> dict[str, str]:
    """Name -> what it printed, or its traceback."""
    done = run("-c", IN_TURN, *TOGETHER)
    assert done.returncode == 0, done.stderr
    _, *parts = re.split(r"^== (\w+)\n", done.stdout, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("name", TOGETHER)
def test_tiny(together: dict[str, str], name: str):
    assert TOGETHER[name] in together[name] and together[name].endswith("-- ended\n"), together[name]


@pytest.mark.parametrize("name", ALONE)
def test_tiny_for_another_chip(name: str):
    if name == "gpu_compile" and (said := gpus.missing()):
        pytest.skip(said)
    asks_tpus = name != "gpu_compile"  # of whose compiler some of the suite's flags are not known
    flags = "--xla_backend_optimization_level=0" if asks_tpus else os.environ.get("XLA_FLAGS", "")
    done = run("-m", f"benchmarks.{name}", "--tiny", ALLOW_MULTIPLE_LIBTPU_LOAD="1", XLA_FLAGS=flags)
    assert done.returncode == 0, done.stderr
    assert ALONE[name] in done.stdout
