"""The README, tutorials and examples do what they say: every block of Python and of shell; see tests/tutorials.py."""

import os
import subprocess
import sys

from tests.conftest import ROOT

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    *sorted((ROOT / "examples").glob("*")),
]


def test_they_do_what_they_say():
    """In a process of its own: one device, and no check of every call's shapes and types, a third of its time."""
    command = [sys.executable, "-m", "tests.tutorials", *map(str, PAGES)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"}
    )
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("CPU seconds") == len(PAGES)
