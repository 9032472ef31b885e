"""Does what the README, the tutorials and examples say, in a process of its own: `python -m tests.tutorials README.md`.

One built-in model stands for every model, on one device, and draws two steps. Commands that need a cluster, a judge or
hours are read by the program, their options checked, and not run; what is no `autolora` has to be valid shell.
"""

import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from autolora_jax import AutoLoRAPipeline
from autolora_jax.demo import builtin
from recipes.builtin.world import character_set, write_folder
from tests.programs import autolora

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# What is large, and what stands for it.
STANDINS = {
    "stabilityai/stable-diffusion-xl-base-1.0": "builtin",
    "sd_xl_base_1.0.safetensors": "builtin",
    " --variant fp16": "",
    ', variant="fp16"': "",
    "range(16)": "range(2)",
    "rank=16": "rank=2",
    "steps=1000": "steps=1",
}
# What is added to a command, so that it is short: the last of a flag counts.
SHORTER = {
    "generate": "--seeds 0",
    "batch": "--seeds 0-1 --steps 2 --batch-size 1",
    "train": "--steps 1 --rank 2 --sample-every 0",
}
FEWER = {"compare": ("--seeds", "1"), "measure": ("--pictures", "3"), "watch": ("--pictures", "2")}
ELSEWHERE = re.compile(r"gs://|--distributed|--ray|--scores|^judge|^reproduce (?!table1 --dry-run)|clipscore")
OTHERS = re.compile(r"bash|cd|curl|done|export|for|gcloud|git|pip|python|tmux|~/\.local/bin/uv|NAME=")


def main(pages: list[Path]) -> int:
    """Prints what each page takes, and what fails; 1 where something does."""
    pipe, draw = AutoLoRAPipeline.from_pretrained(dtype="float32", progress=False), AutoLoRAPipeline.__call__

    def loaded(*_: Any, **__: Any) -> AutoLoRAPipeline:
        pipe.unload_lora()
        return pipe

    def drawn(pipe: AutoLoRAPipeline, *prompts: Any, **call: Any) -> Any:
        return draw(pipe, *prompts, **{**call, "num_inference_steps": 2, "batch_size": 1})

    failed = 0
    with patch.object(AutoLoRAPipeline, "from_pretrained", loaded), patch.object(AutoLoRAPipeline, "__call__", drawn):
        for page in pages:
            text, began = page.read_text(encoding="utf-8"), time.process_time()
            with tempfile.TemporaryDirectory() as place:
                os.chdir(place)
                try:
                    follow(text, str(page)) if page.suffix == ".md" else run_script(page)
                except Exception:
                    failed += 1
                    print(traceback.format_exc())
                os.chdir("/")
            print(f"{page.name}: {time.process_time() - began:.1f} CPU seconds", flush=True)
    return bool(failed)


def follow(text: str, name: str) -> None:
    """Does what a page says, in this folder, with the files that it speaks of. Raises what fails."""
    for large, small in STANDINS.items():
        text = text.replace(large, small)
    shutil.copy(builtin("builtin:style"), "pixel-art-xl.safetensors")
    write_folder(character_set(2, size=96), Path("photos"))
    Path("prompts.txt").write_text("a cat\n", encoding="utf-8")
    for _, code in BLOCK.findall(text):
        if "def get_config" in code:
            Path("job.py").write_text(code, encoding="utf-8")
    known: dict[str, Any] = {}
    for language, code in BLOCK.findall(text):
        if language == "python":
            exec(compile(code, name, "exec"), known)
        else:
            subprocess.run(["bash", "-n"], input=code, text=True, check=True)
            for line in re.split(r"\n|&&", code.replace("\\\n", " ")):
                run(shlex.split(line, comments=True))


def run_script(script: Path) -> None:
    """Runs an example as it is, but for fewer pictures where it draws many."""
    with patch.object(sys, "argv", [str(script), *FEWER.get(script.stem, ())]):
        runpy.run_path(str(script), run_name="__main__")


def run(words: list[str]) -> None:
    """Runs a command. Raises AssertionError when it fails, or is none that is known."""
    if words[:1] != ["autolora"]:
        assert not words or OTHERS.match(words[0]), f"{words[0]} is not known to this test"
        return
    name, *options = words[1:]
    options += shlex.split(SHORTER.get(name, ""))
    if ELSEWHERE.search(" ".join(words[1:])):
        with patch.object(import_module(f"autolora_jax.cli.{name}"), "run", lambda asked: None):
            result = autolora(name, *options)
    else:
        result = autolora(name, *options)
    assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}\n{result.exception!r}"


if __name__ == "__main__":
    sys.exit(main([Path(name).resolve() for name in sys.argv[1:]]))
