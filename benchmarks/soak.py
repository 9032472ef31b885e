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
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autolora_jax.batch import open_work, run, verify
from autolora_jax.batch.storage import Bucket, Folder, Storage
from benchmarks.made_up import made_up_job, noise

SAMPLES = 10  # of memory and open files, over the run
FAULTS = 1 / 12  # of requests
LAG = 3.0  # seconds that lists may be old
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


class Misbehaving:
    """A WSGI application in front of another that loses, delays and refuses requests, and tells of the past."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application, self._rng, self._mutex = application, random.Random(1), threading.Lock()
        self._lists: dict[str, tuple[float, list[Any]]] = {}
        self.faults: dict[str, int] = {}

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with self._mutex:
            chance, kind = self._rng.random(), self._rng.choice(tuple(self._KINDS))
        method, query = environ["REQUEST_METHOD"], environ.get("QUERY_STRING", "")
        if chance < FAULTS and environ.get("HTTP_HOST") and method in ("PUT", "GET", "POST", "DELETE"):
            with self._mutex:
                self.faults[kind] = self.faults.get(kind, 0) + 1
            return self._KINDS[kind](self, environ, start)
        if method == "GET" and "list-type" in query:
            return self._listed(environ, start)
        return self._application(environ, start)

    def _listed(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """A list, as it was up to LAG seconds ago."""
        name = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        with self._mutex:
            known = self._lists.get(name)
        if known is None or time.monotonic() - known[0] > LAG:
            told: list[Any] = []
            body = b"".join(self._application(environ, lambda *said: told.extend(said)))
            known = time.monotonic(), [told, body]
            with self._mutex:
                self._lists = {**dict(list(self._lists.items())[-100:]), name: known}
        said, body = known[1]
        start(*said[:2])
        return [body]

    def _refused(self, environ: dict[str, Any], start: Callable[..., Any], status: str) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start(status, [("Content-Type", "application/xml"), ("Content-Length", "0")])
        return [b""]

    def _late(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(self._rng.uniform(0.2, 1.0))
        return self._application(environ, start)

    def _done_but_untold(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """It is done, and the answer says that it is not."""
        b"".join(self._application(environ, lambda *_: None))
        start("500 Internal Server Error", [("Content-Length", "0")])
        return [b""]

    def _cut(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        """The connection ends half way."""
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
        start("200 OK", [("Content-Length", "1000000")])
        return [b"half"]

    _KINDS: dict[str, Callable[..., Iterable[bytes]]] = {  # noqa: RUF012
        "500": lambda self, e, s: self._refused(e, s, "500 Internal Server Error"),
        "503 slow down": lambda self, e, s: self._refused(e, s, "503 Slow Down"),
        "429": lambda self, e, s: self._refused(e, s, "429 Too Many Requests"),
        "late": _late,
        "done, and not told": _done_but_untold,
        "cut": _cut,
    }


@contextlib.contextmanager
def bad_bucket() -> Iterator[tuple[Storage, Misbehaving]]:
    """A bucket of a server on this machine that misbehaves."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            """Nothing: a million requests."""

    bad = Misbehaving(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, bad, threaded=True, request_handler=Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    keys = {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update({**keys, "AWS_ENDPOINT_URL": address, "FSSPEC_S3_ENDPOINT_URL": address})
    for _ in range(50):
        with contextlib.suppress(Exception):
            boto3.client("s3", endpoint_url=address).create_bucket(Bucket="soak")
            break
    try:
        yield Bucket("s3://soak/job"), bad
    finally:
        server.shutdown()
        thread.join()


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
        bad = None
        storage: Storage
        if options.s3:
            storage, bad = stack.enter_context(bad_bucket())
        else:
            storage = Folder(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "out")
        with jumping_clock():
            samples = soak(storage, pictures, options.side, shard_size)
        found = verify(storage)
    assert found.pictures == pictures and not found.troubles, found
    (first, *_), last = samples[min(2, len(samples) - 1) :], samples[-1]
    grown = (last[1] - first[1]) / max(1, last[0] - first[0]) * 1e6
    print(f"\n{last[0] / last[3]:.0f} pictures a second; {grown:+.0f} bytes a picture; all verified", flush=True)
    if bad:
        print(f"faults: {', '.join(f'{count} × {kind}' for kind, count in sorted(bad.faults.items()))}")


if __name__ == "__main__":
    main(sys.argv[1:])
