"""A judge behind any server that speaks the chat completions protocol. One object serves many threads."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx2

from autolora_jax import foreign
from autolora_jax.evaluation.judge import protocol
from autolora_jax.evaluation.judge.protocol import (
    FORM,
    HOPELESS,
    PASSING,
    REFUSAL,
    Answering,
    Dialect,
    Fault,
    Message,
    Patience,
    Reply,
    Unusable,
)
from autolora_jax.evaluation.judge.questions import Question
from autolora_jax.evaluation.judge.verdicts import MALFORMED, REFUSED, SCORED, UNANSWERED, Usage, Verdict, Version

VERSION_PATHS = ("/version", "/api/version")  # of vLLM, of Ollama
LONGEST_ANSWER = 16 << 20  # bytes
LOOK = 10.0  # seconds that questions about the server itself may take

Pause = Callable[[float], None]


class JudgeError(RuntimeError):
    """No answers are to be had. The message says why; the verdicts that there are, are in the cache."""


class Judge:
    """A model and where it is served.

    dialect: what the server has been found to take. served: what it lists under the model's name, and its own version,
    as far as it says so: "" otherwise.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None = None,
        *,
        max_tokens: int = 512,
        timeout: float = 120.0,
        patience: Patience = Patience(),  # noqa: B008  (frozen)
        reasks: int = 2,
    ) -> None:
        """base_url: "http://localhost:8000" or with a path, as OpenAI's client takes it ("…/v1"). api_key: sent, and
        neither kept nor shown. timeout: seconds for a whole answer. reasks: how often a judge may correct its answer.

        Raises ValueError when that is no address.
        """
        self.base_url = endpoint(base_url)
        self.model = model
        self.dialect = Dialect()
        self.served = ""
        self._max_tokens, self._timeout, self._patience, self._reasks = max_tokens, timeout, patience, reasks
        self._secret = (api_key or "").strip()
        if not self._secret.isprintable():
            raise ValueError("the API key holds control characters: it was not copied as it is")
        headers = {"Authorization": f"Bearer {self._secret}"} if self._secret else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx2.Client(headers=headers, limits=limits)
        self._doubted = True  # whether `served` should be looked at again
        self._opens = 0.0  # the server asked not to be asked before this, on time.monotonic's clock

    def __enter__(self) -> "Judge":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, question: Question, images: Sequence[str], pause: Pause = time.sleep) -> Verdict:
        """What the judge says of a picture. Refusals and failures are verdicts, too.

        images: data URIs, those that the question shows beside it first. pause: how to wait; what it raises ends the
        waiting. Raises JudgeError when asking on is of no use.
        """
        answering = question.answering
        messages: list[Message] = [protocol.question(question.text, images)]
        usage, why, reply = Usage(), "", None
        texts: list[str] = []
        for _ in range(1 + self._reasks):
            try:
                reply = self._reply(messages, answering, pause)
            except Fault as fault:
                if fault.kind == HOPELESS:
                    raise JudgeError(f"{self.base_url} gives no answers: {fault}") from None
                outcome = REFUSED if fault.kind == REFUSAL else UNANSWERED
                return Verdict(outcome, self._version(reply), why=str(fault), texts=(*texts,), usage=usage)
            usage += reply.usage
            if reply.refusal:
                return Verdict(REFUSED, self._version(reply), why=reply.refusal, texts=(*texts,), usage=usage)
            try:
                answer = answering.read(reply)
            except Unusable as e:
                cut = reply.cut and not reply.likely  # of one word only one was wanted
                why = f"the answer was cut off after {self._max_tokens} tokens" if cut else str(e)
                said = reply.text[: protocol.SHOWN]
                texts.append(said)
                messages += protocol.correction(said, why, answering.again)
            except ValueError as e:
                raise JudgeError(f"{self.base_url} can't be asked: {e}") from None
            else:
                scores = question.of(answer)
                return Verdict(SCORED, self._version(reply), answer, scores, texts=(*texts,), usage=usage)
        return Verdict(MALFORMED, self._version(reply), why=why, texts=(*texts,), usage=usage)

    def models(self) -> list[str]:
        """The names that the server lists. Raises JudgeError when it does not answer."""
        try:
            return [entry["id"] for entry in self._listed()]
        except (httpx2.HTTPError, ValueError, TypeError, KeyError) as e:
            raise JudgeError(f"{self.base_url} does not say which models it has: {self._safe(str(e))}") from None

    def identify(self) -> None:
        """Looks what is served now, where the server says so; where it is away, that stays what it was."""
        try:
            mine = next((entry for entry in self._listed() if entry["id"] == self.model), None)
            version = self._server_version()
        except httpx2.TransportError:
            return
        except (httpx2.HTTPError, ValueError, TypeError, KeyError, AttributeError):
            mine, version = None, ""  # it has no such list
        self.served = ", server ".join(filter(None, [mine.get("root") or mine["id"], version])) if mine else ""
        self._doubted = False

    def _listed(self) -> list[Any]:
        found = self._http.get(f"{self.base_url}/models", timeout=LOOK).raise_for_status()
        return list(foreign.parse_object(found.content)["data"])

    def _server_version(self) -> str:
        root = self.base_url.removesuffix("/v1")
        for path in VERSION_PATHS if root != self.base_url else ():
            found = self._http.get(root + path, timeout=LOOK)
            if found.status_code == 200:
                return str(foreign.parse_object(found.content)["version"])
        return ""

    def _version(self, reply: Reply | None) -> Version:
        said = (reply.model, reply.fingerprint) if reply else ("", "")
        return Version(self.model, self.served, *said, self.dialect.form)

    def _reply(self, messages: Sequence[Message], answering: Answering, pause: Pause) -> Reply:
        """Asks in the strictest form that the server takes. Raises Fault."""
        dialect = self.dialect
        while True:
            try:
                body = protocol.request(self.model, messages, answering, self._max_tokens, dialect)
                reply = self._patiently(json.dumps(body).encode(), pause)
            except Fault as fault:
                poorer = dialect.poorer(str(fault)) if fault.kind == FORM else None
                if poorer is None:
                    raise
                dialect = poorer
            else:
                self.dialect = dialect  # for all that follow
                return reply

    def _patiently(self, body: bytes, pause: Pause) -> Reply:
        """Tries again while a failure may pass. Raises Fault."""
        for tried in range(1, self._patience.tries + 1):
            while (closed := self._opens - time.monotonic()) > 0:
                pause(closed)
            try:
                reply = self._once(body)
            except Fault as fault:
                if fault.kind != PASSING or tried == self._patience.tries:
                    raise
                if fault.after:  # it is too busy for the other threads, too
                    self._opens = max(self._opens, time.monotonic() + fault.after)
                pause(self._patience.wait(tried, fault.after))
            else:
                if self._doubted:
                    self.identify()
                return reply
        raise AssertionError("the last try returns or raises")

    def _once(self, body: bytes) -> Reply:
        """One request. Raises Fault."""
        began = time.monotonic()
        url, headers = f"{self.base_url}/chat/completions", {"Content-Type": "application/json"}
        content = bytearray()
        try:
            with self._http.stream("POST", url, content=body, headers=headers, timeout=self._timeout) as response:
                for chunk in response.iter_bytes():
                    content += chunk
                    if len(content) > LONGEST_ANSWER:
                        raise Fault(f"an answer of more than {LONGEST_ANSWER >> 20} MiB")
                    if time.monotonic() - began > self._timeout:  # httpx's own is for each piece
                        raise httpx2.ReadTimeout("it never came to an end")
        except httpx2.TimeoutException:
            raise Fault(f"no whole answer within {self._timeout:g} seconds") from None
        except (httpx2.TransportError, httpx2.DecodingError) as e:
            self._doubted = True  # when it is back, it may be another
            raise Fault(self._safe(f"no connection ({e or type(e).__name__})")) from None
        text = content.decode("utf-8", "replace")
        try:
            payload = foreign.parse_json(text)
        except ValueError:
            payload = None
        if response.status_code != 200:
            code, message = protocol.complaint(payload, text)
            raise protocol.status_fault(
                response.status_code, code, self._safe(message), response.headers.get("retry-after")
            )
        try:
            return protocol.read_reply(text[:200] if payload is None else payload, time.monotonic() - began)
        except ValueError as e:
            raise Fault(self._safe(str(e))) from None

    def _safe(self, text: str) -> str:
        """Without the key, should a server repeat it."""
        return text.replace(self._secret, "…") if self._secret else text


def endpoint(base_url: str) -> str:
    """The address that paths are added to: with /v1 where there is no path. Raises ValueError."""
    try:
        url = httpx2.URL(base_url.strip().rstrip("/"))
    except httpx2.InvalidURL as e:
        raise ValueError(f"{base_url!r} is no address of a server ({e}); give http://localhost:8000/v1, say") from None
    if url.userinfo:
        raise ValueError("the address of a server should not hold a key or a password: give it as the API key")
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(f"{base_url!r} is no address of a server; give http://localhost:8000/v1, say")
    return str(url) if url.path.strip("/") else f"{str(url).rstrip('/')}/v1"
