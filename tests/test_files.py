"""Files that appear whole or not at all."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from autolora_jax import files

KILLED = """
import os, signal, sys
from pathlib import Path
from autolora_jax import files
with files.writing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_file_is_written_and_replaced(tmp_path: Path):
    path = tmp_path / "a.txt"
    files.write(path, "zwölf \ud83d")
    assert path.read_bytes() == "zwölf ?".encode()
    files.write(path, b"\x00")
    assert path.read_bytes() == b"\x00" and [*tmp_path.iterdir()] == [path]
    usual = tmp_path / "usual"
    usual.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


@pytest.mark.parametrize("fault", [ValueError("no"), KeyboardInterrupt(), OSError("no number")])
def test_a_block_that_fails_leaves_what_was_there(fault: BaseException, tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    with pytest.raises(type(fault)) as caught, files.writing(path) as file:
        file.write(b"half")
        raise fault
    assert caught.value is fault
    assert path.read_bytes() == b"old" and [*tmp_path.iterdir()] == [path]


def test_errors_name_the_file_that_was_asked_for(tmp_path: Path):
    for path in (tmp_path / "none" / "a", tmp_path / "folder"):
        (tmp_path / "folder").mkdir(exist_ok=True)
        with pytest.raises(OSError) as caught:
            files.write(path, b"")
        assert caught.value.filename == str(path)
    (tmp_path / "a").touch()
    with pytest.raises(FileExistsError) as caught:
        files.write(tmp_path / "a", b"new", overwrite=False)
    assert caught.value.filename == str(tmp_path / "a") and (tmp_path / "a").read_bytes() == b""
    with pytest.raises(FileNotFoundError) as caught, files.writing(tmp_path / "b"):
        (tmp_path / "another").read_bytes()
    assert caught.value.filename == str(tmp_path / "another")
    assert {path.name for path in tmp_path.iterdir()} == {"a", "folder"}


def test_two_at_a_time_do_not_meet(tmp_path: Path):
    """Even for the same file in one process: the last one that ends is what there is, and it is whole."""
    path, contents = tmp_path / "a", [bytes([i]) * 100_000 for i in range(4)]
    together = threading.Barrier(4)

    def write(content: bytes) -> None:
        for _ in range(20):
            with files.writing(path) as file:
                file.write(content[:50_000])
                together.wait()
                file.write(content[50_000:])

    threads = [threading.Thread(target=write, args=(content,)) for content in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents and [*tmp_path.iterdir()] == [path]


def test_a_killed_program_leaves_what_was_there(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env={**os.environ, "PYTHONPATH": os.getcwd()})
    assert done.returncode == -signal.SIGKILL and path.read_bytes() == b"old"
    files.write(path, b"new")
    assert path.read_bytes() == b"new"


def test_types_are_told_to_users_checkers():
    assert Path(files.__file__).with_name("py.typed").is_file()
