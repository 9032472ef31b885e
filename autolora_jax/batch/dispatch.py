"""Which worker of a fleet draws which batch. Knows workers by number, and nothing of how they are reached.

A worker is sent a few batches ahead, so that it never waits, and takes shares whole. What a lost worker was given goes
to others. One of its batches may have been what ended it, so each of them is a suspect, and drawn last and alone.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from autolora_jax.batch.plan import Batch
from autolora_jax.batch.run import ON_DEVICES, ON_THE_WAY

IN_HAND = ON_DEVICES + ON_THE_WAY  # batches that a worker has been sent
ATTEMPTS = 3  # workers that are lost with a batch until it is given up


class Dispatch:
    """What is to be drawn, and by whom.

    given_up: number of a batch -> why the last worker that had it was lost. hopeless: why the last of so many workers
    was lost, without a batch done in between, that the next ones would be, too.
    """

    def __init__(self, workers: int) -> None:
        """workers: how many there will be at once."""
        self.workers = workers
        self.given_up: dict[int, BaseException] = {}
        self.hopeless: BaseException | None = None
        self._shares: deque[deque[Batch]] = deque()
        self._left = 0  # batches that nobody has been sent
        self._own: dict[int, deque[Batch]] = {}  # worker -> what is left of its share
        self._sent: dict[int, dict[int, Batch]] = {}  # worker -> number -> batch
        self._suspects: Counter[int] = Counter()  # number of a batch -> workers lost with it
        self._lost: Counter[bool] = Counter()  # in a row: by an error; otherwise

    def put(self, shares: Iterable[Sequence[Batch]]) -> None:
        """Adds work."""
        for share in shares:
            self._shares.append(deque(share))
            self._left += len(share)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to do, or no use in it."""
        return self.hopeless is not None or not (self._shares or any(self._own.values()) or any(self._sent.values()))

    def sent(self, worker: int) -> list[int]:
        """The numbers of the batches that a worker has."""
        return list(self._sent.get(worker, ()))

    def next(self, worker: int) -> Batch | None:
        """A batch to be sent to a worker now, if there is one."""
        sent, own = self._sent.setdefault(worker, {}), self._own.setdefault(worker, deque())
        # Towards the end less is sent ahead: other workers may have nothing to do.
        if (
            len(sent) >= min(IN_HAND, max(ON_DEVICES, self._left // self.workers))
            or self._suspects.keys() & sent.keys()
        ):
            return None
        if not own:
            if not self._shares or (sent and self._shares[0][0].number in self._suspects):
                return None
            own = self._own[worker] = self._shares.popleft()
        batch = own.popleft()
        sent[batch.number] = batch
        self._left -= 1
        return batch

    def done(self, worker: int, number: int) -> None:
        """A worker's batch is recorded."""
        del self._sent[worker][number]
        self._lost.clear()

    def lose(self, worker: int, why: BaseException, by_error: bool) -> None:
        """A worker is gone, and with it what it had been sent. by_error: one of ours, not with its machine."""
        sent, own = self._sent.pop(worker, {}), self._own.pop(worker, None)
        if own:
            self._shares.appendleft(own)
        if not self._suspects.keys() & sent.keys():
            self._lost[by_error] += 1
            if self._lost[by_error] >= (ATTEMPTS if by_error else ATTEMPTS * self.workers):
                self.hopeless = why
        for number, batch in sent.items():
            self._suspects[number] += 1
            if self._suspects[number] >= ATTEMPTS:
                self.given_up[number] = why
            else:
                self.put([[batch]])
