"""What a run of a judge came to: how many of each outcome, means with intervals, who answered, what it took."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from autolora_jax.evaluation.intervals import Interval
from autolora_jax.evaluation.judge.questions import BEST, Question
from autolora_jax.evaluation.judge.run import Judged
from autolora_jax.evaluation.judge.verdicts import SCORED, Usage, Verdict
from autolora_jax.evaluation.scores import Sample, intervals


@dataclass(frozen=True)
class Prices:
    """Of a million tokens that are sent, and that are answered; in whatever currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, usage: Usage) -> float:
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


def scores(judged: Iterable[Judged], name: str) -> Float[np.ndarray, "n"]:
    """A score of each picture; NaN where it has none."""
    return np.array([each.verdict.scores.get(name, np.nan) for each in judged])


def as_share(score: float) -> float:
    """A score on a scale of 0 to 1."""
    return score / BEST


@dataclass(frozen=True)
class Report:
    """means: score -> its interval; versions: those who answered -> pictures.

    usage: what all these verdicts took, whichever run asked for them; new: those of this run. asked: pictures that
    this run asked about; seconds: that it took.
    """

    question: Question
    preparation: str
    outcomes: Mapping[str, int]
    means: Mapping[str, Interval]
    versions: Mapping[str, int]
    usage: Usage
    new: Usage
    asked: int
    seconds: float
    prices: Prices
    judged: Sequence[Judged]

    def json(self) -> dict[str, Any]:
        """All of it, and every picture's verdict."""
        question: dict[str, Any] = {"name": self.question.name, "parameters": dict(self.question.parameters)}
        if not self.question.missing:  # else each picture has its own
            question |= {"text": self.question.asked().text, "digest": self.question.asked().digest}
        return {
            "question": question,
            "preparation": self.preparation,
            "outcomes": dict(self.outcomes),
            "scores": {name: _mean(interval) for name, interval in self.means.items()},
            "judges": dict(self.versions),
            "usage": self._usage(self.usage),
            "this run": {"pictures asked about": self.asked, "seconds it took": self.seconds} | self._usage(self.new),
            "pictures": [_row(each) for each in self.judged],
        }

    def _usage(self, usage: Usage) -> dict[str, Any]:
        return {**asdict(usage), "cost": self.prices.of(usage)}


def report(
    judged: Sequence[Judged],
    question: Question,
    preparation: str,
    groups: Int[np.ndarray, "n"],
    *,
    prices: Prices = Prices(),
    seconds: float = 0.0,
    **bootstrap: Any,
) -> Report:
    """groups: of each picture (its prompt); bootstrap: as bootstrap_interval takes them. The rest: see Report."""
    asked = [each for each in judged if not each.reused]
    usage, new = (sum((each.verdict.usage for each in some), Usage()) for some in (judged, asked))
    means = intervals(Sample(groups, {name: scores(judged, name) for name in question.scores}), **bootstrap)
    return Report(
        question,
        preparation,
        Counter(each.verdict.outcome for each in judged),
        means,
        Counter(_who(each.verdict) for each in judged if each.verdict.usage.answers),
        usage,
        new,
        len(asked),
        seconds,
        prices,
        judged,
    )


def _mean(interval: Interval) -> dict[str, float | None]:
    values = {**interval._asdict(), "of": BEST, "share": as_share(interval.value)}
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def _who(verdict: Verdict) -> str:
    """The judge in words: what was asked for, then what server and answer say it is."""
    version = verdict.version
    told = {
        "served": version.served,
        "reported": version.reported,
        "fingerprint": version.fingerprint,
        "form": version.form,
    }
    return ", ".join([version.model, *(f"{name} {text}" for name, text in told.items() if text)])


def _row(judged: Judged) -> dict[str, Any]:
    verdict = judged.verdict
    row: dict[str, Any] = {"picture": judged.picture, "outcome": verdict.outcome, **verdict.scores}
    if verdict.outcome == SCORED:
        return {**row, "answer": dict(verdict.answer)}
    return {**row, "why": verdict.why}
