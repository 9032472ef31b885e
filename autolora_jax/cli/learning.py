"""What programs that learn share: the folder that a run works in, what it shows meanwhile, how it is gone on with."""

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from autolora_jax import __version__, files
from autolora_jax.display import Display, say
from autolora_jax.grid import comparison_grid
from autolora_jax.output import Output
from autolora_jax.pictures import read_settings, save_png, write_png
from autolora_jax.training import Summary, TrainProgress
from autolora_jax.training.checkpoints import OtherSettings, discard, saved_steps
from autolora_jax.training.distill import Outline
from autolora_jax.training.interruption import uninterrupted
from autolora_jax.training.loop import TrainingError
from autolora_jax.training.lora import CHECKPOINTS, OnSample
from autolora_jax.training.progress import OnTrain

SAMPLE = re.compile(r"step-(\d+)-(\d+)\.png")
LOSS_MEMORY, SPEED_MEMORY = 0.98, 0.9  # of the moving averages: some 50 and 10 steps


class WorkFolder:
    """The folder that a run works in: beside its checkpoints and latents, config.json, log.jsonl and samples."""

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
        """Removes the checkpoints; latents stay, they are the pictures'. Says so where there are any."""
        if self.finished:
            what = f"the checkpoints, log and samples of {self.path} (step {self.finished})"
            say(f"Starting anew: removing {what}", "yellow")
            discard(self._checkpoints)

    def require_own(self, out: Path, overwrite: bool) -> None:
        """Raises FileExistsError for a file that is there and not of this run."""
        if out.exists() and not (overwrite or self.finished):
            raise FileExistsError(
                f"{out} exists, and there are no checkpoints in {self.path} that would make it this run's; choose "
                "another --out, or replace it with --overwrite"
            )

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


class Average:
    """A moving average whose first values are as good as any: weights are those of the values seen."""

    def __init__(self, memory: float) -> None:
        self._memory = memory
        self._sum = self._weight = 0.0

    def add(self, value: float) -> None:
        self._sum = self._memory * self._sum + (1 - self._memory) * value
        self._weight = self._memory * self._weight + (1 - self._memory)

    @property
    def value(self) -> float | None:
        """None before the first."""
        return self._sum / self._weight if self._weight else None


class TrainingDisplay(Display):
    """What a run shows while it works: its stages as rows, loss and speed beside the steps."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._loss, self._seconds = Average(LOSS_MEMORY), Average(SPEED_MEMORY)
        self._last: float | None = None  # when the last step was reported, if the next follows it at once
        self._rows_a_step = 1
        self._shown: tuple[int, int, str] | None = None  # of the row of steps

    def start(self, summary: Summary | Outline) -> None:
        """Before the first step."""
        self._rows_a_step = summary.rows
        if summary.finished < summary.steps:
            self.update("Compile", 0, None, "the first step includes it; minutes at full size")

    def train(self, progress: TrainProgress) -> None:
        """on_progress of train_lora and distill_lora."""
        if progress.stage == "train":
            self.update("Compile", 1, 1)
            self._shown = progress.done, progress.total, self._said(progress)
            self.update("Train", *self._shown)
        elif progress.stage == "sample":
            self._last = None
            self.update("Train", progress.done, progress.total, "drawing samples")
        else:
            self._last = None
            if progress.stage == "save" and self._shown:  # in the place of "drawing samples"
                self.update("Train", *self._shown)
            self.update(progress.stage.capitalize(), progress.done, progress.total)

    def _said(self, progress: TrainProgress) -> str:
        """ "loss 0.0812, rate 9.8e-05, 3.2 pictures/s, 0:12:30 left": speed from the second step on."""
        now = self._clock()
        if self._last is not None:
            self._seconds.add(now - self._last)
        self._last = now
        self._loss.add(progress.metrics["loss"])
        parts = [f"loss {self._loss.value:.4f}", f"rate {progress.metrics['learning_rate']:.1e}"]
        if seconds := self._seconds.value:
            left = round((progress.total - progress.done) * seconds)
            parts += [f"{self._rows_a_step / seconds:.3g} pictures/s", f"{_duration(left)} left"]
        return ", ".join(parts)


def _duration(seconds: int) -> str:
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"


@contextmanager
def learning(work: WorkFolder, steps: int) -> Iterator[TrainingDisplay]:
    """Shows how a run goes; what ends it early gets a note of how to go on. steps: how many `work` should finish."""
    try:
        with (display := TrainingDisplay()):
            yield display
    except (OtherSettings, TrainingError) as e:
        e.add_note(f"--fresh starts anew in {work.path}, --work DIR or another --out elsewhere")
        raise
    except BaseException as e:
        if work.finished:
            e.add_note(f"Step {work.finished} of {steps} is saved: the same command goes on from there")
        raise
    finally:
        work.close()


def begin(
    work: WorkFolder, display: TrainingDisplay, config: Mapping[str, Any], said: str, told: Summary | Outline
) -> None:
    """Before the first step: writes what the run is, and says it."""
    work.begin(config, told.finished)
    say(said)
    if told.finished == told.steps:
        say(f"All {told.steps} steps are done: writing the file again")
    elif told.finished:
        say(f"Resuming at step {told.finished} of {told.steps}")
    display.start(told)


def kept(work: WorkFolder, display: TrainingDisplay, dtype: str) -> tuple[OnTrain, OnSample]:
    """(on_progress, on_sample): shown, and kept in the folder. dtype: of the model, for the samples' settings."""

    def progress(progress: TrainProgress) -> None:
        if progress.stage == "train":
            with uninterrupted():  # each line whole, and none left out
                work.log(progress.done, progress.metrics)
        display.train(progress)

    def sample(step: int, output: Output) -> None:
        for i, (image, settings) in enumerate(zip(output.images, output.settings, strict=True)):
            work.save_sample(step, i, image, {**settings, "dtype": dtype, "autolora-jax": __version__})

    return progress, sample
