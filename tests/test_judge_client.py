"""One question to a server that misbehaves: what is tried again, asked again, conceded, and what is given up."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from typing import Any

import pytest
from PIL import Image

from autolora_jax.evaluation.judge import Judge, JudgeError, Patience, Preparation, Verdict
from autolora_jax.evaluation.judge.client import endpoint
from autolora_jax.evaluation.judge.questions import QUESTIONS, Question
from tests.judge_server import ANNA, MODEL, QUICK, Answer, Asked, JudgeServer, error, good, likely, say

PICTURE = Preparation().data_uri(Image.new("RGB", (8, 8), (153,) * 3))  # shade 3
SHOWN = QUESTIONS["vqa"].about(prompt="a cat")
RIGHT = say('{"score": 3, "reason": ["shade"]}')


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer().serve() as server:
        yield server


def ask(
    server: JudgeServer, *answers: Answer | Callable[[Asked], Answer], question: Question = ANNA, **settings: Any
) -> Verdict:
    """The verdict when the server gives these answers, the last one ever after."""
    script = [*answers]

    def answer(asked: Asked) -> Answer:
        now = script.pop(0) if len(script) > 1 else script[0]
        return now if isinstance(now, Answer) else now(asked)

    server.answer = answer
    with server.judge(**settings) as judge:
        judge.identify()
        return judge.ask(question, [PICTURE])


def test_a_verdict_says_all(server: JudgeServer):
    verdict = ask(server, good)
    assert (verdict.outcome, verdict.scores, verdict.answer) == (
        "scored",
        {"CPS": 3.0},
        {"score": 3, "reason": ["shade"]},
    )
    version = verdict.version
    assert (version.model, version.reported, version.fingerprint) == (MODEL, "tiny-judge-0711", "fp_1")
    assert (version.served, version.form) == ("example/tiny, server 1.2.3", "json_schema")
    usage = verdict.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.answers) == (100, 10, 1) and 0 < usage.seconds < 5


def test_an_answer_in_a_word_is_scored_by_how_likely_it_is(server: JudgeServer):
    verdict = ask(server, likely(**{"Yes": 0.5, " yes": 0.25, "No": 0.125, "The": 0.125}), question=SHOWN)
    assert verdict.outcome == "scored" and verdict.scores == pytest.approx({"VQAScore": 0.75})
    body = server.asked[0].body
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"], body["temperature"]) == (1, True, 20, 0)
    assert "response_format" not in body
    assert ask(server, likely(**{"No": 0.9}), question=SHOWN).scores == {"VQAScore": 0.0}


def test_who_does_not_answer_in_a_word_has_no_score(server: JudgeServer):
    verdict = ask(server, likely(**{"<think>": 1.0}), question=SHOWN)
    assert verdict.outcome == "malformed" and "it should begin with yes or no" in verdict.why
    assert server.asked[-1].texts[-1].endswith("Answer again, in one word.")


def test_a_server_without_log_probabilities_is_told_so_at_once(server: JudgeServer):
    with pytest.raises(JudgeError, match="gives no log-probabilities, which this question needs"):
        ask(server, say("Yes"), question=SHOWN)
    assert len(server.asked) == 1


def test_what_is_sent(server: JudgeServer):
    ask(server, good, api_key="sk-secret", max_tokens=77)
    asked = server.asked[0]
    assert asked.headers["Authorization"] == "Bearer sk-secret"
    assert {name: asked.body[name] for name in ("model", "temperature", "max_tokens")} == {
        "model": MODEL,
        "temperature": 0,
        "max_tokens": 77,
    }
    assert asked.body["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "answer", "strict": True, "schema": ANNA.schema},
    }
    (message,) = asked.body["messages"]  # and none from the system, which the paper's judge refuses beside pictures
    assert message["role"] == "user" and [part["type"] for part in message["content"]] == ["image_url", "text"]
    assert message["content"][1]["text"] == ANNA.text and asked.shade == 3


PASSING = {
    "429": error(429),
    "500": error(500),
    "502, a proxy's page": Answer(status=502, raw=b"<html>Bad gateway</html>"),
    "503": error(503),
    "529": error(529),
    "408": error(408),
    "reset": Answer(status=0),
    "200, but no JSON": Answer(raw=b"<html>Welcome</html>"),
    "200, cut short": Answer(raw=b'{"choices": [', headers={"Content-Length": "100000"}),
    "200, no choices": Answer({"choices": []}),
    "200, an error": Answer({"error": {"message": "overloaded"}}),
    "200, choices of another kind": Answer({"choices": [{"text": "4"}]}),
    "200, a list": Answer([1]),
    "no bytes": Answer(raw=b""),
    "too late": Answer(RIGHT.content, wait=0.6),
}


@pytest.mark.parametrize("kind", PASSING)
def test_what_passes_is_tried_again(kind: str, server: JudgeServer):
    verdict = ask(server, PASSING[kind], PASSING[kind], RIGHT, timeout=0.3)
    assert verdict.scores == {"CPS": 3.0} and len(server.asked) == 3 and verdict.usage.answers == 1
    assert len({json.dumps(asked.body, sort_keys=True) for asked in server.asked}) == 1


@pytest.mark.parametrize("kind", ["429", "reset", "200, but no JSON", "too late"])
def test_but_not_for_ever(kind: str, server: JudgeServer):
    verdict = ask(server, PASSING[kind], timeout=0.3)
    assert verdict.outcome == "unanswered" and verdict.scores == {} and not verdict.final
    assert len(server.asked) == QUICK.tries and verdict.why


def test_a_server_that_never_ends_its_answer(server: JudgeServer):
    """Each piece comes in time, the whole does not."""
    began = time.monotonic()
    verdict = ask(server, Answer(RIGHT.content, drip=0.1), timeout=0.3, patience=Patience(1))
    assert verdict.why == "no whole answer within 0.3 seconds" and time.monotonic() - began < 2


def test_a_server_is_waited_for_as_long_as_it_asks(server: JudgeServer):
    began = time.monotonic()
    assert ask(server, error(429, headers={"Retry-After": "0.7"}), RIGHT).scores == {"CPS": 3.0}
    assert 0.7 <= time.monotonic() - began < 2


def test_it_may_give_a_date(server: JudgeServer):
    began = time.monotonic()
    busy = error(503, headers={"Retry-After": formatdate(time.time() + 2, usegmt=True)})
    assert ask(server, busy, RIGHT).scores == {"CPS": 3.0}
    assert 0.5 < time.monotonic() - began < 4  # dates are of whole seconds


def test_while_it_is_busy_nobody_asks(server: JudgeServer):
    """One thread's Retry-After holds for all who use the judge."""
    server.answer = lambda asked: error(429, headers={"Retry-After": "0.6"}) if len(server.asked) == 1 else RIGHT
    with server.judge() as judge:
        turned_away = threading.Event()

        def pause(seconds: float) -> None:
            turned_away.set()
            time.sleep(seconds)

        thread = threading.Thread(target=judge.ask, args=(ANNA, PICTURE, pause))
        thread.start()
        assert turned_away.wait(5)
        began = time.monotonic()
        judge.ask(ANNA, [PICTURE])
        assert 0.3 < time.monotonic() - began < 3
        thread.join()


