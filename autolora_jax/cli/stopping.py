"""Ctrl-C and SIGTERM, answered at once, whatever the program waits for.

Python's own handlers run in the main thread alone, and not while that is inside a compiler or waits for a device. A
thread beside it reads the signals as they come.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from autolora_jax.display import say

GRACE = 1.0  # seconds in which a program that was told twice, or has come to its end, may leave by itself
HEARD = "Stopping: what has begun comes to its end, and what is finished is safe. Once more ends it at once."
_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


@contextmanager
def answered(leave: Callable[[int], object] = os._exit) -> Iterator[None]:
    """Says at once that a signal was heard; a second one ends the program, after GRACE by force.

    Nothing is lost by force: files appear whole or not at all. leave: ends it, with the exit code of shells.
    """
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    ended = threading.Event()

    def listen() -> None:
        heard = 0
        while signals := ours.recv(64):
            for number in signals:
                heard += number in _CODES
                if number in _CODES and heard == 1 and not ended.wait(0.2):  # most stop sooner than that is read
                    say(HEARD, "yellow")
                elif number in _CODES and heard == 2:
                    _leave_later(_CODES[signal.Signals(number)], ended, leave)

    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=listen, name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join()
        ours.close()


def _leave_later(code: int, unless: threading.Event, leave: Callable[[int], object]) -> None:
    """Ends the program after GRACE, unless that has happened."""

    def wait() -> None:
        if not unless.wait(GRACE):
            sys.stdout.flush()
            sys.stderr.flush()
            leave(code)

    threading.Thread(target=wait, name="leaving", daemon=True).start()


def leaving(code: object, leave: Callable[[int], object] = os._exit) -> None:
    """For a program that was stopped and has cleared up: what runs on in its threads, a compiler perhaps, has GRACE."""
    if isinstance(code, int) and code:
        _leave_later(code, threading.Event(), leave)
