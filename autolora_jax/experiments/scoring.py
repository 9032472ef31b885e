"""Drawn pictures -> results: features, scores, every cell's figures with their intervals and paired differences."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autolora_jax.batch.plan import Plan
from autolora_jax.evaluation import Interval
from autolora_jax.evaluation.features import Collected, PictureEncoder, collect
from autolora_jax.evaluation.scores import (
    DIVERSITY,
    VENDI,
    Sample,
    intervals,
    numbered,
    paired_differences,
    pairs,
    vendi_measure,
)
from autolora_jax.experiments.drawn import Drawn, DrawnPictures, Shot
from autolora_jax.experiments.experiment import Cell, Experiment, assumed
from autolora_jax.experiments.results import LABELS, CellResult, Results
from autolora_jax.experiments.scorers import CLIPSCORE, Scored, Scorer, asked_scores

OnProgress = Callable[[str, int, int], None]  # (stage, pictures done, of how many)
FEATURES, SCORES, CELLS = "Features", "Scores", "Cells"


class Method(NamedTuple):
    """How pictures are measured. cache: a folder for features. vendi: whether Vendi scores are wanted, too."""

    encoder: PictureEncoder
    scorer: Scorer
    cache: Path | None = None
    confidence: float = 0.95
    vendi: bool = False


class Measured(NamedTuple):
    """Of an experiment's pictures: key -> row of features and scores; and who has none of either, and why."""

    rows: Mapping[str, int]
    features: np.ndarray
    scores: Mapping[str, np.ndarray]
    lost: Mapping[str, str]
    told: Mapping[str, str]
    again: bool


class _Set(NamedTuple):
    """A cell's measured pictures."""

    shots: Sequence[Shot]
    sample: Sample


def measure(experiment: Experiment, drawn: Drawn, by: Method, on_progress: OnProgress | None = None) -> Measured | None:
    """Features and scores of all pictures that are there; None where the experiment asks nothing of its pictures.

    Raises what the encoder and the scorer raise; what they finished is in their caches.
    """
    if not experiment.asks:
        return None
    tell, count = on_progress or (lambda *_: None), len(drawn.pictures)
    found = collect(drawn.pictures, [by.encoder], by.cache, lambda done, _: tell(FEATURES, done, count))
    scored = by.scorer(drawn.pictures, experiment.asks, lambda done: tell(SCORES, done, count))
    return _joined(drawn.pictures, found, by.encoder.name, scored)


def results_of(
    experiment: Experiment,
    plan: Plan,
    drawn: Drawn,
    measured: Measured | None,
    by: Method | None,
    provenance: Mapping[str, str],
    on_progress: OnProgress | None = None,
) -> Results:
    """The results of what is drawn and measured. provenance: what only the caller knows, to be added to."""
    sets = [_set(cell, measured) for cell in drawn.cells] if measured and by else []
    cells = []
    for number, cell in enumerate(experiment.cells):
        recipe = plan.recipes[number]
        result = CellResult(
            method=cell.method,
            at=cell.at,
            pictures=len(sets[number].shots) if sets else _there(drawn, number),
            evaluations=recipe.evaluations,
            settings={name: value for name, value in recipe.columns.items() if value is not None},
            figures=_figures(sets[number], by) if by and sets else {},
            published=dict(cell.published),
        )
        cells.append(_compared(result, experiment, sets, number, by) if by and sets else result)
        if on_progress:
            on_progress(CELLS, number + 1, len(experiment.cells))
    asked, given = asked_scores(experiment.asks), {name for cell in cells for name in cell.figures}
    renamed = {} if not given or given & {*asked} else dict.fromkeys(asked, CLIPSCORE)
    return Results(
        name=experiment.name,
        title=experiment.title,
        axis=experiment.axis,
        cells=tuple(cells),
        prompts=tuple(prompt.text for prompt in plan.prompts),
        seeds=max(len(seeds) for seeds in plan.seeds),
        plots=tuple(dict.fromkeys((_renamed(x, renamed), _renamed(y, renamed)) for x, y in experiment.plots)),
        frontier=tuple(_renamed(name, renamed) for name in experiment.frontier),
        confidence=by.confidence if by else 0.95,
        meaning=_meanings(given, by),
        assumptions=assumed(experiment),
        provenance={
            **provenance,
            **_sources(plan),
            **({"features": f"{by.encoder.name} ({by.encoder.identity})"} if by and measured else {}),
            **(measured.told if measured else {}),
            **({"intervals": _how_sure(by)} if by and measured else {}),
            **_counted(drawn, measured),
        },
    )


