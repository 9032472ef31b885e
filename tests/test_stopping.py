"""Ctrl-C while the main thread is inside a library that looks at no signals, as a compiler is."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from autolora_jax.cli.stopping import HEARD, answered, leaving

WAITING = """
import hashlib, signal, sys
from autolora_jax.cli.console import terminable
from autolora_jax.cli.stopping import answered
signal.signal(signal.SIGINT, signal.default_int_handler)
with answered(), terminable():
    print("begun", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 60_000_000)  # some 20 seconds in C
    print("finished", flush=True)
"""


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_the_first_is_acknowledged_and_the_second_ends_the_program(second: signal.Signals):
    program = subprocess.Popen(
        [sys.executable, "-c", WAITING], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert program.stdout and program.stderr
    assert program.stdout.readline() == "begun\n"
    time.sleep(0.5)  # then it is in there
    program.send_signal(signal.SIGINT)
    while "Stopping" not in (line := program.stderr.readline()):
        assert line, "it ended without a word"
    assert HEARD in line
    program.send_signal(second)
    out, _ = program.communicate(timeout=60)
    assert program.returncode == {signal.SIGINT: 130, signal.SIGTERM: 143}[second] and "finished" not in out


def test_what_stops_by_itself_is_left_to_it():
    left: list[int] = []
    with pytest.raises(KeyboardInterrupt), answered(left.append):
        signal.raise_signal(signal.SIGINT)
        time.sleep(5)
    assert signal.set_wakeup_fd(-1) == -1 and not left
    assert not [thread for thread in threading.enumerate() if thread.name == "signals"]


def test_a_stopped_program_does_not_wait_for_its_threads():
    left: list[int] = []
    leaving(130, left.append)
    leaving(0, left.append)
    leaving("a message", left.append)
    time.sleep(1.5)
    assert left == [130]


def test_the_console_script_ends_while_its_threads_run(tmp_path: Path):
    """As with a compiler at work in a thread that is waited for at exit."""
    code = """
import concurrent.futures, hashlib
from autolora_jax import cli
def run(**_):
    concurrent.futures.ThreadPoolExecutor(1).submit(hashlib.pbkdf2_hmac, "sha256", b"a", b"b", 60_000_000)
    raise SystemExit(130)
cli.app = run
cli.main()
"""
    begun = time.monotonic()
    assert subprocess.run([sys.executable, "-c", code], timeout=100).returncode == 130
    assert time.monotonic() - begun < 15  # a second of grace, and what importing takes
