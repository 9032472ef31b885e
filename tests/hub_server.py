"""A small Hugging Face hub on the loopback device: enough for huggingface_hub, and a list of what it was asked for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest
from huggingface_hub import constants

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves folders as repositories {"owner/name": folder}. downloads: files sent, in order.

    commits: known ones, oldest first; "main" is the last. They all have the same files.
    """

    def __init__(self, repositories: dict[str, Path]) -> None:
        self.repositories = repositories
        self.downloads: list[str] = []
        self.gated: set[str] = set()
        self.commits = [COMMIT]

    @contextmanager
    def serve(self) -> Iterator[str]:
        """The address, while it is up."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    @contextmanager
    def as_the_hub(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """huggingface_hub takes it for the hub, while it is up."""
        with self.serve() as url:
            monkeypatch.setattr(constants, "ENDPOINT", url)
            template = url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
            yield

    def _handler(hub) -> type[BaseHTTPRequestHandler]:  # not self: that is the handler
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._answer(body=False)

            def do_GET(self) -> None:
                self._answer(body=True)

            def _answer(self, body: bool) -> None:
                path = unquote(self.path.split("?")[0]).strip("/")
                if path.startswith("api/models/"):
                    return self._info(path.removeprefix("api/models/"))
                repo, _, rest = path.partition("/resolve/")
                revision, _, name = rest.partition("/")
                folder = hub.repositories.get(repo)
                if folder is None:
                    return self._error(404, "RepoNotFound")
                if revision not in ("main", *hub.commits):
                    return self._error(404, "RevisionNotFound")
                if not (folder / name).is_file():
                    return self._error(404, "EntryNotFound")
                content = (folder / name).read_bytes()
                if body:
                    hub.downloads.append(name)
                etag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
                return self._send(200, content, body, etag, hub.commits[-1] if revision == "main" else revision)

            def _info(self, rest: str) -> None:
                repo, _, revision = rest.partition("/revision/")
                if repo not in hub.repositories:
                    return self._error(401, "RepoNotFound")
                if repo in hub.gated:
                    return self._error(403, "GatedRepo")
                if revision not in ("", "main", *hub.commits):
                    return self._error(404, "RevisionNotFound")
                folder = hub.repositories[repo]
                names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
                info = {"id": repo, "sha": hub.commits[-1], "siblings": [{"rfilename": name} for name in names]}
                return self._send(200, json.dumps(info).encode(), True, {"Content-Type": "application/json"})

            def _error(self, status: int, code: str) -> None:
                self._send(status, b"{}", self.command == "GET", {"X-Error-Code": code})

            def _send(
                self, status: int, content: bytes, body: bool, headers: dict[str, str], commit: str = COMMIT
            ) -> None:
                self.send_response(status)
                for name, value in {**headers, "X-Repo-Commit": commit, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.send_header("Connection", "close")  # so that nothing answers once the server is down
                self.end_headers()
                if body:
                    self.wfile.write(content)

        return Handler
