"""The progress bars: a row per stage, on stderr or in a notebook. Where stderr is a file or a pipe, lines now and then.

They are drawn by the host of what it knows anyway: no program has a callback for them.
"""

import html
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

if TYPE_CHECKING:
    from autolora_jax.progress import OnProgress
    from autolora_jax.progress import Progress as Told
else:
    OnProgress = Told = Any  # numpy, which their home imports, is not for `autolora --help` to wait for

LINE_EVERY = 30.0  # seconds
SHOW_EVERY = 0.2  # seconds, in a notebook

console = Console(stderr=True)


def say(text: str, style: str = "") -> None:
    """Prints a line to stderr: unwrapped, and with nothing in it taken for markup."""
    console.print(Text(text, style), soft_wrap=True)


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
        self._page = Page() if console.is_jupyter else None
        self.column = ""  # which of several comparisons is being drawn

    def __enter__(self) -> "Display":
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._progress.stop()

    def update(self, row: str, done: int, total: int | None, what: str = "") -> None:
        """Shows that `done` of `total` are done in a row; it never steps back. total=None: unknown."""
        if self._page:
            return self._page.update(row, done, total, what)
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

    def __call__(self, progress: Told) -> None:
        """The pipeline's on_progress."""
        compiling, drawing = f"Compile {self.column}".strip(), f"Draw {self.column}".strip()
        if progress.stage in ("compile", "load"):
            self.update(progress.stage.capitalize(), progress.done, progress.total, progress.what)
        elif progress.stage == "encode" and drawing not in self._rows:
            self.update(compiling, 0, None, "minutes at full size, unless it is kept from before")
        elif progress.stage == "sample":
            self.update(compiling, 1, 1)
            self.update(drawing, progress.done, progress.total, "steps")


class Page:
    """The rows in a notebook, a part of its page that changes."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[float, float, str]] = {}  # row -> (when it began, share that is done, HTML)
        self._handle: Any = None
        self._shown = -math.inf

    def update(self, row: str, done: int, total: int | None, what: str) -> None:
        """See Display.update."""
        now, share = time.monotonic(), 1.0 if total == 0 else done / total if total else 0.0
        began, before, _ = self._rows.get(row, (now, 0.0, ""))
        if share < before:
            return
        bar = "" if total is None else f'value="{done}" max="{total}"'
        count = "" if total is None else f"{done}/{total} "
        cells = [
            row,
            f'<progress {bar} style="width:14em"></progress>',
            f"{count}{html.escape(what)}",
            _clock(now - began),
        ]
        line = "".join(f'<td style="text-align:left">{cell}</td>' for cell in cells)
        self._rows[row] = began, share, f"<tr>{line}</tr>"
        if share == 1.0 or now >= self._shown + SHOW_EVERY:
            self._shown = now
            self._show(f"<table>{''.join(row for *_, row in self._rows.values())}</table>")

    def _show(self, table: str) -> None:
        from IPython.display import HTML, display

        if self._handle is None:
            self._handle = display(HTML(table), display_id=True)
        else:
            self._handle.update(HTML(table))


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


@contextmanager
def shown(wanted: bool | None, told_to: OnProgress | None) -> Iterator[OnProgress | None]:
    """What a call tells its progress: whom it was given, and the bars.

    wanted: whether there are bars; None: where nobody else is told, on a terminal or in a notebook.
    """
    looked_at = told_to is None and (console.is_terminal or console.is_jupyter)
    if not (looked_at if wanted is None else wanted):
        yield told_to
        return
    with Display() as display:

        def both(progress: Told) -> None:
            display(progress)
            if told_to:
                told_to(progress)

        yield both
