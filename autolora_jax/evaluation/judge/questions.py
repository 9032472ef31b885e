"""What a judge is asked about a picture, and how its answer becomes scores.

    CPS  character presence, 0 to 5: how surely a named character is in the picture, with keywords that say why
    PC   prompt correspondence, 0 to 5: how well the picture holds what its prompt says
    SA   style adherence, 0 to 5: how well it keeps to a named style
    SF   subject fidelity, 0 to 4: how well it keeps the subject of another picture, a photograph of one's cat, say
    VQAScore  0 to 1: how likely the judge is to begin with "yes", asked whether the picture shows its prompt

A question asks for one or more of them in one text, which is all a judge gets beside the picture. There is no system
message: the chat template of Llama 3.2 Vision, the paper's judge, long refused those beside pictures.
Source: arXiv 2410.03941, appendix A, worded anew; "pc-sa" is its one question about both. The paper multiplies means
on the scale of 0 to 5 by the diversity. SF asks in our words for what the question about the subject of arXiv
2406.16855 (DreamBench++) does, by its criteria and on its scale; the other one there, about the prompt, is PC.
VQAScore: arXiv 2404.01291, section 3, with its question.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autolora_jax.evaluation.judge.protocol import Answering, InAWord, InJson

BEST = 5
REFERENCE = "reference"  # the parameter that is a picture's path
KEYWORDS = {"type": "array", "items": {"type": "string"}}
# Style -> what shows that a picture fails it, and that it keeps it.
STYLES = {
    "pixel art": ("unclear pixels, aliasing, too many colours", "clear pixels, a limited palette, little aliasing")
}


@dataclass(frozen=True)
class Criterion:
    """A score, the text that asks for it, and the keys of the answer.

    needs, takes: names of parameters of `text` that must be, and may be, given. best: the highest score.
    """

    name: str
    key: str
    needs: tuple[str, ...]
    takes: tuple[str, ...]
    text: Callable[..., str]
    keywords: str | None = None
    best: int = BEST


@dataclass(frozen=True)
class Question:
    """Criteria and what is known of them already; the rest may differ from picture to picture."""

    name: str
    criteria: tuple[Criterion, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[str, ...]:
        """Parameters that it needs and has not been given."""
        return tuple(name for each in self.criteria for name in each.needs if not self.parameters.get(name))

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of the scores that an answer gives."""
        return tuple(each.name for each in self.criteria)

    def about(self, **parameters: str) -> "Question":
        """The question with more of it known. Raises ValueError for parameters that it does not take."""
        known = [name for each in self.criteria for name in (*each.needs, *each.takes)]
        if unknown := sorted(parameters.keys() - known):
            raise ValueError(
                f"the question {self.name} does not take {', '.join(unknown)}; it takes {', '.join(known)}"
            )
        return replace(self, parameters={**self.parameters, **parameters})

    @property
    def text(self) -> str:
        """What a judge gets beside the picture. Raises ValueError while something is missing."""
        texts = self._texts()
        example = ", ".join(
            f'"{key}": {["keyword"] if kind is KEYWORDS else 0}'.replace("'", '"')
            for key, kind in self.schema["properties"].items()
        )
        form = f"Answer with a JSON object alone and nothing before or after it, in this form: {{{example}}}"
        return "\n\n".join([*texts, form])

    def _texts(self) -> list[str]:
        if self.missing:
            raise ValueError(f"the question {self.name} needs {', '.join(self.missing)}")
        return [
            each.text(**{name: text for name, text in self.parameters.items() if name in (*each.needs, *each.takes)})
            for each in self.criteria
        ]

    @property
    def shows(self) -> tuple[Path, ...]:
        """Pictures that a judge is shown before the one that it is asked about."""
        return (Path(self.parameters[REFERENCE]),) if REFERENCE in self.parameters else ()

    @property
    def answering(self) -> Answering:
        """How it is to be answered."""
        return InJson(self.schema)

    @property
    def schema(self) -> dict[str, Any]:
        """The JSON Schema of an answer."""
        keys = {each.key: {"type": "integer", "enum": [*range(each.best + 1)]} for each in self.criteria} | {
            each.keywords: KEYWORDS for each in self.criteria if each.keywords
        }
        return {"type": "object", "properties": keys, "required": [*keys], "additionalProperties": False}

    @property
    def digest(self) -> str:
        """Of all that is asked and shown, in hexadecimal digits. Raises ValueError while something is missing.

        Raises OSError for a picture that is gone.
        """
        shown = [_sha256(path, path.stat().st_mtime_ns) for path in self.shows]
        content = json.dumps([self.text, self.schema, *shown], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "replace")).hexdigest()

    def of(self, answer: Mapping[str, Any]) -> dict[str, float]:
        """The scores of a valid answer, by name: 0 to each one's best."""
        return {each.name: float(answer[each.key]) for each in self.criteria}