def _joined(pictures: DrawnPictures, found: Collected, encoder: str, scored: Scored) -> Measured:
    """Pictures that have features, with their scores; those that have none are lost, whatever their score."""
    place = {key: i for i, key in enumerate(pictures.keys)}
    order = [place[known.key] for known in found.pictures]
    return Measured(
        rows={known.key: i for i, known in enumerate(found.pictures)},
        features=found.features[encoder],
        scores={name: values[order] for name, values in scored.scores.items()},
        lost={**scored.lost, **found.bad},
        told=scored.told,
        again=scored.again,
    )


def _set(cell: Mapping[Shot, str], measured: Measured) -> _Set:
    shots = [shot for shot, key in cell.items() if key in measured.rows]
    rows = np.array([measured.rows[cell[shot]] for shot in shots], np.int64)
    scores = {name: values[rows] for name, values in measured.scores.items()}
    return _Set(shots, Sample(numbered([prompt for prompt, _ in shots]), scores, measured.features[rows]))


def _figures(cell: _Set, by: Method) -> dict[str, Interval]:
    """The cell's figures; none without pictures."""
    if not cell.shots:
        return {}
    found = _meant(intervals(cell.sample, level=by.confidence))
    if by.vendi and cell.sample.features is not None:
        every = np.arange(len(cell.shots))
        found |= vendi_measure(cell.sample.features, cell.sample.groups, by.confidence)(every)
    return found


def _compared(result: CellResult, experiment: Experiment, sets: Sequence[_Set], number: int, by: Method) -> CellResult:
    """The cell with its differences from the one that it is compared with."""
    other = partner(experiment, experiment.cells[number])
    if other is None:
        return result
    mine, theirs = sets[number], sets[other]
    if not {*mine.shots} & {*theirs.shots}:
        return result
    before, after = pairs(theirs.shots, mine.shots)
    differences = paired_differences(theirs.sample.rows(before), mine.sample.rows(after), level=by.confidence)
    return result._replace(against=experiment.cells[other].method, differences=_meant(differences))


def _meant(figures: Mapping[str, Interval]) -> dict[str, Interval]:
    """Without products that nobody asks for: of diversity and a share."""
    return {name: each for name, each in figures.items() if name in LABELS or not name.startswith(f"{DIVERSITY}-")}


def partner(experiment: Experiment, cell: Cell) -> int | None:
    """The number of the cell that one is compared with: of the other method, at its place of the axis or at none."""
    other = experiment.pairs.get(cell.method)
    places = {each.at: i for i, each in enumerate(experiment.cells) if each.method == other}
    return places.get(cell.at, places.get(None))


def _there(drawn: Drawn, number: int) -> int:
    return sum(key not in drawn.missing for key in drawn.cells[number].values())


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """A figure's name, or that of a product, with the score that took another's place."""
    product, dash, score = name.rpartition("-")
    return product + dash + names.get(score, score)


def _meanings(given: set[str], by: Method | None) -> dict[str, str]:
    if by is None:
        return {}
    encoder = by.encoder.name
    known = {
        DIVERSITY: f"diversity, Eq. 8 of the paper, of features by {encoder}, of each prompt, averaged over prompts",
        **by.scorer.meaning,
        **{f"{DIVERSITY}-{name}": f"{DIVERSITY} × the mean {name}" for name in by.scorer.meaning},
        VENDI: f"Vendi score of features by {encoder}: as how many wholly different pictures, within a prompt",
    }
    return {name: meaning for name, meaning in known.items() if name in given}


def _how_sure(by: Method) -> str:
    vendi = "; Vendi scores': by jackknife" if by.vendi else ""
    return f"{100 * by.confidence:g} %, by bootstrap over the pictures of each prompt{vendi}"


def _sources(plan: Plan) -> dict[str, str]:
    """Models and LoRAs by name and hash."""
    told: dict[str, dict[str, None]] = {"model": {}, "LoRA": {}, "embedding": {}}
    for recipe in plan.recipes:
        model, loras, words = recipe.load
        told["model"][f"{model.name}, sha256 {model.sha256}, {model.config.dtype}"] = None
        told["LoRA"] |= {f"{lora.name}, sha256 {lora.sha256}": None for lora in loras}
        told["embedding"] |= {f"{word.name}, sha256 {word.sha256}": None for word in words}
    return {name: "; ".join(lines) for name, lines in told.items() if lines}


def _counted(drawn: Drawn, measured: Measured | None) -> dict[str, str]:
    """How many pictures there are, and who is missing or has no score, and why."""
    told = {"pictures": f"{len(drawn.pictures):,} of {len(drawn.pictures) + len(drawn.missing):,} different ones"}
    if drawn.missing:
        told["pictures that are missing"] = _reasons(drawn.missing)
    if measured and measured.lost:
        told["pictures without a score"] = _reasons(measured.lost)
    return told


def _reasons(lost: Mapping[str, str]) -> str:
    """How many, by reason, the most frequent first."""
    counted = Counter(lost.values()).most_common()
    return f"{len(lost):,}: " + "; ".join(f"{count:,} {why}" for why, count in counted)
