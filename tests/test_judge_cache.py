"""Verdicts on disk: found again, by the right key alone, whatever happens to the file and whoever else writes it."""

import errno
import json
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from autolora_jax.evaluation.judge import Usage, Verdict, VerdictCache, Version
from autolora_jax.evaluation.judge.verdicts import Key

KEY = Key("ab" * 32, "cd" * 32, "png, at most 1024 pixels a side", "tiny")
VERSION = Version("tiny", "example/tiny, server 1", "tiny-0711", "fp_1", "json_schema")
ANSWER = {"score": 4, "reason": ["ü", "\ud83d"]}  # a lone surrogate: JSON, but no text
VERDICT = Verdict("scored", VERSION, ANSWER, {"CPS": 4.0}, texts=("Hm.",), usage=Usage(100, 10, 0.5, 2))
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "verdicts.sqlite"


def number(i: int) -> Key:
    return replace(KEY, picture=f"{i:064x}")


def records(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        return [json.loads(record) for (record,) in database.execute("SELECT record FROM verdicts ORDER BY number")]


def old_line(i: int) -> str:
    """A verdict as it was kept before, in a line."""
    key = number(i)
    return json.dumps({"key": key.digest, **asdict(key), "at": "2026-11-01", "verdict": VERDICT.record()}) + "\n"


def test_a_verdict_comes_back_whole(path: Path):
    with VerdictCache(path) as cache:
        assert cache.find(KEY, "") is None
        cache.add(KEY, VERDICT)
        assert cache.find(KEY, "") == VERDICT
    with VerdictCache(path) as cache:
        assert cache.find(KEY, "") == VERDICT and len(cache) == 1 and cache.broken == 0


@pytest.mark.parametrize("field", ["picture", "question", "preparation", "model"])
def test_all_that_it_depends_on_is_in_the_key(field: str, path: Path):
    with VerdictCache(path) as cache:
        cache.add(KEY, VERDICT)
        assert cache.find(replace(KEY, **{field: "00" * 32}), "") is None


def test_verdicts_of_another_version_are_none(path: Path):
    """What is not known of either agrees with everything: a server need not be up to look at what is there."""
    other = replace(VERDICT, version=replace(VERSION, served="example/tiny, server 2"), scores={"CPS": 1.0})
    with VerdictCache(path) as cache:
        cache.add(KEY, VERDICT)
        assert cache.find(KEY, other.version.served) is None
        cache.add(KEY, other)
        assert cache.find(KEY, VERSION.served) == VERDICT
        assert cache.find(KEY, other.version.served) == other
        assert cache.find(KEY, "") == other  # the newest
        unknown = replace(VERDICT, version=replace(VERSION, served=""), scores={"CPS": 2.0})
        cache.add(KEY, unknown)
        assert cache.find(KEY, "example/tiny, server 3") == unknown


@pytest.mark.parametrize(("outcome", "found"), [("refused", True), ("malformed", False), ("unanswered", False)])
def test_only_what_is_final_is_found(outcome: str, found: bool, path: Path):
    with VerdictCache(path) as cache:
        cache.add(KEY, Verdict(outcome, VERSION, why="so"))
        assert (cache.find(KEY, "") is not None) == found
    assert [record["verdict"]["outcome"] for record in records(path)] == [outcome]  # it is there all the same


@pytest.mark.parametrize(("old", "new"), [("verdicts.jsonl", "verdicts.sqlite"), ("kept", "kept.sqlite")])
def test_verdicts_of_an_older_version_are_taken_in(old: str, new: str, tmp_path: Path):
    """All but broken lines, once, and the old file stays as it is. The way is told to who gives the old file."""
    broken = ["\0\0\0", '{"key": "ab"}', '{"key": "zz", "verdict": {}}', "[]", old_line(3)[:-40]]
    content = "".join([old_line(0), old_line(1), *(f"{line}\n" for line in broken), old_line(2)])
    (tmp_path / old).write_text(content)
    with pytest.raises(
        ValueError, match=rf"as an earlier version kept them: give .*{old}\.sqlite, which takes them in"
    ):
        VerdictCache(tmp_path / old)
    with VerdictCache(tmp_path / new) as cache:
        assert len(cache) == 3 and cache.broken == 5
        assert [cache.find(number(i), VERSION.served) for i in range(4)] == [VERDICT] * 3 + [None]
    with VerdictCache(tmp_path / new) as cache:
        assert len(records(tmp_path / new)) == 3 and cache.broken == 0
    assert (tmp_path / old).read_text() == content
    with VerdictCache(tmp_path / f"{old}.sqlite") as cache:  # as the message says
        assert len(cache) == 3


@pytest.mark.parametrize("content", [b"picture,score\n1,2", b"\x89PNG", b"{}", b'{"keys": 1}\n'])
def test_another_file_is_left_alone(content: bytes, tmp_path: Path):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no cache of verdicts"):
        VerdictCache(path)
    assert path.read_bytes() == content


def test_another_database_is_left_alone(tmp_path: Path):
    path = tmp_path / "precious"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE verdicts (key TEXT)")
        database.commit()
    content = path.read_bytes()
    with pytest.raises(ValueError, match="is no cache of verdicts"):
        VerdictCache(path)
    assert path.read_bytes() == content


def test_a_full_disk_loses_nothing(path: Path):
    with VerdictCache(path) as cache:
        cache.add(number(0), VERDICT)
        [[pages]] = cache._run("PRAGMA page_count")
        cache._run(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(OSError, match="full") as caught:
            for i in range(1, 100):
                cache.add(number(i), VERDICT)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
        cache._run(f"PRAGMA max_page_count = {pages + 10}")
        cache.add(number(i), VERDICT)
    assert len(records(path)) == i + 1


def test_nothing_is_written_to_a_closed_one(path: Path):
    cache = VerdictCache(path)
    cache.close()
    cache.close()
    for use in (lambda: cache.add(KEY, VERDICT), lambda: cache.find(KEY, "")):
        with pytest.raises(ValueError, match="is closed"):
            use()
    assert records(path) == []


def test_a_place_that_cannot_be_written_is_an_error_of_the_disk(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="unable to open") as caught:
        VerdictCache(tmp_path / "folder")
    assert caught.value.filename == str(tmp_path / "folder")


WRITER = """
import sys
from pathlib import Path
from tests.test_judge_cache import VERDICT, VerdictCache, number
with VerdictCache(Path(sys.argv[1])) as cache:
    print("open", flush=True)
    for i in range(int(sys.argv[2]), int(sys.argv[3])):
        with cache.claim(number(i)):
            if not cache.find(number(i), ""):
                cache.add(number(i), VERDICT)
"""


def writer(path: Path, first: int, last: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), str(first), str(last)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_two_processes_and_two_threads_write_each_verdict_once(path: Path):
    processes = [writer(path, 0, 300), writer(path, 0, 300)]

    def write(cache: VerdictCache) -> None:
        for i in reversed(range(300)):
            with cache.claim(number(i)):
                if not cache.find(number(i), ""):
                    cache.add(number(i), VERDICT)

    with VerdictCache(path) as cache:
        assert all(process.stdout.readline() == "open\n" for process in processes)
        threads = [threading.Thread(target=write, args=(cache,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [process.wait(60) for process in processes] == [0, 0]
        assert len(cache) == 300 and cache.broken == 0
    keys = [record["key"] for record in records(path)]
    assert len(keys) == len({*keys}) == 300


def test_a_killed_writer_leaves_what_it_wrote_and_no_lock(path: Path):
    process = writer(path, 0, 1_000_000)
    process.stdout.readline()
    while not path.exists() or path.stat().st_size < 100_000:
        time.sleep(0.01)
    process.kill()
    process.wait()
    with VerdictCache(path) as cache:
        written = len(cache)
        assert written == len(records(path)) > 50
        assert [cache.find(number(i), "") for i in (0, written - 1)] == [VERDICT] * 2
        for i in range(written - 2, written + 2):
            with cache.claim(number(i), no_waiting):
                cache.add(number(i), VERDICT)


def no_waiting(seconds: float) -> None:
    raise AssertionError("somebody holds it")


HOLDER = """
import sys
from pathlib import Path
from tests.test_judge_cache import VerdictCache, number
with VerdictCache(Path(sys.argv[1])) as cache:
    for i in map(int, sys.argv[2:]):
        with cache.claim(number(i), lambda seconds: sys.exit(f"{i} is held")):
            print(i, flush=True)
"""


def test_claims_are_by_key_between_threads_and_processes(path: Path):
    with VerdictCache(path) as cache:
        with cache.claim(number(1), no_waiting), cache.claim(number(2), no_waiting):
            with pytest.raises(AssertionError, match="somebody holds it"), cache.claim(number(1), no_waiting):
                pass
            command = [sys.executable, "-c", HOLDER, str(path), "3", "2"]
            held = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            assert (held.stdout, held.stderr) == ("3\n", "2 is held\n")
        with cache.claim(number(1), no_waiting), cache.claim(number(2), no_waiting):
            pass