class Likelihood(Question):
    """One criterion, asked as a question of yes or no: its score is how likely "yes" is as the first word."""

    @property
    def text(self) -> str:
        return self._texts()[0]

    @property
    def answering(self) -> Answering:
        return InAWord(("yes", "no"))

    @property
    def schema(self) -> dict[str, Any]:
        """None: it is no JSON."""
        return {}


@functools.lru_cache(maxsize=8)
def _sha256(path: Path, modified: int) -> str:
    """Of a file as it was then: asked for with every picture."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _presence(character: str, description: str = "") -> str:
    who = f"{character} ({description})" if description else character
    return f"""Is the character {who} in this picture? Give a score from 0 to 5:
0: {character} is absent.
1: there is a vague resemblance, such as hair or a dress of the same colour.
2: there are some similarities, but no clear match.
3: it is similar to {character}, with noticeable differences.
4: it is very likely {character}, with minor differences.
5: it is unmistakably {character}.
Give the reason for your score as a list of keywords."""


def _correspondence(prompt: str) -> str:
    return f"""This picture was generated from a prompt. The prompt is: {json.dumps(prompt, ensure_ascii=False)}
How well does the picture capture the essence, the objects and the scenes of the prompt? Give a score from 0 to 5:
0: not at all.
1: very poorly.
2: somewhat.
3: fairly well.
4: very well.
5: exactly."""


def _adherence(style: str, poor: str = "", good: str = "") -> str:
    known_poor, known_good = STYLES.get(style, ("", ""))
    poor, good = (f" ({signs})" if signs else "" for signs in (poor or known_poor, good or known_good))
    return f"""How well does the picture adhere to the style: {style}? Give a score from 0 to 5:
1: very poorly{poor}.
2: somewhat.
3: fairly well{good}.
4: very well.
5: perfectly.
Tell true {style} from a picture that is merely of low quality."""


def _fidelity(reference: str, subject: str = "") -> str:
    named = subject or "what it shows in its middle, not its background"
    return f"""You are shown two pictures. The first is of a subject: {named}. The second was generated
and should show the same subject, maybe elsewhere, in another pose, light or style. How well is the subject kept? Look
at shape, colours, texture, and, of a person or an animal, at the face; do not judge place, pose or light. Give a score
from 0 to 4:
0: it is not there, or nothing of it is alike.
1: it is of the same kind at best, and differs in most of these.
2: some of these are alike, and some clearly are not.
3: it is alike in nearly all of them, with slight differences.
4: it is the same one."""


def _shows(prompt: str) -> str:
    return f'Does this figure show "{prompt}"? Please answer yes or no.'


PRESENCE = Criterion("CPS", "score", ("character",), ("description",), _presence, "reason")
CORRESPONDENCE = Criterion("PC", "prompt_correspondence", ("prompt",), (), _correspondence)
ADHERENCE = Criterion("SA", "style_adherence", ("style",), ("poor", "good"), _adherence)
FIDELITY = Criterion("SF", "subject_fidelity", (REFERENCE,), ("subject",), _fidelity, best=4)
SHOWING = Criterion("VQAScore", "yes", ("prompt",), (), _shows, best=1)

QUESTIONS = {
    question.name: question
    for question in (
        Question("cps", (PRESENCE,)),
        Question("pc", (CORRESPONDENCE,)),
        Question("sa", (ADHERENCE,)),
        Question("pc-sa", (CORRESPONDENCE, ADHERENCE)),
        Question("sf", (FIDELITY,)),
        Likelihood("vqa", (SHOWING,)),
    )
}
