"""What the recipe says while it works: a line every so many steps, with the mean of what came in between."""

import time
from collections import defaultdict

from autolora_jax.training.loop import Report

EVERY = 50


class Console:
    """Prints a line of means every EVERY steps."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.sums: defaultdict[str, float] = defaultdict(float)
        self.count = 0
        self.began = time.monotonic()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, report: Report) -> None:
        """Adds a step's metrics."""
        self.count += 1
        for name, value in report.metrics.items():
            self.sums[name] += value
        if report.step % EVERY == 0 or report.step == report.steps:
            means = " ".join(f"{name} {value / self.count:.4f}" for name, value in self.sums.items())
            speed = self.count / (time.monotonic() - self.began)
            print(f"{self.what} {report.step}/{report.steps} {means} ({speed:.2f} steps/s)", flush=True)
            self.sums.clear()
            self.count, self.began = 0, time.monotonic()
