"""Who says how good pictures are: the built-in world's judge, a vision-language model, or CLIP in place of either."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from jaxtyping import Float, Int

from autolora_jax.demo.classifier import BATCH, Classifier
from autolora_jax.demo.judge import SURROUNDINGS, kinds_of, world_scores
from autolora_jax.demo.world import CONTEXT
from autolora_jax.evaluation.clipscore import CLIPSCORE, clip_scores_of
from autolora_jax.evaluation.encoders import Clip
from autolora_jax.evaluation.features import collect
from autolora_jax.evaluation.judge import QUESTIONS, Judged, Question
from autolora_jax.evaluation.judge.verdicts import SCORED
from autolora_jax.evaluation.scores import DIVERSITY
from autolora_jax.experiments.drawn import DrawnPictures
from autolora_jax.experiments.experiment import Ask
from autolora_jax.image_files import PictureError

VARIETY = "variety"  # of each part of the surroundings; it has no scores, but see Scored.kinds
# What only the world's classifier is asked: question -> scores, see demo.judge.
WORLDLY: Mapping[str, tuple[str, ...]] = {
    VARIETY: (),
    "surroundings": ("Surroundings", "All right"),
    "training context": ("Training context",),
}
OnScored = Callable[[int], None]  # pictures scored so far


class Scored(NamedTuple):
    """What n pictures got: names of scores -> [n], NaN for none, in the pictures' order.

    lost: key -> why it has no score. told: of the judge, for the provenance. again: whether a later run may score some
    of the lost ones. kinds: attribute -> what each picture shows of it, as a number.
    """

    scores: Mapping[str, Float[np.ndarray, "n"]]
    lost: Mapping[str, str]
    told: Mapping[str, str]
    again: bool = False
    kinds: Mapping[str, Int[np.ndarray, "n"]] = {}


class Scorer(Protocol):
    """Scores pictures. meaning: score -> what it is."""

    meaning: Mapping[str, str]

    def __call__(self, pictures: DrawnPictures, asks: Sequence[Ask], on_scored: OnScored) -> Scored: ...


def question_of(ask: Ask) -> Question:
    """The judge's question. Raises ValueError for one that only the built-in world's classifier can answer."""
    if ask.question in WORLDLY:
        raise ValueError(f"{ask.question!r} is asked of the built-in world's classifier alone: leave --judge out")
    return QUESTIONS[ask.question].about(**ask.parameters)


def asked_scores(asks: Sequence[Ask]) -> tuple[str, ...]:
    """The names of all scores that questions ask for."""
    return tuple(name for ask in asks for name in _scores(ask.question))


def _scores(question: str) -> tuple[str, ...]:
    return WORLDLY[question] if question in WORLDLY else QUESTIONS[question].scores


class WorldScorer:
    """The classifier of the built-in model's world, see demo.judge."""

    meaning: Mapping[str, str] = {
        "CPS": "character presence, 0 to 5: 5 × the probability that the world's classifier gives to the character",
        "PC": "prompt correspondence, 0 to 5: 5 × the share of what the prompt names that the classifier finds",
        "SA": "style adherence, 0 to 5: how much of the change between neighbouring pixels lies on pixel art's grid; "
        "0: as much as in any picture, 5: as much as the model's autoencoder lets through",
        "Surroundings": "share of the place, sky, size and side that the prompt names which the classifier finds",
        "All right": "share of pictures with the character and everything else that the prompt names",
        "Training context": f"share of pictures that show a {CONTEXT.place} at {CONTEXT.sky}, where all pictures were "
        "that the LoRA was trained on",
        **{f"{DIVERSITY} {name}": f"how often two pictures of a prompt differ in {name}" for name in SURROUNDINGS},
    }

    def __call__(self, pictures: DrawnPictures, asks: Sequence[Ask], on_scored: OnScored) -> Scored:
        classifier = Classifier.load()
        scores = {name: np.full(len(pictures), np.nan) for name in asked_scores(asks)}
        kinds = {name: np.zeros(len(pictures), np.int64) for name in SURROUNDINGS} if Ask(VARIETY) in asks else {}
        lost: dict[str, str] = {}
        numbered = enumerate(pictures)
        while batch := [*itertools.islice(numbered, BATCH)]:
            prompts, images = {i: str(picture.fields["prompt"]) for i, picture in batch}, {}
            for i, picture in batch:
                try:
                    images[i] = np.asarray(picture.image())
                except PictureError as e:
                    lost[picture.key] = str(e)
            if images:
                pixels = np.stack([*images.values()])
                judgement = classifier(pixels)
                found = world_scores(judgement, pixels, [prompts[i] for i in images]) | kinds_of(judgement)
                for name, values in (scores | kinds).items():
                    values[[*images]] = found[name]
            on_scored(batch[-1][0] + 1)
        told = {"judge": "the built-in world's classifier (demo/classifier.json: its accuracy)"}
        return Scored(scores, lost, told, kinds=kinds)


class ClipScorer:
    """CLIPScore, where there is no judge: how well a picture fits its prompt."""

    meaning: Mapping[str, str] = {
        CLIPSCORE: "how well the picture fits its prompt by CLIP alone, 0 to 100; in place of a judge's scores"
    }

    def __init__(self, clip: Clip, cache: Path | None) -> None:
        self._clip, self._cache = clip, cache

    def __call__(self, pictures: DrawnPictures, asks: Sequence[Ask], on_scored: OnScored) -> Scored:
        found = collect(pictures, [self._clip.pictures], self._cache, lambda done, _: on_scored(done))
        prompts = [str(known.fields["prompt"]) for known in found.pictures]
        values = clip_scores_of(self._clip, found.features[self._clip.pictures.name], prompts, self._cache)
        by_key = {known.key: value for known, value in zip(found.pictures, values, strict=True)}
        scores = np.array([by_key.get(key, np.nan) for key in pictures.keys], np.float64)
        told = {"judge": f"none; {CLIPSCORE} by {self._clip.pictures.name} in its place"}
        return Scored({CLIPSCORE: scores}, found.bad, told)


# Asks a judge about pictures: (pictures, question, on_scored) -> (verdicts in order, what to tell of asking).
Consult = Callable[[DrawnPictures, Question, OnScored], tuple[Sequence[Judged], Mapping[str, str]]]


class JudgeScorer:
    """A vision-language model behind a server."""

    meaning: Mapping[str, str] = {
        "CPS": "character presence, 0 to 5, by the judge",
        "PC": "prompt correspondence, 0 to 5, by the judge",
        "SA": "style adherence, 0 to 5, by the judge",
    }

    def __init__(self, consult: Consult) -> None:
        self._consult = consult

    def __call__(self, pictures: DrawnPictures, asks: Sequence[Ask], on_scored: OnScored) -> Scored:
        scores: dict[str, np.ndarray] = {}
        lost: dict[str, str] = {}
        told: dict[str, str] = {}
        again = False
        for ask in asks:
            question = question_of(ask)
            judged, about = self._consult(pictures, question, on_scored)
            told |= about
            unscored = (each for each in judged if each.verdict.outcome != SCORED)
            lost |= {each.picture: f"{each.verdict.outcome}: {each.verdict.why}" for each in unscored}
            again = again or not all(each.verdict.final for each in judged)
            for name in question.scores:
                scores[name] = np.array([each.verdict.scores.get(name, np.nan) for each in judged])
        return Scored(scores, lost, told, again)
