"""What a signal must not break in half."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl-C, and SIGTERM where the program handles it, wait for the end of the block; a second one does not.

    Signals reach Python in its main thread alone: in others this does nothing.
    """
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if came:
            handlers[number](number, frame)
        came.append(number)

    if threading.current_thread() is threading.main_thread():
        for watched in SIGNALS:
            handler = signal.getsignal(watched)
            if callable(handler):  # not the system's default, which Python never sees
                handlers[watched] = handler
                signal.signal(watched, note)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
