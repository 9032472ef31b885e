"""Locks by number, between threads and between processes: each is one byte of a file.

The system frees a process's locks when it ends, however it ends. Two objects of one process must not share a file,
since closing one would free what the other holds.
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

FIRST_WAIT, LONGEST_WAIT = 0.001, 0.25  # seconds between looking whether it is free


class Locks:
    """Raises OSError where the file can't be made or the file system knows no locks."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self._mutex = threading.Lock()
        self._held: set[int] = set()

    @contextmanager
    def hold(self, number: int, pause: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """Waits, with `pause`, while another thread or process holds it. number: 0 … 2^62."""
        wait = FIRST_WAIT
        while not self._taken(number):
            pause(wait)
            wait = min(2 * wait, LONGEST_WAIT)
        try:
            yield
        finally:
            with self._mutex:
                self._held.remove(number)
                fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)

    def _taken(self, number: int) -> bool:
        with self._mutex:
            if number in self._held:
                return False
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except (BlockingIOError, PermissionError):  # EAGAIN, or EACCES as POSIX also allows
                return False
            self._held.add(number)
            return True

    def close(self) -> None:
        """Frees all."""
        os.close(self._file)
