"""The benchmarks run: each in its tiny form, as a program."""

import os
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("batch_overhead", "| prompts | seconds | programs | idle |"),
        ("cheaper", "| AutoLoRA, base every 2 | 10 |"),
        ("gpu_compile", "| tiny | decoder 64² | h100 | 1 |"),
        ("checkpoint_loading", "| folder: load |"),
        ("lora_loading", "dora: 9 modules"),
        ("precision", "| the default on a TPU |"),
        ("step", "| AutoLoRA step, ours |"),
        ("tpu_blocks", "| tiny |"),
        ("tpu_compile", "| AutoLoRA step | v5e:2x2 |"),
        ("tpu_train_compile", "| LoRA training step | v5e:2x2 |"),
        ("splash_tiles", "| 512 |"),
        ("verify", "| shards | 200 |"),
        ("soak", "all verified"),
    ],
)
def test_tiny(name: str, said: str):
    if name == "gpu_compile" and gpus.missing():
        pytest.skip(f"needs JAX's CUDA compiler, which CI does not install: {gpus.INSTALL}")
    asks_tpus = name.startswith(("tpu_", "splash_"))  # of whose compiler some of the suite's flags are not known
    flags = "--xla_backend_optimization_level=0" if asks_tpus else os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--tiny"],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stdout