def test_waits_grow_and_differ():
    patience = Patience(tries=9, first=1.0, longest=10.0)
    waits = [[patience.wait(tried, None) for _ in range(50)] for tried in (1, 2, 3, 8)]
    for some, most in zip(waits, (1.0, 2.0, 4.0, 10.0), strict=True):
        assert all(most / 2 <= wait <= most for wait in some) and max(some) > min(some)
    assert patience.wait(1, 30.0) == 30.0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (error(401, "Incorrect API key provided: sk-secret"), "HTTP 401: Incorrect API key provided: …"),
        (error(402, "no credits"), "no credits"),
        (error(404, "The model does not exist"), "does not exist"),
        (error(429, "You exceeded your quota", code="insufficient_quota"), "exceeded your quota"),
        (error(429, "come tomorrow", {"Retry-After": "86400"}), "it asks to come back in 86400 seconds"),
        (error(307, "elsewhere"), "HTTP 307"),
    ],
)
def test_what_will_never_pass_is_said_at_once(answer: Answer, why: str, server: JudgeServer):
    with pytest.raises(JudgeError, match=f"^{server.url} gives no answers: .*{why}"):
        ask(server, answer, api_key="sk-secret")
    assert len(server.asked) == 1


WRONG = {
    "prose": "It is Anna.",
    "no JSON": '{"score": 3, "reason": [',
    "another schema": '{"rating": 3}',
    "out of range": '{"score": 7, "reason": []}',
    "nothing": "",
    "no content": None,
    "half a character": '{"score": "\ud83d"}',
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_can_not_be_used_is_asked_again(kind: str, server: JudgeServer):
    verdict = ask(server, say(WRONG[kind]), RIGHT)
    assert verdict.scores == {"CPS": 3.0} and verdict.usage.answers == 2 and verdict.usage.prompt_tokens == 200
    _, said, why = server.asked[1].body["messages"]
    assert said["role"] == "assistant" and said["content"]
    assert why["role"] == "user" and why["content"][0]["text"].startswith("That answer can't be used: ")
    assert len(verdict.texts) == 1 and verdict.texts[0].encode() is not None


def test_the_judge_is_told_what_was_wrong(server: JudgeServer):
    ask(server, say('{"score": 7}'), RIGHT)
    text = server.asked[1].texts[-1]
    assert '"score" should be one of [0, 1, 2, 3, 4, 5], not 7' in text and 'the key "reason" was missing' in text


def test_a_judge_that_never_learns_gives_no_score(server: JudgeServer):
    verdict = ask(server, say("Hello."), say("Yes?"), say("Anna."), reasks=2)
    assert (verdict.outcome, verdict.scores, verdict.final) == ("malformed", {}, False)
    assert verdict.texts == ("Hello.", "Yes?", "Anna.") and verdict.usage.answers == 3
    assert "not a JSON object alone" in verdict.why


def test_an_answer_that_is_cut_off_says_so(server: JudgeServer):
    verdict = ask(server, say('{"score": 3, "rea', finish_reason="length"), max_tokens=9)
    assert verdict.why == "the answer was cut off after 9 tokens"


@pytest.mark.parametrize(
    "answer",
    [
        say(None, refusal="I can't help with that \ud83d."),
        say("", finish_reason="content_filter"),
        error(400, "flagged", code="content_filter"),
        error(400, "flagged", code="content_policy_violation"),
    ],
)
def test_a_refusal_is_no_score_and_is_final(answer: Answer, server: JudgeServer):
    verdict = ask(server, answer)
    assert (verdict.outcome, verdict.scores, verdict.final) == ("refused", {}, True)
    assert verdict.why.encode() and len(server.asked) == 1


def knows(*forms: str, status: int = 400) -> Callable[[Asked], Answer]:
    """A server that rejects other forms of answers."""

    def answer(asked: Asked) -> Answer:
        form = asked.body.get("response_format", {"type": "text"})["type"]
        return RIGHT if form in forms else error(status, f"response_format {form} is not supported")

    return answer


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize(("form", "requests"), [("json_object", 2), ("text", 3)])
def test_servers_that_know_less_are_asked_for_less_and_remembered(
    form: str, requests: int, status: int, server: JudgeServer
):
    server.answer = knows(form, status=status)
    with server.judge() as judge:
        assert judge.ask(ANNA, [PICTURE]).version.form == form and len(server.asked) == requests
        judge.ask(ANNA, [PICTURE])
        assert len(server.asked) == requests + 1


def test_reasoning_models_name_what_they_do_not_take(server: JudgeServer):
    """As OpenAI's do."""

    def answer(asked: Asked) -> Answer:
        if "max_tokens" in asked.body:
            return error(400, "Use 'max_completion_tokens' instead.", param="max_tokens", code="unsupported_parameter")
        if "temperature" in asked.body:
            return error(400, "Only the default (1) value is supported.", param="temperature")
        return RIGHT

    verdict = ask(server, answer)
    last = server.asked[-1].body
    assert verdict.version.form == "json_schema" and len(server.asked) == 3
    assert last["max_completion_tokens"] == 512 and "temperature" not in last


def test_a_picture_that_a_server_will_not_take_changes_nothing_for_the_next(server: JudgeServer):
    """It is tried in every form, but what did not help is not remembered."""
    with server.judge() as judge:
        server.answer = lambda asked: Answer({"detail": "the image is too large"}, 400)
        verdict = judge.ask(ANNA, [PICTURE])
        assert verdict.outcome == "unanswered" and verdict.why == "HTTP 400: the image is too large"
        server.answer = good
        assert judge.ask(ANNA, [PICTURE]).version.form == "json_schema"


def test_a_server_that_becomes_another_is_noticed(server: JudgeServer):
    with server.judge() as judge:
        judge.identify()
        assert judge.ask(ANNA, [PICTURE]).version.served == "example/tiny, server 1.2.3"
        server.version, server.models = "2.0", {"data": [{"id": MODEL}]}
        assert judge.ask(ANNA, [PICTURE]).version.served == "example/tiny, server 1.2.3"
        server.answer = lambda asked: Answer(status=0) if len(server.asked) == 3 else RIGHT
        assert judge.ask(ANNA, [PICTURE]).version.served == f"{MODEL}, server 2.0"


@pytest.mark.parametrize("models", [None, {"data": []}, {"data": [{"id": "other"}]}, {"error": "no"}, [1], {"data": 3}])
def test_servers_need_not_say_what_they_serve(models: Any, server: JudgeServer):
    server.models = models
    assert ask(server, good).version.served == ""


def test_models_are_listed(server: JudgeServer):
    with server.judge() as judge:
        assert judge.models() == [MODEL]
        server.models = None
        with pytest.raises(JudgeError, match="does not say which models it has"):
            judge.models()


def test_the_key_is_never_shown(server: JudgeServer, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    verdict = ask(server, error(500, "bad key sk-secret"), api_key=" sk-secret\n")
    assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    with server.judge(api_key="sk-secret") as judge:
        shown = [repr(judge), repr(verdict), *(f"{record.getMessage()} {record.args}" for record in caplog.records)]
    assert verdict.why == "HTTP 500: bad key …" and not [text for text in shown if "secret" in text]
    with pytest.raises(ValueError, match="control characters") as e:
        Judge(server.url, MODEL, "sk-\nsecret")
    assert "secret" not in str(e.value)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1"),
        ("http://localhost:8000/", "http://localhost:8000/v1"),
        (" https://api.openai.com/v1/ ", "https://api.openai.com/v1"),
        ("https://example.org/v1beta/openai/", "https://example.org/v1beta/openai"),
    ],
)
def test_addresses(given: str, meant: str):
    assert endpoint(given) == meant


@pytest.mark.parametrize(
    "given", ["localhost:8000", "", "ftp://a/v1", "http://", "http://a:b", "http://key:secret@host/v1"]
)
def test_what_is_no_address(given: str):
    with pytest.raises(ValueError, match="address of a server") as e:
        Judge(given, MODEL)
    assert "secret" not in str(e.value)
