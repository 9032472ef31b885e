"""Workers of fleets that draw without a model, and come to grief as they are told.

python -m tests.fleet_jobs ADDRESS OUT NOTES PACE        # a driver, to be killed
"""

import os
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from autolora_jax.batch.draw import Drawing, Pictures
from autolora_jax.batch.fleet import draw_fleet
from autolora_jax.batch.plan import Batch, Plan, Row
from autolora_jax.batch.run import OnBatch, Summary, run
from autolora_jax.batch.storage import StorageError
from autolora_jax.batch.work import Work
from autolora_jax.batch.worker import Studio
from autolora_jax.cli.console import terminable
from autolora_jax.settings import Job
from tests.batch_jobs import draw, plan_of, small_job


class FakeStudio(Studio):
    """Draws pictures of keys, and notes each batch in a folder as NUMBER-PID."""

    def __init__(
        self,
        notes: Path,
        pace: float = 0.0,
        deadly: tuple[int, ...] = (),
        faulty: tuple[int, ...] = (),
        device_counts: tuple[int, ...] = (),
    ) -> None:
        """pace: seconds a batch. deadly: batches whose drawing kills the process. faulty: that raise StorageError.

        device_counts: of the workers, as they come, instead of 1.
        """
        super().__init__()
        self.notes, self.pace, self.deadly, self.faulty = notes, pace, deadly, faulty
        self.device_counts = device_counts
        notes.mkdir(exist_ok=True)

    def plan(self, job: Job) -> Plan:
        return plan_of(job)

    def devices(self) -> int:
        for i, count in enumerate(self.device_counts):
            with suppress(FileExistsError):
                self.notes.with_name(f"{self.notes.name}.{i}").touch(exist_ok=False)
                return count
        return 1

    def draw(self, work: Work, batches: Iterable[Batch | None], on_batch: OnBatch) -> Summary:
        return run(work, self._draw, batches, on_batch)

    def _draw(self, rows: Sequence[Row], batch: Batch) -> Drawing:
        (self.notes / f"{batch.number}-{os.getpid()}").touch()
        if batch.number in self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if batch.number in self.faulty:
            raise StorageError(f"batch {batch.number} can't be kept")
        failed, wait = draw(rows, batch)

        def later() -> Pictures:
            time.sleep(self.pace)
            return wait()

        return Drawing(failed, later)

    def noted(self) -> list[tuple[int, int]]:
        """(batch, process) of all that was begun."""
        return [tuple(map(int, path.name.split("-"))) for path in self.notes.iterdir()]  # type: ignore[misc]


def main() -> None:
    """A driver: ADDRESS OUT NOTES PACE. Exit codes as of `autolora batch`, as far as they matter here.

    NOTES.PID is there as soon as it has been told of a batch.
    """
    address, out, notes, pace = sys.argv[1:]

    def on_batch(rows: Sequence[Mapping[str, Any]]) -> None:
        Path(f"{notes}.{os.getpid()}").touch()

    with terminable():
        studio = FakeStudio(Path(notes), float(pace))
        summary = draw_fleet(small_job(), out, address=address, workers=2, studio=studio, on_batch=on_batch)
    sys.exit(75 if summary.more else 0)


if __name__ == "__main__":
    main()
