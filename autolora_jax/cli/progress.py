"""The progress bars: one row per stage, on stderr. Where that is a file or a pipe, lines now and then."""

import math
import time
from collections.abc import Callable
from functools import partial

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from autolora_jax import progress as told
from autolora_jax.cli.console import console, say

LINE_EVERY = 30.0  # seconds


class Display:
    """Rows of progress. Stages appear when they begin; a stage whose end nobody knows is a spinner."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[what]}", style="dim", markup=False, table_column=Column()),  # wraps if need be
            console=console,
        )
        self._rows: dict[str, TaskID] = {}
        self._lines: dict[str, float] = {}  # row -> when its last line was printed; infinity: it is complete
        self.column = ""  # which of several comparisons is being drawn

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._progress.stop()

    def update(self, row: str, done: int, total: int | None, what: str = "") -> None:
        """Shows that `done` of `total` are done in a row; it never steps back. total=None: unknown."""
        if not console.is_terminal:
            return self._print(row, done, total, what)
        if not self._rows:
            self._progress.start()
        if row not in self._rows:
            self._rows[row] = self._progress.add_task(row, total=total, what=what)
        task = self._progress.tasks[self._rows[row]]
        self._progress.update(task.id, completed=max(done, task.completed), total=total, what=what)

    def row(self, name: str) -> Callable[..., None]:
        """`update` of one row."""
        return partial(self.update, name)

    def _print(self, row: str, done: int, total: int | None, what: str) -> None:
        """A line for a row's beginning and end, and every LINE_EVERY seconds."""
        now, last = time.monotonic(), self._lines.get(row, -math.inf)
        if last < math.inf and (done == total or now >= last + LINE_EVERY):
            count = "" if total is None else f" {done}/{total}"
            say(f"{row}{count} {what}".rstrip())
            self._lines[row] = math.inf if done == total else now

    def __call__(self, progress: told.Progress) -> None:
        """The pipeline's on_progress."""
        compiling, drawing = f"Compile {self.column}".strip(), f"Draw {self.column}".strip()
        if progress.stage in ("compile", "load"):
            self.update(progress.stage.capitalize(), progress.done, progress.total, progress.what)
        elif progress.stage == "encode" and drawing not in self._rows:
            self.update(compiling, 0, None, "minutes at full size, unless it is kept from before")
        elif progress.stage == "sample":
            self.update(compiling, 1, 1)
            self.update(drawing, progress.done, progress.total, "steps")
