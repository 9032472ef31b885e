"""Many pictures, a server that comes and goes, runs that are killed: nothing is lost, and no verdict asked twice."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autolora_jax.evaluation.judge import (
    QUESTIONS,
    Judged,
    JudgeError,
    Patience,
    Preparation,
    Prices,
    Progress,
    VerdictCache,
    judge,
    report,
    scores,
)
from autolora_jax.evaluation.pictures import Picture, Pictures
from tests.judge_server import ANNA, MODEL, Answer, Asked, JudgeServer, error, good, say, shades
from tests.programs import autolora

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with JudgeServer().serve() as server:
        yield server


def run(server: JudgeServer, folder: Path, question: Any = ANNA, *, settings: Any = None, **more: Any) -> list[Judged]:
    with server.judge(**(settings or {})) as by, VerdictCache(folder / ".cache" / "verdicts") as cache:
        return judge(Pictures(folder), question, by, cache, **more)


def expected(count: int) -> list[float]:
    return [float(i % 6) for i in range(count)]


def test_verdicts_come_in_order_and_once(server: JudgeServer, tmp_path: Path):
    """Later pictures are answered first."""
    folder = shades(tmp_path / "a", 20)
    server.answer = lambda asked: dataclasses.replace(good(asked), wait=0.02 * (5 - asked.shade))
    seen: list[Progress] = []
    found = run(server, folder, on_progress=seen.append)
    assert [each.picture for each in found] == [f"{i:03}.png" for i in range(20)]
    assert scores(found, "CPS").tolist() == expected(20)
    assert [progress.done for progress in seen] == [*range(1, 21)]
    assert {progress.latest.picture for progress in seen} == {each.picture for each in found}
    again = run(server, folder)
    assert [each.verdict for each in again] == [each.verdict for each in found] and all(e.reused for e in again)
    assert len(server.asked) == 20 and {*server.verdicts.values()} == {1}


def test_another_question_judge_or_preparation_is_asked_anew(server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 2)
    run(server, folder)
    run(server, folder, QUESTIONS["cps"].about(character="Elsa"))
    run(server, folder, preparation=Preparation("jpeg"))
    server.version = "1.2.4"
    run(server, folder)
    assert len(server.asked) == 8
    run(server, folder, settings={"max_tokens": 50, "reasks": 0})  # these change no answer that is whole
    assert len(server.asked) == 8


def test_what_was_judged_needs_no_server(tmp_path: Path):
    server = JudgeServer()
    folder = shades(tmp_path / "a", 4)
    with server.serve():
        run(server, folder)
    assert scores(run(server, folder), "CPS").tolist() == expected(4)


def test_equal_pictures_are_asked_about_once(server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 1)
    for i in range(12):
        (folder / f"copy{i}.png").write_bytes((folder / "000.png").read_bytes())
    server.answer = lambda asked: dataclasses.replace(good(asked), wait=0.1)
    found = run(server, folder)
    assert len(server.asked) == 1 and scores(found, "CPS").tolist() == [0.0] * 13


def test_a_server_that_misbehaves_in_every_way(server: JudgeServer, tmp_path: Path):
    """Each picture meets another fault first. In the end each has its score, from one verdict."""
    faults: list[Callable[[Asked], Answer]] = [
        lambda asked: error(429, headers={"Retry-After": "0.05"}),
        lambda asked: error(500),
        lambda asked: Answer(status=0),
        lambda asked: Answer(raw=b"<html>"),
        lambda asked: Answer(raw=b'{"choi', headers={"Content-Length": "99"}),
        lambda asked: dataclasses.replace(error(504), wait=0.5),
        lambda asked: say("It shows a shade of grey."),
        lambda asked: say('{"score": 11, "reason": []}'.replace("score", "mark")),
        lambda asked: say('{"scor', finish_reason="length"),
    ]
    folder = shades(tmp_path / "a", 2 * len(faults))

    def answer(asked: Asked) -> Answer:
        number = len({other.image for other in server.asked[: server.asked.index(asked) + 1]})
        return faults[number % len(faults)](asked) if asked.before == 0 else good(asked)

    server.answer = answer
    found = run(server, folder, settings={"timeout": 0.4})
    assert scores(found, "CPS").tolist() == expected(2 * len(faults))
    assert len(server.verdicts) == 2 * len(faults) and {*server.verdicts.values()} == {1}


def test_a_server_that_restarts_in_the_middle(tmp_path: Path):
    server, folder = JudgeServer(), shades(tmp_path / "a", 30)
    patient = {"patience": Patience(tries=50, first=0.05, longest=0.05)}
    found: list[list[Judged]] = []
    server.answer = lambda asked: dataclasses.replace(good(asked), wait=0.03)
    with server.serve():
        thread = threading.Thread(target=lambda: found.append(run(server, folder, settings=patient, concurrency=4)))
        thread.start()
        while len(server.verdicts) < 8:
            time.sleep(0.005)
    time.sleep(0.3)
    assert len(server.verdicts) < 30
    with server.serve():
        thread.join(30)
    assert scores(found[0], "CPS").tolist() == expected(30)
    received = sum(each.verdict.usage.answers for each in found[0])
    assert received == 30 and sum(server.verdicts.values()) <= 30 + 4  # at most those under way when it died


def test_pictures_without_a_score_are_told_from_a_score_of_0(server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 6)
    (folder / "002.png").write_bytes(b"no picture")

    def answer(asked: Asked) -> Answer:
        strange = {1: say(None, refusal="No."), 3: say("Hm."), 4: error(413, "too large")}
        return strange.get(asked.shade) or good(asked)

    server.answer = answer
    found = run(server, folder)
    outcomes = [each.verdict.outcome for each in found]
    assert outcomes == ["scored", "refused", "unreadable", "malformed", "unanswered", "scored"]
    np.testing.assert_array_equal(scores(found, "CPS"), [0, np.nan, np.nan, np.nan, np.nan, 5])
    before = len(server.asked)
    server.answer = good
    again = run(server, folder)
    assert [each.verdict.outcome for each in again] == [*outcomes[:3], "scored", "scored", "scored"]
    assert len(server.asked) == before + 2


def test_it_gives_up_when_nobody_answers(server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 40)
    server.answer = lambda asked: good(asked) if len(server.asked) <= 3 else error(413, "full")
    with pytest.raises(JudgeError, match="the last 5 pictures got no answer: HTTP 413: full"):
        run(server, folder, give_up=5, concurrency=1)
    assert len(server.asked) <= 10
    server.answer = good
    assert scores(run(server, folder), "CPS").tolist() == expected(40)
    assert {*server.verdicts.values()} == {1}


def test_it_stops_at_once_when_no_answer_can_come(server: JudgeServer, tmp_path: Path):
    server.answer = lambda asked: error(401, "wrong key")
    with pytest.raises(JudgeError, match="wrong key"):
        run(server, shades(tmp_path / "a", 40), concurrency=2)
    assert len(server.asked) <= 2


def test_pictures_are_taken_as_they_are_needed(server: JudgeServer, tmp_path: Path):
    """Never more of them than requests: a hundred thousand need no more memory than eight."""
    taken: list[int] = []
    pictures = [*Pictures(shades(tmp_path / "a", 30))]

    def source() -> Iterator[Picture]:
        for i, picture in enumerate(pictures):
            taken.append(i - len(server.verdicts))
            yield picture

    with server.judge() as by, VerdictCache(tmp_path / "cache") as cache:
        judge(source(), ANNA, by, cache, concurrency=3)
    assert max(taken) <= 3


def test_what_stops_a_run_loses_no_answer(server: JudgeServer, tmp_path: Path):
    """Those under way are waited for."""
    folder = shades(tmp_path / "a", 30)
    server.answer = lambda asked: dataclasses.replace(good(asked), wait=0.2)

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(server, folder, on_progress=stop, concurrency=4)
    assert len(server.asked) <= 8
    assert scores(run(server, folder), "CPS").tolist() == expected(30)
    assert {*server.verdicts.values()} == {1}


def test_who_waits_for_a_server_stops_at_once(tmp_path: Path):
    server, folder = JudgeServer(), shades(tmp_path / "a", 3)
    with server.serve():
        pass
    (folder / "zzz.png").write_bytes(b"no picture")

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(server, folder, on_progress=stop, settings={"patience": Patience(9, 60.0, 60.0)})
    assert time.monotonic() - began < 5


def test_prompts_are_those_of_the_pictures(server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 2)
    rows = [{"file": f"{i:03}.png", "prompt": f"prompt {i}"} for i in range(2)]
    (folder / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    server.answer = lambda asked: say('{"prompt_correspondence": 2, "style_adherence": 3}')
    found = run(server, folder, QUESTIONS["pc-sa"].about(style="pixel art"))
    assert [each.verdict.scores for each in found] == [{"PC": 2.0, "SA": 3.0}] * 2
    assert all(any(f'"prompt {asked.shade}"' in text for text in asked.texts) for asked in server.asked)
    (folder / "manifest.jsonl").unlink()
    with pytest.raises(ValueError, match="does not tell its prompt, which the question pc needs"):
        run(server, folder, QUESTIONS["pc"])


def test_a_report_counts_what_it_took(server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 12)
    server.answer = lambda asked: say("Hm.") if asked.before == 0 and asked.shade == 1 else good(asked)
    prices, groups = Prices(2.0, 10.0), np.zeros(12, np.int64)
    first = report(run(server, folder), ANNA, "png", groups, prices=prices)
    assert first.usage == first.new and first.usage.answers == 14 and first.asked == 12
    assert prices.of(first.usage) == pytest.approx(14 * (100 * 2 + 10 * 10) / 1e6)
    assert first.means["CPS"].value == 2.5 and first.means["CPS"].low < 2.5 < first.means["CPS"].high
    [(who, count)] = first.versions.items()
    assert count == 12 and who == (
        "tiny-judge, served example/tiny, server 1.2.3, reported tiny-judge-0711, fingerprint fp_1, form json_schema"
    )
    again = report(run(server, folder), ANNA, "png", groups, prices=prices)
    assert again.usage == first.usage and again.new.answers == again.asked == 0 and again.means == first.means
    content = json.loads(json.dumps(again.json(), allow_nan=False))
    assert content["scores"]["CPS"]["share"] == 0.5 and content["question"]["digest"] == ANNA.digest
    assert content["pictures"][3] == {
        "picture": "003.png",
        "outcome": "scored",
        "CPS": 3.0,
        "answer": {"score": 3, "reason": ["shade"]},
    }


# ---- the program -----------------------------------------------------------------------------------------------------


def command(server: JudgeServer, folder: Path, *more: Any) -> list[Any]:
    return ["judge", folder, "--question", "cps", "--character", "Anna", "--base-url", server.url, *more]


def test_the_program(server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    folder, out = shades(tmp_path / "a", 12), tmp_path / "found" / "anna.json"
    result = autolora(*command(server, folder, "--price-in", 2, "--price-out", 10, "--out", out))
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"CPS 2\.500 \(95 %: 1\.\d+ to 3\.\d+\) of 12 pictures\n", result.stdout)
    assert "cost 0.0036, 0.0036 of it now" in result.stderr and MODEL in result.stderr
    assert server.asked[0].headers["Authorization"] == "Bearer sk-secret"
    content = json.loads(out.read_text())
    assert content["endpoint"] == server.url and content["outcomes"] == {"scored": 12}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 13 and not [text for text in [result.output.encode(), *written] if b"secret" in text]
    again = autolora(*command(server, folder))
    assert again.stdout == result.stdout and len(server.asked) == 12
    assert (folder / ".autolora" / "verdicts.sqlite").exists()


def test_pictures_without_a_score_are_named(server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 6)
    server.answer = lambda asked: say("Who knows?") if asked.shade == 2 else good(asked)
    result = autolora(*command(server, folder))
    assert result.exit_code == 3 and "of 5 pictures" in result.stdout
    assert "002.png: malformed: the answer was not a JSON object alone" in result.stderr
    server.answer = lambda asked: say(None, refusal="No.")
    result = autolora(*command(server, folder))
    assert result.exit_code == 0 and "002.png: refused: No." in result.stderr


def test_figures_that_do_not_exist_are_not_printed(server: JudgeServer, tmp_path: Path):
    """One picture has no interval, and none has no mean."""
    assert autolora(*command(server, shades(tmp_path / "a", 1))).stdout == "CPS 0.000 of 1 pictures\n"
    server.answer = lambda asked: say(None, refusal="No.")
    result = autolora(*command(server, shades(tmp_path / "b", 2)))
    assert result.stdout == "" and "2 refused" in result.stderr and "nan" not in result.output


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--question", "beauty"], 2, "there are cps, pc, sa, pc-sa, sf, vqa"),
        (["--question", "cps"], 2, "needs --character"),
        (["--question", "sf"], 2, "needs --reference"),
        (["--question", "sf", "--reference", "{folder}/nothing.png"], 2, "nothing.png can't be read"),
        (["--question", "sf", "--reference", "{folder}/../no.png"], 2, "no.png is no picture"),
        (["--question", "sa", "--character", "Anna"], 2, "does not take character; it takes style, poor, good"),
        (["--question", "sa", "--style", "a", "--image-format", "gif"], 2, "there are png, jpeg"),
        (["--question", "pc"], 1, "000.png does not tell its prompt"),
        (["--question", "sa", "--style", "a", "--base-url", "nowhere"], 1, "is no address of a server"),
        (["--question", "sa", "--style", "a", "--cache", "{folder}/000.png"], 1, "is no cache of verdicts"),
    ],
)
def test_bad_flags(flags: list[str], code: int, message: str, server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 1)
    (tmp_path / "no.png").write_bytes(b"no picture")
    flags = [flag.format(folder=folder) for flag in flags]
    result = autolora("judge", folder, "--base-url", server.url, *flags)
    assert result.exit_code == code and message in result.stderr, result.output
    assert not server.asked


def test_the_subject_of_a_picture_is_shown_first(server: JudgeServer, tmp_path: Path):
    folder = shades(tmp_path / "a", 2)
    Image.new("RGB", (8, 8), (7, 7, 7)).save(tmp_path / "cat.png")
    server.answer = lambda asked: say(json.dumps({"subject_fidelity": 4 * asked.shade}))
    out = tmp_path / "found.json"
    flags = ["--base-url", server.url, "--question", "sf", "--reference", tmp_path / "cat.png", "--out", out]
    result = autolora("judge", folder, *flags)
    assert result.exit_code == 0 and result.stdout.startswith("SF 2.000"), result.output
    assert json.loads(out.read_text())["scores"]["SF"]["share"] == 0.5
    for asked in server.asked:
        first, second, text = asked.body["messages"][0]["content"]
        assert first["image_url"]["url"] == Preparation().data_uri(Image.open(tmp_path / "cat.png"))
        assert second["image_url"]["url"] != first["image_url"]["url"] and "The first is of a subject" in text["text"]


def test_a_server_with_several_models_asks_for_a_name(server: JudgeServer, tmp_path: Path):
    server.models = {"data": [{"id": "a"}, {"id": "b"}]}
    result = autolora(*command(server, shades(tmp_path / "a", 1)))
    assert result.exit_code == 1 and "lists 2 models (a, b): name one with --model" in result.stderr
    assert autolora(*command(server, tmp_path / "a", "--model", "b")).exit_code == 0


def test_a_wrong_key_is_one_line(server: JudgeServer, tmp_path: Path):
    server.answer = lambda asked: error(401, "wrong key sk-secret")
    result = autolora(*command(server, shades(tmp_path / "a", 3), "--api-key", "sk-secret"))
    assert result.exit_code == 1 and "HTTP 401: wrong key …" in result.stderr and "Traceback" not in result.output
    assert "the same command goes on from there" in result.stderr and "secret" not in result.output


def program(server: JudgeServer, folder: Path) -> "subprocess.Popen[str]":
    arguments = [str(a) for a in command(server, folder, "--concurrency", 3)]
    code = "import sys; from autolora_jax.cli import main; sys.argv[0] = 'autolora'; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_stopped_goes_on(number: signal.Signals, server: JudgeServer, tmp_path: Path):
    """Killed, it loses at most the answers that were under way; asked to stop, none."""
    folder = shades(tmp_path / "a", 40)
    server.answer = lambda asked: dataclasses.replace(good(asked), wait=0.05)
    process = program(server, folder)
    while len(server.verdicts) < 9 and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == {signal.SIGKILL: -9, signal.SIGTERM: 143}[number], told
    time.sleep(0.3)  # the server may still be answering who is dead
    with VerdictCache(folder / ".autolora" / "verdicts.sqlite") as cache:
        kept = len(cache)
    lost = sum(server.verdicts.values()) - kept
    assert 5 < kept < 40 and 0 <= lost <= (3 if number == signal.SIGKILL else 0)
    result = autolora(*command(server, folder))
    assert result.exit_code == 0 and "of 40 pictures" in result.stdout
    assert sum(server.verdicts.values()) == 40 + lost
