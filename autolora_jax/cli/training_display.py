"""What a training run shows while it works: its stages as rows, loss and speed beside the steps."""

import time
from collections.abc import Callable

from autolora_jax.cli.progress import Display
from autolora_jax.training.progress import Summary, TrainProgress

LOSS_MEMORY, SPEED_MEMORY = 0.98, 0.9  # of the moving averages: some 50 and 10 steps
ROWS = {"latents": "Latents", "captions": "Captions", "save": "Save"}


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
    """Rows of a training run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._loss, self._seconds = Average(LOSS_MEMORY), Average(SPEED_MEMORY)
        self._last: float | None = None  # when the last step was reported, if the next follows it at once
        self._rows_a_step = 1
        self._shown: tuple[int, int, str] | None = None  # of the row of steps

    def start(self, summary: Summary) -> None:
        """Before the first step."""
        self._rows_a_step = summary.rows
        if summary.finished < summary.steps:
            self.update("Compile", 0, None, "the first step includes it; minutes at full size")

    def train(self, progress: TrainProgress) -> None:
        """train_lora's on_progress."""
        if progress.stage == "train":
            self.update("Compile", 1, 1)
            self._shown = progress.done, progress.total, self._said(progress)
            self.update("Train", *self._shown)
        elif progress.stage == "sample":
            self._last = None
            self.update("Train", progress.done, progress.total, "drawing samples")
        else:
            if progress.stage == "save" and self._shown:  # in the place of "drawing samples"
                self.update("Train", *self._shown)
            self.update(ROWS[progress.stage], progress.done, progress.total)

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
