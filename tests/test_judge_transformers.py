"""transformers' own server (`transformers serve`) with a tiny vision-language model, as a judge.

Needs what `pip install "transformers[serving]"` brings. Half a minute on two idle cores; the server is started twice.
"""

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from autolora_jax.evaluation.judge import QUESTIONS, Judge, Judged, JudgeError, Patience, VerdictCache, judge, scores
from autolora_jax.evaluation.pictures import Pictures
from tests.judge_server import ANNA, shades
from tests.programs import autolora

pytestmark = pytest.mark.slow
STARTS_WITHIN = 120.0  # seconds; 6 on two idle cores


class Served:
    """A model folder behind `transformers serve`, on one port."""

    def __init__(self, model: Path, work: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        (work / "hub").mkdir(parents=True, exist_ok=True)  # without it the server can't list its models
        self.model, self.log = str(model), work / "log"
        self.environment = {**os.environ, "HF_HOME": str(work), "OMP_NUM_THREADS": "1"}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--device", "cpu"]
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", self.model, *where]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        until = time.monotonic() + STARTS_WITHIN
        while not self._answers():
            assert time.monotonic() < until and self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def _answers(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).status == 200
        except OSError:
            return False

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.wait()

    def judge(self, **settings: object) -> Judge:
        return Judge(f"http://127.0.0.1:{self.port}", self.model, **settings)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason='needs pip install "transformers[serving]"')
    from tests.tiny_judge import save_tiny_judge

    folder = tmp_path_factory.mktemp("served")
    save_tiny_judge(folder / "tiny-judge", ANNA.text)
    served = Served(folder / "tiny-judge", folder / "work")
    served.start()
    yield served
    served.kill()


def test_it_judges(served: Served, tmp_path: Path):
    """Each picture's score is its shade: question and picture reach the model, its answer comes back."""
    folder = shades(tmp_path / "a", 24)
    with served.judge() as by, VerdictCache(tmp_path / "cache") as cache:
        found = judge(Pictures(folder), ANNA, by, cache, concurrency=4)
        again = judge(Pictures(folder), ANNA, by, cache)
    assert scores(found, "CPS").tolist() == [float(i % 6) for i in range(24)]
    assert found[5].verdict.answer == {"score": 5, "reason": ["shade 5"]}
    assert {each.verdict.version.reported for each in found} == {f"{served.model}@main"}
    assert all(each.verdict.usage.prompt_tokens > 500 for each in found)
    assert all(each.reused for each in again)


def test_it_goes_on_when_the_server_is_killed_and_comes_back(served: Served, tmp_path: Path):
    folder = shades(tmp_path / "a", 60)
    found: list[list[Judged]] = []
    patient = Patience(tries=400, first=0.3, longest=0.3)
    came = threading.Semaphore(0)

    def run() -> None:
        with served.judge(patience=patient) as by, VerdictCache(tmp_path / "cache") as cache:
            found.append(judge(Pictures(folder), ANNA, by, cache, concurrency=3, on_progress=lambda _: came.release()))

    thread = threading.Thread(target=run)
    thread.start()
    for _ in range(5):
        assert came.acquire(timeout=60)
    served.kill()
    assert not found
    served.start()
    thread.join(120)
    assert scores(found[0], "CPS").tolist() == [float(i % 6) for i in range(60)]
    assert (tmp_path / "cache").read_bytes().count(b'"outcome": "scored"') == 60


def test_nonsense_is_no_score(served: Served, tmp_path: Path):
    """Of any other question the model knows nothing; a served judge that forces no form answers anything."""
    folder = shades(tmp_path / "a", 2)
    question = QUESTIONS["sa"].about(style="pixel art")
    with served.judge(reasks=1, max_tokens=30) as by, VerdictCache(tmp_path / "cache") as cache:
        found = judge(Pictures(folder), question, by, cache)
    for each in found:
        assert (each.verdict.outcome, each.verdict.scores) == ("malformed", {})
        assert each.verdict.usage.answers == len(each.verdict.texts) == 2


def test_what_it_does_not_serve_and_what_takes_too_long(served: Served, tmp_path: Path):
    folder = shades(tmp_path / "a", 3)
    with VerdictCache(tmp_path / "cache") as cache:
        with (
            Judge(f"http://127.0.0.1:{served.port}", "another") as other,
            pytest.raises(JudgeError, match="got no answer: HTTP 400: Server is pinned to"),
        ):
            judge(Pictures(folder), ANNA, other, cache, give_up=3)
        with served.judge(timeout=0.001, patience=Patience(2, 0.01)) as hasty:
            found = judge(Pictures(folder), ANNA, hasty, cache)
        assert [each.verdict.outcome for each in found] == ["unanswered"] * 3
        with served.judge() as by:
            assert scores(judge(Pictures(folder), ANNA, by, cache), "CPS").tolist() == [0.0, 1.0, 2.0]


def test_the_program(served: Served, tmp_path: Path):
    folder = shades(tmp_path / "a", 6)
    where = ["--base-url", f"http://127.0.0.1:{served.port}/v1", "--model", served.model]
    result = autolora("judge", folder, "--question", "cps", "--character", "Anna", *where)
    assert result.exit_code == 0 and result.stdout.startswith("CPS 2.500 "), result.output
