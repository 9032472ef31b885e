"""A million pictures through the batch runner: whether memory and open files stay flat, on good storage and on bad.

    python -m benchmarks.soak                                  # 1,000,000 pictures into a folder, in shards of 10,000
    python -m benchmarks.soak --files --pictures 100000        # a file each
    python -m benchmarks.soak --s3 --pictures 20000            # a local server of S3's protocol that misbehaves
                                                               # (pip install 'moto[server]' s3fs)

The pictures are noise, drawn by nobody. The machine's clock jumps by up to a day while they are kept. With --s3 one
request in twelve fails: it is answered by 500, 503 (slow down) or 429, late, by half an answer, or by 500 after it was
done all the same; and lists are of some seconds ago. In the end every picture is verified.
"""

import argparse
import contextlib
import datetime
import gc
import os
import random
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autolora_jax.batch import open_work, run, verify
from autolora_jax.batch.storage import Bucket, Folder, Storage
from benchmarks.bad_s3 import BUCKET, KEYS
from benchmarks.made_up import made_up_job, noise

SAMPLES = 10  # of memory and open files, over the run
DAY = 86_400.0


def resident() -> float:
    """MB of this process in memory, once garbage is collected."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def handles() -> int:
    """Open files of this process."""
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def jumping_clock() -> Iterator[None]:
    """The clock says something else at every look, by up to a day; what measures durations goes on."""
    rng, own = random.Random(0), time.time

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return cls.fromtimestamp(time.time(), tz)

    said: Any = types.SimpleNamespace(**vars(datetime) | {"datetime": Clock})
    time.time = lambda: own() + rng.uniform(-DAY, DAY)
    sys.modules[run.__module__].datetime = said
    try:
        yield
    finally:
        time.time, sys.modules[run.__module__].datetime = own, datetime


@contextlib.contextmanager
def bad_bucket() -> Iterator[tuple[Storage, Callable[[], str]]]:
    """A bucket of a server on this machine that misbehaves; the other tells how, in the end."""
    command = [sys.executable, "-m", "benchmarks.bad_s3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        address = server.stdout.readline().strip()
        os.environ.update({"AWS_ENDPOINT_URL": address, "FSSPEC_S3_ENDPOINT_URL": address, **KEYS})
        yield Bucket(f"s3://{BUCKET}/job"), lambda: (server.stdin.close(), server.stdout.readline().strip())[1]  # type: ignore[union-attr]


def soak(storage: Storage, pictures: int, side: int, shard_size: int | None) -> list[tuple[int, float, int, float]]:
    """[(pictures, MB, open files, seconds)] as the job goes on."""
    work = open_work(made_up_job(pictures, shard_size), storage)
    samples: list[tuple[int, float, int, float]] = []
    begun, drawn = time.perf_counter(), 0

    def on_batch(rows: Sequence[Any]) -> None:
        nonlocal drawn
        drawn += len(rows)
        if drawn >= len(samples) * pictures / SAMPLES or drawn == pictures:
            samples.append((drawn, resident(), handles(), time.perf_counter() - begun))
            count, mb, files, seconds = samples[-1]
            print(f"| {count:,} | {mb:.0f} | {files} | {seconds:.0f} |", flush=True)

    assert run(work, noise(side), on_batch=on_batch).ok == pictures
    assert work.finish()
    return samples


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1_000_000)
    parser.add_argument("--side", type=int, default=16, help="pixels")
    parser.add_argument("--files", action="store_true", help="a file each, in place of shards")
    parser.add_argument("--s3", action="store_true", help="a local server that misbehaves, in place of a folder")
    parser.add_argument("--tiny", action="store_true", help="a few pictures: only to see that it works")
    options = parser.parse_args(arguments)
    pictures = 700 if options.tiny else options.pictures
    shard_size = None if options.files else max(1, min(10_000, pictures // 4))
    print("| pictures | MB in memory | open files | seconds |\n|---|---|---|---|")
    with contextlib.ExitStack() as stack:
        faults: Callable[[], str] = lambda: ""  # noqa: E731
        storage: Storage
        if options.s3:
            storage, faults = stack.enter_context(bad_bucket())
        else:
            storage = Folder(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "out")
        with jumping_clock():
            samples = soak(storage, pictures, options.side, shard_size)
        found, told = verify(storage), faults()
    assert found.pictures == pictures and not found.troubles, found
    (first, *_), last = samples[min(2, len(samples) - 1) :], samples[-1]
    grown = (last[1] - first[1]) / max(1, last[0] - first[0]) * 1e6
    print(f"\n{last[0] / last[3]:.0f} pictures a second; {grown:+.0f} bytes a picture; all verified", flush=True)
    if told:
        print(f"faults: {told}")


if __name__ == "__main__":
    main(sys.argv[1:])
