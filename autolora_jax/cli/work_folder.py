"""The folder that a training run works in, beside its checkpoints and latents: config.json, log.jsonl, samples."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from autolora_jax import files
from autolora_jax.grid import comparison_grid
from autolora_jax.pictures import read_settings, save_png, write_png
from autolora_jax.training.checkpoints import discard, saved_steps
from autolora_jax.training.lora import CHECKPOINTS

SAMPLE = re.compile(r"step-(\d+)-(\d+)\.png")


class WorkFolder:
    """A training run's files for people."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.samples = path / "samples"
        self._checkpoints = path / CHECKPOINTS
        self._grid = self.samples / "grid.png"
        self._log: TextIO | None = None

    @property
    def finished(self) -> int:
        """Steps of the newest checkpoint; 0 without any."""
        return max(saved_steps(self._checkpoints), default=0)

    def discard(self) -> None:
        """Removes the checkpoints; latents stay, they are the pictures'."""
        discard(self._checkpoints)

    def begin(self, config: Mapping[str, Any], finished: int) -> None:
        """Writes config.json, and drops the log and samples of steps that are not finished: they come again."""
        for step, paths in self._sampled().items():
            for path in paths if step > finished else ():
                path.unlink()
        self._grid.unlink(missing_ok=True)
        files.write(self.path / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        log = self.path / "log.jsonl"
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        files.write(log, "".join(f"{line}\n" for line in lines if 0 < _step(line) <= finished))
        self._log = log.open("a", encoding="utf-8")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a step's line. Only after begin()."""
        assert self._log is not None
        self._log.write(json.dumps({"step": step, **metrics}) + "\n")
        self._log.flush()

    def save_sample(self, step: int, index: int, image: Image.Image, settings: Mapping[str, Any]) -> None:
        """Writes samples/step-000250-0.png."""
        self.samples.mkdir(exist_ok=True)
        save_png(self.samples / f"step-{step:06}-{index}.png", image, settings, overwrite=True)

    def save_grid(self) -> None:
        """Writes samples/grid.png, where there are samples: a column for each step with the prompts of the last one."""
        sampled = self._sampled()
        if not sampled:
            return
        prompts = {step: [read_settings(path)["prompt"] for path in paths] for step, paths in sampled.items()}
        last = prompts[max(prompts)]
        columns = [(f"step {step}", paths) for step, paths in sampled.items() if prompts[step] == last]
        write_png(self._grid, comparison_grid(columns, last), {}, overwrite=True)

    def close(self) -> None:
        """Closes the log."""
        if self._log:
            self._log.close()

    def _sampled(self) -> dict[int, list[Path]]:
        """Step -> its sample pictures, in order."""
        matches = [(SAMPLE.fullmatch(path.name), path) for path in self.samples.glob("step-*.png")]
        steps: dict[int, list[Path]] = {}
        for step, _, path in sorted((int(match[1]), int(match[2]), path) for match, path in matches if match):
            steps.setdefault(step, []).append(path)
        return steps


def _step(line: str) -> int:
    """The step of a line of the log; 0 for one that was cut short."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 0
