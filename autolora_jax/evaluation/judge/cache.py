"""Verdicts on disk: a line of JSON each, only ever added, so that nothing is asked twice and nothing is lost.

A line goes to the file in one write that is never mixed with another's; one that was cut short when its writer was
killed is taken away before the next is written. While a verdict is being asked for, its key is locked: threads and
processes that want the same one wait for it.
"""

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from autolora_jax.evaluation.judge.locks import Locks
from autolora_jax.evaluation.judge.verdict import Verdict

WRITING = 0  # the lock's number; keys have the others
START = b'{"key": "'  # of each line
BLOCK = 2**24  # bytes read at once; no line is longer


@dataclass(frozen=True)
class Key:
    """What a verdict is about and by whom: all that is known before asking.

    picture: SHA-256 of its file; question: digest of all that is asked; preparation: how the picture is sent; model:
    the judge's name.
    """

    picture: str
    question: str
    preparation: str
    model: str

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """A file of verdicts, to be closed.

    broken: lines that are no verdict and are passed over.
    Raises OSError when it can't be read or written, ValueError when it is something else.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.broken = 0
        self._mutex = threading.Lock()
        self._places: dict[bytes, list[tuple[str, int, int]]] = {}  # key -> (what was served, offset, length), by age
        self._end = 0  # of what has been read
        self._locks = Locks(path.with_name(path.name + ".lock"))
        self._file: int | None = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        begins = os.pread(self._file, len(START), 0)
        if not START.startswith(begins):
            self.close()
            raise ValueError(f"{path} is no cache of verdicts; give a file that is one, or that does not exist yet")
        with self._locks.hold(WRITING), self._mutex:
            self._read()
            self._mend()

    def __enter__(self) -> "VerdictCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._places)

    def find(self, key: Key, served: str) -> Verdict | None:
        """The newest final verdict on this, from this file as it is now.

        served: what the server offers under the judge's name; verdicts of another are none. What is not known, now or
        then, agrees with everything.
        """
        with self._mutex:
            self._read()
            for theirs, offset, length in reversed(self._places.get(bytes.fromhex(key.digest), [])):
                if not served or not theirs or served == theirs:
                    return Verdict.of_record(json.loads(os.pread(self._open(), length, offset))["verdict"])
        return None

    @contextmanager
    def claim(self, key: Key, pause: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """Nobody else asks for this meanwhile. Look again inside: who was waited for may have found it."""
        with self._locks.hold(1 + int.from_bytes(bytes.fromhex(key.digest)[:7], "big"), pause):
            yield

    def add(self, key: Key, verdict: Verdict) -> None:
        """Keeps a verdict; one that is not final is kept for the record, and not found. Raises OSError."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"key": key.digest, **asdict(key), "at": now, "verdict": verdict.record()}
        line = json.dumps(record).encode() + b"\n"  # ASCII: whatever a judge says, it can be written
        with self._locks.hold(WRITING), self._mutex:
            file = self._open()
            self._read()
            self._mend()
            if os.write(file, line) < len(line):
                os.ftruncate(file, self._end)
                raise OSError(errno.ENOSPC, "no space is left for a verdict", str(self.path))

    def close(self) -> None:
        """Writes through to the disk."""
        with self._mutex:
            if self._file is not None:
                os.fsync(self._file)
                os.close(self._file)
                self._file = None
                self._locks.close()

    def _open(self) -> int:
        if self._file is None:
            raise ValueError(f"{self.path} is closed")
        return self._file

    def _read(self) -> None:
        """Takes in the whole lines that came since. Unbuffered: a tail that was cut short may be another one by now."""
        while whole := (block := os.pread(self._open(), BLOCK, self._end)).rfind(b"\n") + 1:
            for line in block[:whole].splitlines(keepends=True):
                try:
                    key, verdict = _parsed(line)
                except (ValueError, TypeError, KeyError):
                    self.broken += 1
                else:
                    if verdict.final:
                        place = (verdict.version.served, self._end, len(line))
                        self._places.setdefault(key, []).append(place)
                self._end += len(line)

    def _mend(self) -> None:
        """Takes away a last line that was cut short. Whoever writes holds the lock: it is of one who is dead."""
        file = self._open()
        if not (tail := os.pread(file, BLOCK, self._end)):
            return
        try:
            _parsed(tail)
        except (ValueError, TypeError, KeyError):
            os.ftruncate(file, self._end)
        else:  # all but its end
            os.write(file, b"\n")
            self._read()


def _parsed(line: bytes) -> tuple[bytes, Verdict]:
    record = json.loads(line)
    return bytes.fromhex(record["key"]), Verdict.of_record(record["verdict"])
