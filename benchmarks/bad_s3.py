"""A local server of S3's protocol that loses, delays and refuses requests, and whose lists are of the past.

python -m benchmarks.bad_s3                                # says its address; ends when its input does
"""

import contextlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

FAULTS = 1 / 12  # of requests
LAG = 3.0  # seconds that lists may be old
BUCKET = "soak"
KEYS = {"AWS_ACCESS_KEY_ID": "soak", "AWS_SECRET_ACCESS_KEY": "soak", "AWS_DEFAULT_REGION": "us-east-1"}


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


def main() -> None:
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, type: str, message: str, *args: Any) -> None:
            """Nothing: there are many."""

    bad = Misbehaving(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, bad, threaded=True, request_handler=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3", endpoint_url=address, region_name="us-east-1", aws_access_key_id="soak", aws_secret_access_key="soak"
    )
    for _ in range(50):
        with contextlib.suppress(Exception):  # its own misbehaviour
            client.create_bucket(Bucket=BUCKET)
            break
    print(address, flush=True)
    sys.stdin.read()
    print(", ".join(f"{count} × {kind}" for kind, count in sorted(bad.faults.items())), flush=True)


if __name__ == "__main__":
    main()
