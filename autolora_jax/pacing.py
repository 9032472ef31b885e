"""How far the host is ahead of the devices: far enough that they never wait for it, and no further.

Work is queued in stretches of about STRETCH_SECONDS. The host waits while more than AHEAD of them are queued behind the
one that runs, so what it queues next (the prompts of the next batch, a picture's decoding) runs soon, progress is known
as it happens, and an interruption comes at once and leaves little behind.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import NamedTuple

from autolora_jax.run import Run
from autolora_jax.sampler import STRETCH, State

AHEAD = 2  # stretches
STRETCH_SECONDS = 0.25
POLL_SECONDS = 0.002

OnStretch = Callable[[int, State], None]  # how many steps were done, and where they led


class _Queued(NamedTuple):
    steps: int
    state: State
    since: float
    on_done: OnStretch | None


class Pace:
    """What was queued and is not known to be done, of any number of runs one after the other."""

    def __init__(self) -> None:
        self._queued: deque[_Queued] = deque()
        self._last_done = 0.0
        self._step_seconds = STRETCH_SECONDS  # the first stretch is one step

    def drive(self, run: Run, on_done: OnStretch | None = None) -> Iterator[None]:
        """Queues the steps of a run, a stretch whenever it is asked. At its end the last ones are still to be done.

        on_done: told of each stretch when it is done, in this thread: by this call, the next one or `finish`.
        """
        while run.done < run.total:
            steps = run.advance(max(1, min(STRETCH, int(STRETCH_SECONDS / max(self._step_seconds, 1e-6)))))
            self._queued.append(_Queued(steps, run.state, time.monotonic(), on_done))
            while len(self._queued) > AHEAD:
                self._wait()
            yield

    def finish(self) -> None:
        """Waits for all that is queued."""
        while self._queued:
            self._wait()

    def forget(self) -> None:
        """Tells nobody of what is still queued: its run was given up."""
        self._queued.clear()

    def _wait(self) -> None:
        steps, state, since, on_done = self._queued.popleft()
        while not state.x.is_ready():  # asked, not waited for: Ctrl-C is heard
            time.sleep(POLL_SECONDS)
        now = time.monotonic()
        self._step_seconds = (now - max(since, self._last_done)) / steps
        self._last_done = now
        if on_done:
            on_done(steps, state)
