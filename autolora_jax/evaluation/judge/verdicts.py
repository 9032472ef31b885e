"""What came of asking a judge about a picture, and verdicts on disk, in SQLite: nothing is asked twice or lost.

Verdicts are only ever added. While one is being asked for, its key is claimed: threads and processes that want the
same one wait for it. A claim is a lock on an empty database beside the verdicts, which the system frees when its
holder ends, however it ends.
"""

import errno
import hashlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from autolora_jax import foreign

SCORED = "scored"
REFUSED = "refused"  # the judge, or a filter before it, would not answer: no score, and not 0
MALFORMED = "malformed"  # it answered, but however often it was asked, not in the form that was asked for
UNANSWERED = "unanswered"  # the server gave no answer
UNREADABLE = "unreadable"  # the picture's file can't be decoded

FINAL = frozenset({SCORED, REFUSED})  # not asked again

MARK = int.from_bytes(b"judg", "big")  # in the file's header: it is ours
PATIENCE = 60.0  # seconds that one waits for others to finish writing
FIRST_WAIT, LONGEST_WAIT = 0.001, 0.25  # seconds between looking whether a claim is free
OLD = b'{"key": "'  # how lines of JSON begin, as verdicts were kept before
NO_CACHE = "is no cache of verdicts; give a file that is one, or that does not exist yet"
ERRORS = {
    sqlite3.SQLITE_FULL: errno.ENOSPC,
    sqlite3.SQLITE_READONLY: errno.EROFS,
    sqlite3.SQLITE_CANTOPEN: errno.EACCES,
}


@dataclass(frozen=True)
class Usage:
    """What answers took: tokens as the server counts them, seconds until they were there, how many there were."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    answers: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Version:
    """Which judge answered.

    model: as it was asked for; served: what the server lists under that name, and its own version; reported,
    fingerprint: what the answer itself says; form: how the answer's form was asked for. Empty where nothing is said.
    """

    model: str
    served: str = ""
    reported: str = ""
    fingerprint: str = ""
    form: str = ""


@dataclass(frozen=True)
class Verdict:
    """answer: the JSON object, of a scored picture; why: what happened, of any other; texts: what was said instead."""

    outcome: str
    version: Version
    answer: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    texts: tuple[str, ...] = ()
    usage: Usage = Usage()

    @property
    def final(self) -> bool:
        return self.outcome in FINAL

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Verdict":
        """Raises TypeError or KeyError when it is none."""
        parts = {"version": Version(**record["version"]), "usage": Usage(**record["usage"])}
        return cls(**{**record, **parts, "texts": tuple(record["texts"])})


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
    """A file of verdicts, to be closed. A new one takes in a file of JSON lines: NAME.jsonl or NAME for NAME.sqlite.

    broken: lines of such a file that are no verdict and were passed over.
    Raises OSError when it can't be read or written, ValueError when it is something else.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if _is_old(path):
            new = path.with_name(f"{path.name}.sqlite")
            raise ValueError(f"{path} holds verdicts as an earlier version kept them: give {new}, which takes them in")
        self.path = path
        self.broken = 0
        self._claims = path.with_name(f"{path.name}.claims")
        self._mutex = threading.Lock()
        with self._told():
            self._database = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "VerdictCache":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._run("SELECT count(DISTINCT key) FROM verdicts WHERE final")[0][0]

    def find(self, key: Key, served: str) -> Verdict | None:
        """The newest final verdict on this, from this file as it is now.

        served: what the server offers under the judge's name; verdicts of another are none. What is not known, now or
        then, agrees with everything.
        """
        found = self._run(
            "SELECT record FROM verdicts WHERE key = ? AND final AND (? = '' OR served IN ('', ?)) "
            "ORDER BY number DESC LIMIT 1",
            (key.digest, served, served),
        )
        try:
            return Verdict.of_record(foreign.parse_object(found[0][0])["verdict"]) if found else None
        except (ValueError, TypeError, KeyError):
            self.broken += 1
            return None

    @contextmanager
    def claim(self, key: Key, pause: Callable[[float], None] = time.sleep) -> Iterator[None]:
        """Nobody else asks for this meanwhile. Look again inside: who was waited for may have found it."""
        with self._told():
            self._claims.mkdir(exist_ok=True)
            # One of 256: rarely do two keys meet, and then one waits for the other.
            lock = sqlite3.connect(self._claims / key.digest[:2], timeout=0, isolation_level=None)
        with closing(lock):
            wait = FIRST_WAIT
            while not self._taken(lock):
                pause(wait)
                wait = min(2 * wait, LONGEST_WAIT)
            yield

    def add(self, key: Key, verdict: Verdict) -> None:
        """Keeps a verdict; one that is not final is kept for the record, and not found. Raises OSError."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        record = {"key": key.digest, **asdict(key), "at": now, "verdict": verdict.record()}
        self._keep(key.digest, verdict, json.dumps(record))  # ASCII: whatever a judge says, it can be written

    def close(self) -> None:
        self._database.close()

    def _begin(self) -> None:
        """Makes the table in a new file, and takes in what an older version left beside it: all or nothing."""
        with self._told(), self._database:
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute("BEGIN IMMEDIATE")
            [[mark]] = self._run("PRAGMA application_id")
            [[tables]] = self._run("SELECT count(*) FROM sqlite_master")
            if mark == MARK:
                return
            if mark or tables:
                raise ValueError(f"{self.path} {NO_CACHE}")
            self._run(f"PRAGMA application_id = {MARK}")
            self._run(
                "CREATE TABLE verdicts (number INTEGER PRIMARY KEY, key TEXT, served TEXT, final INTEGER, record TEXT)"
            )
            self._run("CREATE INDEX by_key ON verdicts (key)")
            for old in filter(_is_old, (self.path.with_suffix(".jsonl"), self.path.with_suffix(""))):
                for line in old.read_bytes().splitlines():
                    try:
                        record = foreign.parse_object(line)
                        self._keep(record["key"], Verdict.of_record(record["verdict"]), json.dumps(record))
                    except (ValueError, TypeError, KeyError):
                        self.broken += 1

    def _keep(self, key: str, verdict: Verdict, record: str) -> None:
        values = key, verdict.version.served, verdict.final, record
        self._run("INSERT INTO verdicts (key, served, final, record) VALUES (?, ?, ?, ?)", values)

    def _run(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        with self._mutex, self._told():
            return self._database.execute(statement, values).fetchall()

    def _taken(self, lock: sqlite3.Connection) -> bool:
        with self._told():
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as e:
                if e.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                return False
        return True

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as those that callers expect."""
        try:
            yield
        except sqlite3.OperationalError as e:
            raise OSError(
                ERRORS.get(getattr(e, "sqlite_errorcode", 0) & 0xFF, errno.EIO), str(e), str(self.path)
            ) from None
        except sqlite3.ProgrammingError:
            raise ValueError(f"{self.path} is closed") from None
        except (sqlite3.DatabaseError, UnicodeDecodeError) as e:  # SQLite quotes what it reads
            raise ValueError(f"{self.path} {NO_CACHE} ({e})") from None


def _is_old(path: Path) -> bool:
    """Whether a file is one of JSON lines."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(OLD)) == OLD
