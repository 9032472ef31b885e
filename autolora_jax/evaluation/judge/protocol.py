"""The chat completions protocol: what is sent, what comes back, and what servers that know less of it are asked.

Source: OpenAI's API reference, /v1/chat/completions; vLLM, transformers, SGLang, llama.cpp and Ollama serve the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from autolora_jax.evaluation.judge.verdict import Usage

Message = Mapping[str, Any]
FORMS = ("json_schema", "json_object", "text")  # how the form of an answer is asked for, the strictest first
SHOWN = 2000  # characters of an answer that are kept or sent back
SHOWN_OF_ERRORS = 300


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


def request(
    model: str, messages: Sequence[Message], schema: Mapping[str, Any], max_tokens: int, dialect: Dialect
) -> dict[str, Any]:
    """The body of a request."""
    forms: dict[str, dict[str, Any]] = {
        "json_schema": {"json_schema": {"name": "answer", "strict": True, "schema": schema}},
        "json_object": {},
    }
    form = forms.get(dialect.form)
    return {
        "model": model,
        "messages": [*messages],
        dialect.tokens: max_tokens,
        **({"temperature": 0} if dialect.temperature else {}),
        **({} if form is None else {"response_format": {"type": dialect.form, **form}}),
    }


def question(text: str, image: str) -> Message:
    """The user's message: a picture (data URI), then what is asked of it."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return {"role": "user", "content": parts}


def correction(said: str, why: str) -> list[Message]:
    """What was said, and why it can't be used."""
    text = f"That answer can't be used: {why}. Answer again, with the JSON object alone, in the form asked for."
    user = {"role": "user", "content": [{"type": "text", "text": text}]}
    return [{"role": "assistant", "content": said or "(nothing)"}, user]


@dataclass(frozen=True)
class Reply:
    """refusal: why, where the judge would not answer; cut: whether the answer was longer than it may be."""

    text: str
    refusal: str
    cut: bool
    model: str
    fingerprint: str
    usage: Usage


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
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        raise ValueError(f"the server's answer is no chat completion: {str(payload)[:200]}") from None
    return Reply(
        _text(content),
        _text(refusal),
        reason == "length",
        _text(payload.get("model") or ""),
        _text(payload.get("system_fingerprint") or ""),
        Usage(asked, said, seconds, 1),
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
