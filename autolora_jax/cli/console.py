"""What all commands share: the console on stderr, and errors as one red line instead of a traceback."""

import signal
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from autolora_jax.display import say

debugging = False  # --debug: errors are shown with their traceback


def show(title: str, rows: Iterable[tuple[str, str]], red: tuple[str, ...] = ()) -> None:
    """Prints a title and a table of what there is to say about it, wrapped to the terminal, to stdout.

    A heading that repeats is printed once. red: what headings of bad news have in them.
    """
    table = Table.grid(padding=(0, 1, 0, 0))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    before = ""
    for heading, text in rows:
        bad = any(words in heading for words in red)
        table.add_row(Text("" if heading == before else f"  {heading}", "red" if bad else ""), Text(text))
        before = heading
    out = Console()
    out.print(Text(title, "bold"), soft_wrap=True)
    out.print(table)


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as it does before a spot machine goes: like Ctrl-C, with the exit code that shells give it."""


EXIT_CODES: dict[type, int] = {KeyboardInterrupt: 130, Terminated: 143}


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM raises Terminated inside, so that what is done can be saved."""

    def stop(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def reported(exit_code: int = 1) -> Iterator[None]:
    """Failures that a user can do something about end the program with one line: bad files, settings, disks, memory."""
    try:
        with _warnings_as_lines():
            yield
    except (ValueError, OSError, MemoryError, RuntimeError, KeyboardInterrupt) as e:
        if debugging or not (problem := _problem(e)):
            raise
        say(". ".join([problem.rstrip("."), *getattr(e, "__notes__", [])]), "red")
        raise typer.Exit(EXIT_CODES.get(type(e), getattr(e, "EXIT_CODE", exit_code))) from None


def _problem(e: BaseException) -> str:
    """What to tell the user; nothing for what is likely our own mistake, which needs its traceback."""
    if isinstance(e, KeyboardInterrupt):
        return "Stopped."
    if isinstance(e, MemoryError) or (isinstance(e, RuntimeError) and "RESOURCE_EXHAUSTED" in str(e)):
        return "Error: out of memory. Use a smaller --batch-size or smaller pictures, or --dtype bfloat16."
    if isinstance(e, OSError) and e.strerror:
        return f"Error: {e.strerror}: {e.filename}" if e.filename else f"Error: {e.strerror}"
    ours = type(e).__module__.startswith("autolora_jax.")
    return "" if isinstance(e, RuntimeError) and not ours else f"Error: {e}"


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        say(f"Warning: {message}", "yellow")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
    sys.stdout.flush()
