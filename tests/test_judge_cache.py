"""Verdicts on disk: found again, by the right key alone, whatever happens to the file and whoever else writes it."""

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autolora_jax.evaluation.judge import Usage, Verdict, VerdictCache, Version
from autolora_jax.evaluation.judge.cache import Key
from autolora_jax.evaluation.judge.locks import Locks

KEY = Key("ab" * 32, "cd" * 32, "png, at most 1024 pixels a side", "tiny")
VERSION = Version("tiny", "example/tiny, server 1", "tiny-0711", "fp_1", "json_schema")
ANSWER = {"score": 4, "reason": ["ü", "\ud83d"]}  # a lone surrogate: JSON, but no text
VERDICT = Verdict("scored", VERSION, ANSWER, {"CPS": 4.0}, texts=("Hm.",), usage=Usage(100, 10, 0.5, 2))
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "verdicts.jsonl"


def number(i: int) -> Key:
    return replace(KEY, picture=f"{i:064x}")


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
    assert f'"outcome": "{outcome}"' in path.read_text()  # the record is there all the same


@pytest.mark.parametrize("left", [1, 40, -30, -2])
def test_a_line_that_was_cut_short_is_mended(left: int, path: Path):
    with VerdictCache(path) as cache:
        for i in range(3):
            cache.add(number(i), VERDICT)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[2][:left]]))
    with VerdictCache(path) as cache:
        assert [cache.find(number(i), "") is not None for i in range(3)] == [True, True, False]
        cache.add(number(2), VERDICT)
        assert cache.find(number(2), "") == VERDICT and cache.broken == 0
    assert all(json.loads(line) for line in path.read_bytes().splitlines()) and path.read_bytes().endswith(b"\n")


def test_a_line_that_lacks_nothing_but_its_end_is_kept(path: Path):
    with VerdictCache(path) as cache:
        cache.add(KEY, VERDICT)
    path.write_bytes(path.read_bytes()[:-1])
    with VerdictCache(path) as cache:
        assert cache.find(KEY, "") == VERDICT
        cache.add(number(1), VERDICT)
    with VerdictCache(path) as cache:
        assert len(cache) == 2 and cache.broken == 0


@pytest.mark.parametrize(
    "damage", [b"\0\0\0\n", b'{"key": "ab"}\n', b'{"key": "zz", "verdict": {}}\n', b"\xff\xfe\n", b"[]\n"]
)
def test_damage_costs_no_more_than_its_line(damage: bytes, path: Path):
    with VerdictCache(path) as cache:
        cache.add(number(0), VERDICT)
    path.write_bytes(path.read_bytes() + damage)
    with VerdictCache(path) as cache:
        assert cache.broken == 1
        cache.add(number(1), VERDICT)
        assert cache.find(number(0), "") and cache.find(number(1), "")


@pytest.mark.parametrize("content", [b"picture,score\n1,2", b"\x89PNG", b"{}", b'{"keys": 1}\n'])
def test_another_file_is_left_alone(content: bytes, tmp_path: Path):
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no cache of verdicts"):
        VerdictCache(path)
    assert path.read_bytes() == content


def test_a_full_disk_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch):
    with VerdictCache(path) as cache:
        cache.add(number(0), VERDICT)
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, content: write(file, content[:50]))
        with pytest.raises(OSError, match="no space is left"):
            cache.add(number(1), VERDICT)
        monkeypatch.undo()
        cache.add(number(2), VERDICT)
    assert len(path.read_bytes().splitlines()) == 2
    with VerdictCache(path) as cache:
        assert len(cache) == 2 and cache.broken == 0


def test_nothing_is_written_to_a_closed_one(path: Path):
    cache = VerdictCache(path)
    cache.close()
    cache.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        cache.add(KEY, VERDICT)
    assert path.read_bytes() == b""


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
    keys = [json.loads(line)["key"] for line in path.read_bytes().splitlines()]
    assert len(keys) == len({*keys}) == 300


def test_a_killed_writer_leaves_what_it_wrote_and_no_lock(path: Path):
    process = writer(path, 0, 1_000_000)
    process.stdout.readline()
    while not path.exists() or path.stat().st_size < 50_000:
        time.sleep(0.01)
    process.kill()
    process.wait()
    written = path.read_bytes().count(b"\n")
    with VerdictCache(path) as cache:
        assert len(cache) == written > 50 and cache.broken == 0
        for i in range(written - 2, written + 2):
            with cache.claim(number(i), no_waiting):
                cache.add(number(i), VERDICT)


def no_waiting(seconds: float) -> None:
    raise AssertionError("somebody holds it")


HOLDER = """
import sys
from pathlib import Path
from autolora_jax.evaluation.judge.locks import Locks
locks = Locks(Path(sys.argv[1]))
with locks.hold(3, lambda seconds: sys.exit("3 is held")):
    with locks.hold(2, lambda seconds: sys.exit("2 is held")):
        pass
"""


def test_locks_are_by_number(tmp_path: Path):
    locks = Locks(tmp_path / "lock")
    with locks.hold(1, no_waiting), locks.hold(2, no_waiting):
        with pytest.raises(AssertionError, match="somebody holds it"), locks.hold(1, no_waiting):
            pass
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "lock")]
        assert subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stderr == "2 is held\n"
    with locks.hold(1, no_waiting), locks.hold(2, no_waiting):
        pass
    locks.close()
