"""The chat completions protocol: what is sent, what comes back, and what to do about servers that know less of it.

A judge's text becomes its answer strictly: one JSON object that holds exactly what was asked for; or how likely it is
to answer in one word, that word. Where a request brought no answer, it is told what kind of failure that is, and how
long to wait before the next try.
Source: OpenAI's API reference, /v1/chat/completions; vLLM, transformers, SGLang, llama.cpp and Ollama serve the same.
"""

import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar

from autolora_jax import foreign
from autolora_jax.evaluation.judge.verdicts import Usage

Message = Mapping[str, Any]
FORMS = ("json_schema", "json_object", "text")  # how the form of an answer is asked for, the strictest first
MOST_TOKENS = 20  # whose log-probabilities are given
SHOWN = 2000  # characters of an answer that are kept or sent back
SHOWN_OF_ERRORS = 300
FENCE = re.compile(r"```(?:json)?\s*\n(.*)\n\s*```", re.DOTALL)  # what chat models put around code

PASSING = "passing"  # may be over soon
FORM = "form"  # the server does not take requests of this form, or not this picture
PICTURE = "picture"  # of this picture alone
REFUSAL = "refusal"  # a filter would not let it through
HOPELESS = "hopeless"  # of all that would follow

STATUSES = {
    **dict.fromkeys((400, 422), FORM),
    **dict.fromkeys((*range(300, 400), 401, 402, 404, 405), HOPELESS),
    **dict.fromkeys((408, 409, 425, 429), PASSING),
}
CODES = {
    "content_filter": REFUSAL,
    "content_policy_violation": REFUSAL,
    "insufficient_quota": HOPELESS,
    "model_not_found": HOPELESS,
}
LONGEST_ASKED = 900.0  # seconds: a server that says "later" and means later than this has no time today


@dataclass(frozen=True)
class Dialect:
    """What a server takes.

    form: of FORMS; tokens: its name for the most tokens of an answer; temperature: whether that may be 0.
    """

    form: str = FORMS[0]
    tokens: str = "max_tokens"
    temperature: bool = True

    def poorer(self, complaint: str) -> "Dialect | None":
        """What to try after a server has called a request wrong; None: it must be something else.

        complaint: its parameter's name and what it says. OpenAI's reasoning models name the two parameters that they
        do not take; about the form servers complain in many words, or in none that tell.
        """
        if self.tokens == "max_tokens" and ("max_completion_tokens" in complaint or "max_tokens" in complaint):
            return replace(self, tokens="max_completion_tokens")
        if self.temperature and "temperature" in complaint:
            return replace(self, temperature=False)
        if self.form != FORMS[-1]:
            return replace(self, form=FORMS[FORMS.index(self.form) + 1])
        return None


@dataclass(frozen=True)
class InJson:
    """A question is answered by a JSON object of this schema. again: what to answer with, said to who did not."""

    schema: Mapping[str, Any]
    again: ClassVar[str] = "with the JSON object alone, in the form asked for"

    def asked(self, max_tokens: int, dialect: Dialect) -> dict[str, Any]:
        """Its part of a request's body, in the strictest form that the server takes."""
        forms: dict[str, dict[str, Any]] = {
            "json_schema": {"json_schema": {"name": "answer", "strict": True, "schema": self.schema}},
            "json_object": {},
        }
        form = forms.get(dialect.form)
        return {
            dialect.tokens: max_tokens,
            **({} if form is None else {"response_format": {"type": dialect.form, **form}}),
        }

    def read(self, reply: "Reply") -> dict[str, Any]:
        """The object. Raises Unusable."""
        return read_answer(reply.text, self.schema)


@dataclass(frozen=True)
class InAWord:
    """A question is answered by the first token alone: how likely each word is, {"yes": 0.93, "no": 0.05}."""

    words: tuple[str, ...]
    again: ClassVar[str] = "in one word"

    def asked(self, max_tokens: int, dialect: Dialect) -> dict[str, Any]:
        """Its part of a request's body: with log-probabilities, of as many tokens as the protocol gives."""
        return {dialect.tokens: 1, "logprobs": True, "top_logprobs": MOST_TOKENS}

    def read(self, reply: "Reply") -> dict[str, Any]:
        """The probabilities; 0 for a word that is not among the likeliest tokens, as long as another one is.

        Raises Unusable for what should be said otherwise, ValueError for what no judge can mend.
        """
        if not reply.likely:
            raise ValueError("it gives no log-probabilities, which this question needs; vLLM and OpenAI do")
        found = dict.fromkeys(self.words, 0.0)
        for token, probability in reply.likely:
            word = token.strip().lower()
            if word in found:
                found[word] += probability
        if not any(found.values()):
            raise Unusable(f"it should begin with {' or '.join(self.words)}")
        return found


Answering = InJson | InAWord


def request(
    model: str, messages: Sequence[Message], answering: Answering, max_tokens: int, dialect: Dialect
) -> dict[str, Any]:
    """The body of a request."""
    return {
        "model": model,
        "messages": [*messages],
        **answering.asked(max_tokens, dialect),
        **({"temperature": 0} if dialect.temperature else {}),
    }


def question(text: str, images: Sequence[str]) -> Message:
    """The user's message: pictures (data URIs), then what is asked of them."""
    shown = [{"type": "image_url", "image_url": {"url": image}} for image in images]
    return {"role": "user", "content": [*shown, {"type": "text", "text": text}]}


