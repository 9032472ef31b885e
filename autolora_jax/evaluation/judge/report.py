"""What a run of a judge came to: how many of each outcome, means with intervals, who answered, what it took."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from autolora_jax.evaluation.intervals import Interval
from autolora_jax.evaluation.judge.questions import Question
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


@dataclass(frozen=True)
class Report:
    """means: score -> its interval. seconds: that this run took."""

    judged: Sequence[Judged]
    question: Question
    preparation: str
    means: Mapping[str, Interval]
    prices: Prices
    seconds: float

    @property
    def outcomes(self) -> Mapping[str, int]:
        """How many of each."""
        return Counter(each.verdict.outcome for each in self.judged)

    @property
    def versions(self) -> Mapping[str, int]:
        """Those who answered -> pictures."""
        return Counter(_who(each.verdict) for each in self.judged if each.verdict.usage.answers)

    @property
    def usage(self) -> Usage:
        """What all these verdicts took, whichever run asked for them."""
        return sum((each.verdict.usage for each in self.judged), Usage())

    @property
    def new(self) -> Usage:
        """What those of this run took."""
        return sum((each.verdict.usage for each in self.judged if not each.reused), Usage())

    @property
    def asked(self) -> int:
        """Pictures that this run asked about."""
        return sum(not each.reused for each in self.judged)

    def json(self) -> dict[str, Any]:
        """All of it, and every picture's verdict."""
        question: dict[str, Any] = {"name": self.question.name, "parameters": dict(self.question.parameters)}
        if not self.question.missing:  # else each picture has its own
            question |= {"text": self.question.text, "digest": self.question.digest}
        return {
            "question": question,
            "preparation": self.preparation,
            "outcomes": dict(self.outcomes),
            "scores": {each.name: _mean(self.means[each.name], each.best) for each in self.question.criteria},
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
    found = Sample(groups, {name: scores(judged, name) for name in question.scores})
    return Report(judged, question, preparation, intervals(found, **bootstrap), prices, seconds)


def _mean(interval: Interval, best: int) -> dict[str, float | None]:
    values = {**interval._asdict(), "of": best, "share": interval.value / best}
    return {name: None if np.isnan(value) else value for name, value in values.items()}


def _who(verdict: Verdict) -> str:
    """The judge in words: what was asked for, then what server and answer say it is."""
    told = asdict(verdict.version)
    return ", ".join([told.pop("model"), *(f"{name} {text}" for name, text in told.items() if text)])


def _row(judged: Judged) -> dict[str, Any]:
    verdict = judged.verdict
    row: dict[str, Any] = {"picture": judged.picture, "outcome": verdict.outcome, **verdict.scores}
    if verdict.outcome == SCORED:
        return {**row, "answer": dict(verdict.answer)}
    return {**row, "why": verdict.why}
