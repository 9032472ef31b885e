"""`autolora train`: check what can be checked early, load, train, keep what comes by."""

import dataclasses
import json
import re
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from autolora_jax import __version__, files
from autolora_jax.compilation import keep_programs
from autolora_jax.display import Display, say
from autolora_jax.grid import comparison_grid
from autolora_jax.lora import LoraReport
from autolora_jax.pictures import read_settings, save_png, write_png
from autolora_jax.pipeline import AutoLoRAPipeline, Output
from autolora_jax.settings.changes import record
from autolora_jax.settings.programs.train import Train
from autolora_jax.settings.training import TrainingRun
from autolora_jax.training import Summary, TrainProgress, train_lora
from autolora_jax.training.checkpoints import OtherSettings, discard, saved_steps
from autolora_jax.training.dataset import read_folder
from autolora_jax.training.distill import Outline
from autolora_jax.training.header import base_hashes
from autolora_jax.training.interruption import uninterrupted
from autolora_jax.training.loop import TrainingError
from autolora_jax.training.lora import CHECKPOINTS, require_places
from autolora_jax.weights.lora.metadata import listing

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


def run(asked: Train) -> None:
    """Trains what is asked for, or goes on with it, and says what came out."""
    keep_programs(asked.compilation_cache)
    report = train(asked.settings, asked.fresh, asked.overwrite)
    say(f"Draw with it: {usage(asked.settings, report)}", "dim")
    print(f"LoRA in {asked.settings.out}")


def train(run: TrainingRun, fresh: bool, overwrite: bool) -> LoraReport:
    """`run` has a model and pictures.

    Raises DatasetError, ConfigError, WeightsError, TrainingError, OSError; those that come after the first checkpoint
    carry a note that says how to go on.
    """
    work = WorkFolder(run.folder())
    _check(run, work, overwrite)
    if fresh and work.finished:
        say(f"Starting anew: removing the checkpoints, log and samples of {work.path} (step {work.finished})", "yellow")
        work.discard()
    try:
        with (display := TrainingDisplay()):
            return _train(run, work, display)
    except (OtherSettings, TrainingError) as e:
        e.add_note(f"--fresh starts anew in {work.path}, --work DIR or another --out elsewhere")
        raise
    except BaseException as e:
        if work.finished:
            e.add_note(f"Step {work.finished} of {run.training.steps} is saved: the same command goes on from there")
        raise
    finally:
        work.close()


def _check(run: TrainingRun, work: WorkFolder, overwrite: bool) -> None:
    """Raises for what would come to light only after loading a model, or after training."""
    assert run.data is not None
    data, out = Path(run.data), Path(run.out)
    settings = run.training.data
    read_folder(data, caption_extension=settings.caption_extension, default_caption=settings.default_caption)
    if work.path.resolve().is_relative_to(data.resolve()):
        raise ValueError(
            f"the work folder {work.path} lies among the pictures of {data}, which its samples would join; "
            "choose another --out or --work"
        )
    require_places(out, work.path, run.format, run.save_dtype)
    if out.exists() and not (overwrite or work.finished):
        raise FileExistsError(
            f"{out} exists, and there are no checkpoints in {work.path} that would make it this run's; choose another "
            "--out, or replace it with --overwrite"
        )


def _train(run: TrainingRun, work: WorkFolder, display: TrainingDisplay) -> LoraReport:
    model = run.model
    assert model.source is not None and run.data is not None
    pipe = AutoLoRAPipeline.from_pretrained(**dataclasses.asdict(model), on_progress=display)

    def start(summary: Summary) -> None:
        work.begin(record(run), summary.finished)
        say(describe(run, summary))
        if summary.finished == summary.steps:
            say(f"All {summary.steps} steps are done: writing the file again")
        elif summary.finished:
            say(f"Resuming at step {summary.finished} of {summary.steps}")
        display.start(summary)

    def progress(progress: TrainProgress) -> None:
        if progress.stage == "train":
            with uninterrupted():  # each line whole, and none left out
                work.log(progress.done, progress.metrics)
        display.train(progress)

    def sample(step: int, output: Output) -> None:
        for i, (image, settings) in enumerate(zip(output.images, output.settings, strict=True)):
            work.save_sample(step, i, image, {**settings, "dtype": model.dtype, "autolora-jax": __version__})

    report = train_lora(
        pipe,
        run.data,
        run.out,
        run.training,
        work=work.path,
        dialect=run.format,
        save_dtype=run.save_dtype,
        metadata=base_hashes(model.source) | ({"modelspec.trigger_phrase": run.trigger} if run.trigger else {}),
        on_start=start,
        on_progress=progress,
        on_sample=sample,
    )
    work.save_grid()
    return report


def describe(run: TrainingRun, summary: Summary) -> str:
    """A run in a few aligned lines, before its first step."""
    buckets = [f"{count} of {width}x{height}" for (height, width), count in summary.buckets.items()]
    layers = ", ".join(f"{count} in {component}" for component, count in summary.layers.items())
    lora = run.training.lora
    rows = [
        ("pictures", f"{summary.pictures}: {', '.join(sorted(buckets))}"),
        ("captions", f"{summary.captions} distinct"),
        ("layers", f"{layers}; rank {lora.rank}, alpha {lora.alpha or lora.rank:g}"),
        ("parameters", f"{summary.parameters:,}"),
        ("devices", str(summary.devices)),
        ("steps", f"{summary.steps} of {summary.rows} pictures: {summary.steps / summary.steps_per_epoch:.3g} epochs"),
        ("work folder", str(run.folder())),
    ]
    return listing(f"A LoRA of {summary.model}", rows)


def usage(run: TrainingRun, report: LoraReport) -> str:
    """The command that draws with what was trained."""
    files = {
        "--variant": run.model.variant,
        "--tokenizer": run.model.tokenizer,
        "--text-encoders-from": run.model.text_encoders,
        "--lora": run.out,
    }
    flags = [text for flag, value in files.items() if value for text in (flag, value)]
    prompt = next(iter(report.trigger_words), "PROMPT")
    return shlex.join(["autolora", "generate", str(run.model.source), *flags, "--prompt", prompt])