def correction(said: str, why: str, again: str) -> list[Message]:
    """What was said, and why it can't be used."""
    text = f"That answer can't be used: {why}. Answer again, {again}."
    user = {"role": "user", "content": [{"type": "text", "text": text}]}
    return [{"role": "assistant", "content": said or "(nothing)"}, user]


@dataclass(frozen=True)
class Reply:
    """refusal: why, where the judge would not answer; cut: whether the answer was longer than it may be.

    likely: the likeliest first tokens and their probabilities, where they were asked for and given.
    """

    text: str
    refusal: str
    cut: bool
    model: str
    fingerprint: str
    usage: Usage
    likely: tuple[tuple[str, float], ...] = ()


def read_reply(payload: Any, seconds: float) -> Reply:
    """A server's answer. Raises ValueError when it is no chat completion."""
    try:
        choice = payload["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        content = message.get("content") or ""
        if not isinstance(content, str):
            content = "".join(part.get("text", "") for part in content)
        usage = payload.get("usage") or {}
        asked, said = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        refusal = message.get("refusal") or ("filtered by the server" if reason == "content_filter" else "")
        first = ((choice.get("logprobs") or {}).get("content") or [{}])[0].get("top_logprobs") or []
        likely = tuple((_text(each["token"]), math.exp(min(float(each["logprob"]), 0.0))) for each in first)
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise ValueError(f"the server's answer is no chat completion: {str(payload)[:200]}") from None
    return Reply(
        _text(content),
        _text(refusal),
        reason == "length",
        _text(payload.get("model") or ""),
        _text(payload.get("system_fingerprint") or ""),
        Usage(asked, said, seconds, 1),
        likely,
    )


def _text(value: Any) -> str:
    """Without lone surrogates, which JSON may hold but no terminal and no file can."""
    return str(value).encode("utf-8", "replace").decode()


def complaint(payload: Any, otherwise: str) -> tuple[str, str]:
    """(code, parameter and message) of an error, in any of the shapes that servers give it."""
    error = payload.get("error", payload) if isinstance(payload, Mapping) else otherwise
    if not isinstance(error, Mapping):
        return "", _text(error)[:SHOWN_OF_ERRORS]
    message = _text(error.get("message") or error.get("detail") or otherwise)[:SHOWN_OF_ERRORS]
    name = error.get("param")
    return str(error.get("code") or ""), f"{_text(name)}: {message}" if name else message


class Unusable(ValueError):
    """An answer can't be used. The message tells the judge why."""


def read_answer(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The answer in a text, which may be fenced as code. Raises Unusable."""
    text = text.strip()
    if not text:
        raise Unusable("the answer was empty")
    if fenced := FENCE.fullmatch(text):
        text = fenced[1]
    try:
        found = foreign.parse_json(text, of_pairs=_once)
    except Unusable:
        raise
    except ValueError as e:
        raise Unusable(f"the answer was not a JSON object alone ({e})") from None
    if wrong := [*problems(found, schema)]:
        raise Unusable("; ".join(wrong))
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unusable("a key occurred twice")
    return found


# JSON's name of a type -> whether a value is of it. In JSON true is no integer, and 4.0 is one.
TYPES: dict[str, Callable[[Any], bool]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int or (type(value) is float and value.is_integer()),
}


def problems(value: Any, schema: Mapping[str, Any], where: str = "the answer") -> Iterator[str]:
    """What is wrong with a value, by the part of JSON Schema that questions use."""
    if not TYPES[schema["type"]](value):
        yield f"{where} should be of type {schema['type']}, not {json.dumps(value)[:60]}"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where} should be one of {schema['enum']}, not {json.dumps(value)}"
    for name, part in schema.get("properties", {}).items():
        if name not in value:
            yield f'the key "{name}" was missing'
        else:
            yield from problems(value[name], part, f'"{name}"')
    if schema.get("additionalProperties") is False and (more := value.keys() - schema["properties"]):
        yield f"there were other keys: {', '.join(sorted(more))}"
    for each in value if "items" in schema else ():
        yield from problems(each, schema["items"], f"an entry of {where}")


class Fault(Exception):
    """A request brought no answer. kind: one of the above; after: seconds that the server asks to wait."""

    def __init__(self, why: str, kind: str = PASSING, after: float | None = None) -> None:
        super().__init__(why)
        self.kind, self.after = kind, after


def status_fault(status: int, code: str, message: str, retry_after: str | None) -> Fault:
    """What an HTTP status other than 200 means."""
    kind = CODES.get(code) or STATUSES.get(status) or (PASSING if status >= 500 else PICTURE)
    after = _seconds(retry_after)
    if after is not None and after > LONGEST_ASKED:
        return Fault(f"HTTP {status}: {message}; it asks to come back in {after:.0f} seconds", HOPELESS)
    return Fault(f"HTTP {status}: {message}", kind, after)


def _seconds(retry_after: str | None) -> float | None:
    """Of a Retry-After header, which holds seconds or a date."""
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        date = parsedate_to_datetime(retry_after)
        return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError, TypeError, IndexError):  # whatever it makes of what is no date
        return None


@dataclass(frozen=True)
class Patience:
    """tries: of one request, the first among them; first, longest: seconds to wait, doubled from try to try."""

    tries: int = 8
    first: float = 1.0
    longest: float = 60.0

    def wait(self, tried: int, after: float | None) -> float:
        """Seconds before the next try, after `tried` of them: up to a half less, so that not all come back at once."""
        return max(min(self.first * 2 ** (tried - 1), self.longest) * random.uniform(0.5, 1.0), after or 0.0)
