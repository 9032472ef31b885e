"""A judge on the loopback device that speaks the chat completions protocol, and misbehaves as it is told to."""

import base64
import hashlib
import io
import json
import math
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from autolora_jax.evaluation.judge import QUESTIONS, Judge, Patience

MODEL = "tiny-judge"
ANNA = QUESTIONS["cps"].about(character="Anna")
QUICK = Patience(tries=4, first=0.01, longest=0.02)


@dataclass(frozen=True)
class Asked:
    """A request. image: as it was sent; before: how many requests about this picture came earlier."""

    body: Mapping[str, Any]
    image: bytes
    before: int
    headers: Mapping[str, str]

    @property
    def shade(self) -> int:
        """0 … 5, of a picture of `shades`."""
        with Image.open(io.BytesIO(self.image)) as image:
            return round(float(np.asarray(image).mean()) / 51)

    @property
    def texts(self) -> list[str]:
        """Of all messages."""
        parts = (m["content"] if isinstance(m["content"], list) else [m["content"]] for m in self.body["messages"])
        return [p if isinstance(p, str) else p.get("text", "") for part in parts for p in part]


@dataclass(frozen=True)
class Answer:
    """status 0: the connection is reset; raw: these bytes in place of a reply.

    wait: seconds before answering; drip: seconds before each byte of the answer.
    """

    content: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    wait: float = 0.0
    drip: float = 0.0
    raw: bytes | None = None


def say(text: str | None, **message: Any) -> Answer:
    """A chat completion."""
    reason = message.pop("finish_reason", "stop")
    choice = {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text, **message}}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    about = {"object": "chat.completion", "model": f"{MODEL}-0711", "system_fingerprint": "fp_1"}
    return Answer({**about, "choices": [choice], "usage": usage})


def likely(**tokens: float) -> Answer:
    """A chat completion of one token, with the probabilities of the likeliest ones."""
    answer = say(max(tokens, key=lambda token: tokens[token]), finish_reason="length")
    top = [{"token": token, "logprob": math.log(p)} for token, p in tokens.items()]
    answer.content["choices"][0]["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
    return answer


def error(status: int, message: str = "no", headers: Mapping[str, str] | None = None, **fields: Any) -> Answer:
    """An error in OpenAI's form."""
    return Answer({"error": {"message": message, **fields}}, status, headers or {})


def good(asked: Asked) -> Answer:
    """The shade of the picture is its score."""
    return say(json.dumps({"score": asked.shade, "reason": ["shade"]}))


class JudgeServer:
    """answer: from a request to what is answered. asked: all requests; verdicts: picture -> verdicts given on it."""

    def __init__(self, answer: Callable[[Asked], Answer] = good) -> None:
        self.answer = answer
        self.asked: list[Asked] = []
        self.verdicts: Counter[str] = Counter()
        self.models: Any = {"data": [{"id": MODEL, "root": "example/tiny"}]}
        self.version = "1.2.3"
        self.port = 0
        self.url = ""
        self._mutex = threading.Lock()

    @contextmanager
    def serve(self) -> Iterator["JudgeServer"]:
        """Up, on the same port each time."""
        server = ThreadingHTTPServer(("127.0.0.1", self.port), self._handler())
        server.daemon_threads = True
        self.port = server.server_port
        self.url = f"http://127.0.0.1:{self.port}/v1"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    def judge(self, **settings: Any) -> Judge:
        """A client of it that does not wait long."""
        return Judge(self.url, MODEL, **{"patience": QUICK, "timeout": 5.0, **settings})

    def note(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Asked:
        *_, picture, _ = body["messages"][0]["content"]  # what a question shows beside it stands before
        uri = picture["image_url"]["url"]
        image = base64.b64decode(uri.partition(",")[2])
        with self._mutex:
            before = sum(other.image == image for other in self.asked)
            self.asked.append(Asked(body, image, before, headers))
            return self.asked[-1]

    def count(self, asked: Asked) -> None:
        with self._mutex:
            self.verdicts[hashlib.sha256(asked.image).hexdigest()] += 1

    def _handler(server) -> type[BaseHTTPRequestHandler]:  # not self: that is the handler
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                found = {"/v1/models": server.models, "/version": {"version": server.version}}.get(self.path)
                self._send(Answer(found) if found and server.version else error(404))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path != "/v1/chat/completions":
                    return self._send(error(404, "no such path"))
                asked = server.note(body, dict(self.headers))
                answer = server.answer(asked)
                time.sleep(answer.wait)
                if answer.status == 0:  # what comes of a server that dies
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    return self.connection.close()
                if answer.status == 200 and answer.raw is None and '"score"' in str(answer.content):
                    server.count(asked)
                return self._send(answer)

            def _send(self, answer: Answer) -> None:
                content = json.dumps(answer.content).encode() if answer.raw is None else answer.raw
                try:
                    self.send_response(answer.status)
                    for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for piece in [content[i : i + 1] for i in range(len(content))] if answer.drip else [content]:
                        time.sleep(answer.drip)
                        self.wfile.write(piece)
                except OSError:  # who asked is gone
                    self.close_connection = True

        return Handler


def shades(folder: Path, count: int) -> Path:
    """A folder of `count` different pictures; number i has the shade i % 6, its score."""
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.full((12, 12, 3), 51 * (i % 6), np.uint8)
        pixels.reshape(-1)[: i // 6] ^= 1
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    return folder
