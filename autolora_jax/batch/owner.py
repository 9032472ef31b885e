"""Who draws into a place: one run at a time, told by a file there that its owner keeps changing.

    .autolora/owner.json     host, process, since when, a name of its own, and a number that grows every few seconds

A file and no lock of the file system: buckets have none, and those of shared folders are not to be relied on. No clock
is asked for anything but to be shown. A run that finds the file watches it: once the number grows its owner is there,
and the run is refused; if it has not grown for LEASE seconds by the watcher's own counting, the owner is gone, and the
run takes over. On one machine that is known at once, by the process.

It spares work and confusion, and no picture depends on it: two runs that draw into one place all the same, as when a
machine slept while another took over, record the very same rows, and the one that was taken over stops.
"""

import dataclasses
import datetime
import json
import os
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from autolora_jax.batch.storage import STATE, Bucket, Storage, StorageError
from autolora_jax.batch.work import RECORD
from autolora_jax.settings.programs.program import MORE

T = TypeVar("T")
FILE = f"{STATE}/owner.json"
BEAT, LEASE = 5.0, 30.0  # seconds between signs of life; without one until an owner counts as gone
SETTLE, SETTLE_HERE = 1.0, 0.1  # seconds in which what others were writing has come: into a bucket, a folder
LOOK_EVERY, PATIENCE = 0.5, 2.0  # seconds between looks at the file; for a sign of life that is on its way at the end


class OwnedError(RuntimeError):
    """Another run draws into the place. Says which, since when, and how to go on."""

    EXIT_CODE: ClassVar[int] = MORE


@dataclasses.dataclass(frozen=True)
class Owner:
    """A run. machine: what processes can be told by, "" where that is not known. started: when its process was, by the
    machine's counting. beat: how often it has given a sign of life."""

    host: str
    pid: int
    since: str
    machine: str
    started: str
    token: str
    beat: int = 0

    @classmethod
    def new(cls) -> "Owner":
        """This process's."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        pid = os.getpid()
        return cls(socket.gethostname(), pid, now, _machine(), _started(pid) or "", uuid.uuid4().hex)

    @property
    def is_here(self) -> bool | None:
        """Whether its process runs on this machine; None where that can't be known."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"


class Owning:
    """A place that is owned by this run. lost: who has taken it over meanwhile."""

    def __init__(self, storage: Storage, owner: Owner) -> None:
        self.storage, self.owner = storage, owner
        self.lost: Owner | None = None
        self._ended = threading.Event()
        self._beating = threading.Thread(target=self._beat, name="owner", daemon=True)
        self._beating.start()

    def check(self) -> None:
        """Raises OwnedError when the place has been taken over."""
        if self.lost:
            raise OwnedError(
                f"{self.lost} has taken {self.storage.where} over: this run had given no sign of life for {LEASE:.0f} "
                "seconds, like a machine that slept. What was begun is saved"
            )

    def checked(self, items: Iterable[T]) -> Iterator[T]:
        """The items, while the place is this run's."""
        for item in items:
            self.check()
            yield item

    def end(self) -> None:
        """Leaves the place to others."""
        self._ended.set()
        self._beating.join(PATIENCE)  # it may wait for a bucket that is away
        with suppress(StorageError):
            found = owner_of(self.storage)
            if found is not None and found.token == self.owner.token:
                self.storage.remove([FILE])
                if self.storage.read(RECORD) is None:  # of a job that is closed nothing is left
                    self.storage.tidy()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            with suppress(StorageError):  # if it stays away the run itself says so
                found = owner_of(self.storage)
                if found is not None and found.token != self.owner.token:
                    self.lost = found
                    return
                self.owner = dataclasses.replace(self.owner, beat=self.owner.beat + 1)
                _write(self.storage, self.owner)


@contextmanager
def owning(storage: Storage) -> Iterator[Owning]:
    """A place, for this run alone. Raises OwnedError when another one draws into it.

    It takes up to LEASE seconds where another machine's run may be gone.
    """
    owner = Owner.new()
    _await_end(storage)
    with suppress(StorageError):  # who can't write here does no harm, and will say so
        _write(storage, owner)
        time.sleep(SETTLE if isinstance(storage, Bucket) else SETTLE_HERE)
        found = owner_of(storage)
        if found is not None and found.token != owner.token:
            raise OwnedError(_refusal(storage, found))
    owned = Owning(storage, owner)
    try:
        yield owned
    finally:
        owned.end()


def _await_end(storage: Storage) -> None:
    """Returns when nobody owns a place any more. Raises OwnedError once somebody is seen to."""
    first = owner_of(storage)
    if first is not None and first.is_here is None:
        what = f"{first}, drew into {storage.where}: up to {LEASE:.0f} seconds until that is known to be over"
        warnings.warn(what, stacklevel=4)
    waited_from = time.monotonic()
    while (found := owner_of(storage)) is not None and found.is_here is not False:
        if found.is_here or found != first:
            raise OwnedError(_refusal(storage, found))
        if time.monotonic() - waited_from > LEASE:
            return
        time.sleep(LOOK_EVERY)


def _refusal(storage: Storage, owner: Owner) -> str:
    return (
        f"another run draws into {storage.where}: {owner}. Let it end, or stop it, and give the same command again; "
        f"one that was killed is taken over from, at once or after {LEASE:.0f} seconds. Together, runs draw with "
        "--distributed or --ray"
    )


def owner_of(storage: Storage) -> Owner | None:
    """Who owns a place, as far as that can be read."""
    try:
        told: dict[str, Any] = json.loads(storage.read(FILE) or b"null")
        return Owner(**told) if told else None
    except (ValueError, TypeError, RecursionError):
        return None  # nothing of ours


def _write(storage: Storage, owner: Owner) -> None:
    storage.write(FILE, (json.dumps(dataclasses.asdict(owner)) + "\n").encode())


def _machine() -> str:
    """What the numbers of processes belong to: a boot of a machine, and a container in it."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process of this machine was started, in ticks; None for one that has ended."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]
