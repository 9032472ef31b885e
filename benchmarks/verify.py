"""What `autolora batch --verify` costs beside plainly reading and hashing the same pictures.

    python -m benchmarks.verify                               # 100,000 pictures of 96 × 96, as files and in shards
    python -m benchmarks.verify --pictures 2000 --side 1024

The pictures are made up: noise, drawn by nobody, kept by the batch runner as those of a job. plain: the file of every
picture is read whole and its SHA-256 taken, in one loop; of shards tarfile gives each picture. verify: rows, files or
shards, and all that stands between pictures. Where both find the files in the page cache no disk slows them down, and
they differ the most. The fastest of several rounds counts.
"""

import argparse
import hashlib
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from autolora_jax.batch import open_work, read_manifest, run, verify
from benchmarks.made_up import made_up_job, noise

SHARD = 1000  # pictures


def make(out: Path, pictures: int, side: int, shard_size: int | None) -> None:
    """A job's place with so many pictures of so many pixels a side."""
    work = open_work(made_up_job(pictures, shard_size), out)
    assert run(work, noise(side)).ok == pictures and work.finish()


def plain(files: Sequence[Path]) -> int:
    """Reads and hashes the pictures in these files, or shards: their bytes."""
    size = 0
    for file in files:
        if file.suffix != ".tar":
            content = file.read_bytes()
            hashlib.sha256(content).digest()
            size += len(content)
            continue
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if (opened := tar.extractfile(member)) and not member.name.endswith((".json", ".txt")):
                    content = opened.read()
                    hashlib.sha256(content).digest()
                    size += len(content)
    return size


def fastest(function: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        begun = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=96, help="pixels: as the built-in model draws")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="a few pictures: only to see that it works")
    options = parser.parse_args(arguments)
    if options.tiny:
        options.pictures, options.rounds = 200, 1
    print("| form | pictures | MB | plain, s | verify, s | times |\n|---|---|---|---|---|---|")
    for form, shard_size in (("files", None), ("shards", SHARD)):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "out"
            make(out, options.pictures, options.side, shard_size)
            files = [out / file for file in dict.fromkeys(row["file"] for row in read_manifest(out))]
            size = plain(files)
            base = fastest(lambda: plain(files), options.rounds)  # noqa: B023  # called at once

            def check() -> None:
                found = verify(out)  # noqa: B023
                assert found.pictures == options.pictures and not found.troubles

            took = fastest(check, options.rounds)
        columns = f"{options.pictures:,} | {size / 1e6:,.0f} | {base:.2f} | {took:.2f} | {took / base:.2f}"
        print(f"| {form} | {columns} |", flush=True)


if __name__ == "__main__":
    main()
