"""What came of asking a judge about a picture."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

SCORED = "scored"
REFUSED = "refused"  # the judge, or a filter before it, would not answer: no score, and not 0
MALFORMED = "malformed"  # it answered, but however often it was asked, not in the form that was asked for
UNANSWERED = "unanswered"  # the server gave no answer
UNREADABLE = "unreadable"  # the picture's file can't be decoded

FINAL = frozenset({SCORED, REFUSED})  # not asked again


@dataclass(frozen=True)
class Usage:
    """What answers took: tokens as the server counts them, seconds until they were there, how many there were."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    answers: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(*(a + b for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


@dataclass(frozen=True)
class Version:
    """Which judge answered.

    model: as it was asked for; served: what the server lists under that name, and its own version; reported,
    fingerprint: what the answer itself says; form: how the answer's form was asked for. Empty where nothing is said.
    """

    model: str
    served: str = ""
    reported: str = ""
    fingerprint: str = ""
    form: str = ""


@dataclass(frozen=True)
class Verdict:
    """answer: the JSON object, of a scored picture; why: what happened, of any other; texts: what was said instead."""

    outcome: str
    version: Version
    answer: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    why: str = ""
    texts: tuple[str, ...] = ()
    usage: Usage = Usage()

    @property
    def final(self) -> bool:
        return self.outcome in FINAL

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> "Verdict":
        """Raises TypeError or KeyError when it is none."""
        parts = {"version": Version(**record["version"]), "usage": Usage(**record["usage"])}
        return cls(**{**record, **parts, "texts": tuple(record["texts"])})
