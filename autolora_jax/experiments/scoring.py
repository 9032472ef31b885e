"""Drawn pictures -> results: features, scores, every cell's figures with their intervals and paired differences."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from autolora_jax.batch.plan import Plan
from autolora_jax.evaluation import Interval, equal
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
from autolora_jax.experiments.distances import (
    FAR,
    PIXELS,
    Pair,
    feature_distances,
    meanings,
    pixel_distances,
    reference_pairs,
)
from autolora_jax.experiments.drawn import Drawn, DrawnPictures, Shot
from autolora_jax.experiments.experiment import Cell, Experiment, assumed
from autolora_jax.experiments.results import EVALUATIONS, LABELS, UNKNOWN, CellResult, Results
from autolora_jax.experiments.scorers import CLIPSCORE, Scored, Scorer, asked_scores

OnProgress = Callable[[str, int, int], None]  # (stage, pictures done, of how many)
CONFIDENCE = 0.95
FEATURES, SCORES, CELLS = "Features", "Scores", "Cells"


class Method(NamedTuple):
    """How pictures are measured. cache: a folder for features. vendi: whether Vendi scores are wanted, too."""

    encoder: PictureEncoder
    scorer: Scorer
    cache: Path | None = None
    confidence: float = CONFIDENCE
    vendi: bool = False


class Measured(NamedTuple):
    """Of an experiment's pictures: key -> row of features and scores, of which those that are lost have neither.

    pixels: of pictures and the reference's, how far they are from each other.
    """

    by: Method
    rows: Mapping[str, int]
    features: np.ndarray
    scored: Scored
    pixels: Mapping[Pair, float] = {}

    @property
    def told(self) -> dict[str, str]:
        """How they were measured, for the provenance."""
        vendi = "; Vendi scores': by jackknife" if self.by.vendi else ""
        return {
            "features": f"{self.by.encoder.name} ({self.by.encoder.identity})",
            **self.scored.told,
            "intervals": f"{100 * self.by.confidence:g} %, by bootstrap over the pictures of each prompt{vendi}",
        }


_Set = tuple[Sequence[Shot], Sample]  # a cell's measured pictures


def measure(experiment: Experiment, drawn: Drawn, by: Method, on_progress: OnProgress | None = None) -> Measured | None:
    """Features and scores of all pictures that are there; None where the experiment asks nothing of its pictures.

    Raises what the encoder and the scorer raise; what they finished is in their caches.
    """
    if not experiment.asks:
        return None
    tell, count = on_progress or (lambda *_: None), len(drawn.pictures)
    found = collect(drawn.pictures, [by.encoder], by.cache, lambda done, _: tell(FEATURES, done, count))
    scored = by.scorer(drawn.pictures, experiment.asks, lambda done: tell(SCORES, done, count))
    pairs = (pair for cell in reference_pairs(experiment, drawn) for pair in cell.values())
    return _joined(drawn.pictures, found, by, scored)._replace(pixels=pixel_distances(drawn.pictures, pairs))


def results_of(
    experiment: Experiment,
    plan: Plan,
    drawn: Drawn,
    measured: Measured | None,
    provenance: Mapping[str, str],
    on_progress: OnProgress | None = None,
) -> Results:
    """The results of what is drawn and measured. provenance: what only the caller knows, to be added to."""
    pairs = reference_pairs(experiment, drawn)
    sets = [_set(*each, measured) for each in zip(drawn.cells, pairs, strict=True)] if measured else []
    beyond = _beyond(experiment, sets, measured.by.confidence) if measured else {}
    priced = any(EVALUATIONS in plot for plot in experiment.plots)
    cells = []
    for number, (cell, recipe, keys) in enumerate(zip(experiment.cells, plan.recipes, drawn.cells, strict=True)):
        result = CellResult(
            method=cell.method,
            at=cell.at,
            pictures=sum(key not in drawn.missing for key in keys.values()),
            evaluations=recipe.evaluations,
            settings={name: value for name, value in recipe.columns.items() if value is not None},
            figures={},
            published=dict(cell.published),
        )
        result = _measured(result, experiment, sets, number, measured.by) if measured else result
        result = result._replace(beyond=beyond.get(number, {}))
        if priced and result.figures:
            cost = UNKNOWN._replace(value=float(recipe.evaluations))
            result = result._replace(figures={EVALUATIONS: cost, **result.figures})
        cells.append(result)
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
        chart=experiment.chart,
        confidence=measured.by.confidence if measured else CONFIDENCE,
        meaning=_meanings(given, measured.by, experiment) if measured else {},
        assumptions=assumed(experiment),
        provenance={
            **provenance,
            **_sources(plan),
            **(measured.told if measured else {}),
            **_counted(drawn, measured),
        },
    )


def _joined(pictures: DrawnPictures, found: Collected, by: Method, scored: Scored) -> Measured:
    """Pictures that have features, with their scores; those that have none are lost, whatever their score."""
    place = {key: i for i, key in enumerate(pictures.keys)}
    order = [place[known.key] for known in found.pictures]
    scores = {name: values[order] for name, values in scored.scores.items()}
    rows = {known.key: i for i, known in enumerate(found.pictures)}
    kinds = {name: values[order] for name, values in scored.kinds.items()}
    known = scored._replace(scores=scores, lost={**scored.lost, **found.bad}, kinds=kinds)
    return Measured(by, rows, found.features[by.encoder.name], known)


def _set(cell: Mapping[Shot, str], pairs: Mapping[Shot, Pair], measured: Measured) -> _Set:
    shots = [shot for shot, key in cell.items() if key in measured.rows]
    rows = np.array([measured.rows[cell[shot]] for shot in shots], np.int64)
    scored, features = measured.scored, measured.features[rows]
    scores, kinds = ({name: values[rows] for name, values in of.items()} for of in (scored.scores, scored.kinds))
    if pairs:
        theirs = [measured.rows.get(pairs[shot][1], -1) if shot in pairs else -1 for shot in shots]
        others = np.where(np.array(theirs)[:, None] >= 0, measured.features[theirs], 0)  # 0: no direction, no distance
        scores[FAR] = feature_distances(features, others)
        scores[PIXELS] = np.array([measured.pixels[pairs[shot]] if shot in pairs else np.nan for shot in shots])
    return shots, Sample(numbered([prompt for prompt, _ in shots]), scores, features, kinds)


def _measured(result: CellResult, experiment: Experiment, sets: Sequence[_Set], number: int, by: Method) -> CellResult:
    """The cell with its figures, and their differences from those of the one that it is compared with."""
    shots, sample = sets[number]
    result = result._replace(pictures=len(shots), figures=_figures(sample, by))
    other = partner(experiment, experiment.cells[number])
    if other is None or not {*shots} & {*sets[other][0]}:
        return result
    before, after = pairs(sets[other][0], shots)
    differences = paired_differences(sets[other][1].rows(before), sample.rows(after), level=by.confidence)
    return result._replace(against=experiment.cells[other].method, differences=_meant(differences))


def _beyond(experiment: Experiment, sets: Sequence[_Set], confidence: float) -> dict[int, Mapping[str, Interval]]:
    """Cell -> what it has beyond its rivals, by the pictures that all cells of the map have."""
    if experiment.chart is None:
        return {}
    shared = set.intersection(*({*shots} for shots, _ in sets))
    order = [shot for shot in sets[0][0] if shot in shared]
    if not order:
        return {}
    rows = [{shot: row for row, shot in enumerate(shots)} for shots, _ in sets]
    known = [
        equal.redrawn(sample.rows(np.array([place[shot] for shot in order])))
        for place, (_, sample) in zip(rows, sets, strict=True)
    ]
    numbers: dict[str, list[int]] = {}
    for number, cell in sorted(enumerate(experiment.cells), key=lambda each: (each[1].at is not None, each[1].at)):
        numbers.setdefault(cell.method, []).append(number)
    _, _, spots, falling = experiment.chart
    found: dict[int, Mapping[str, Interval]] = {}
    for spot in spots:
        curves = [[known[i] for i in numbers[rival]] for rival in spot.rivals]
        for i in numbers[spot.method]:
            found[i] = _meant(equal.beyond(known[i], curves, experiment.chart.level, falling, confidence))
    return found


def _figures(sample: Sample, by: Method) -> dict[str, Interval]:
    """The figures of a cell's pictures; none without pictures."""
    if not len(sample.groups):
        return {}
    found = _meant(intervals(sample, level=by.confidence))
    if by.vendi and sample.features is not None:
        every = np.arange(len(sample.groups))
        found |= vendi_measure(sample.features, sample.groups, by.confidence)(every)
    return found


def _meant(figures: Mapping[str, Interval]) -> dict[str, Interval]:
    """Without products that nobody asks for: of diversity and a share."""
    return {name: each for name, each in figures.items() if name in LABELS or not name.startswith(f"{DIVERSITY}-")}


def partner(experiment: Experiment, cell: Cell) -> int | None:
    """The number of the cell that one is compared with: of the other method, at its place of the axis or at none."""
    other = experiment.pairs.get(cell.method)
    places = {each.at: i for i, each in enumerate(experiment.cells) if each.method == other}
    return places.get(cell.at, places.get(None))


def _renamed(name: str, names: Mapping[str, str]) -> str:
    """A figure's name, or that of a product, with the score that took another's place."""
    product, dash, score = name.rpartition("-")
    return product + dash + names.get(score, score)


def _meanings(given: set[str], by: Method, experiment: Experiment) -> dict[str, str]:
    encoder, reference = by.encoder.name, experiment.reference
    known = {
        DIVERSITY: f"diversity, Eq. 8 of the paper, of features by {encoder}, of each prompt, averaged over prompts",
        **by.scorer.meaning,
        **{f"{DIVERSITY}-{name}": f"{DIVERSITY} × the mean {name}" for name in by.scorer.meaning},
        VENDI: f"Vendi score of features by {encoder}: as how many wholly different pictures, within a prompt",
        EVALUATIONS: "how often the network is evaluated for a picture",
        **(meanings(_name(reference, experiment.axis)) if reference else {}),
    }
    return {name: meaning for name, meaning in known.items() if name in given}


def _name(place: tuple[str, float | None], axis: str) -> str:
    method, at = place
    return method if at is None else f"{method} at {axis} {at:g}"


def _sources(plan: Plan) -> dict[str, str]:
    """Models and LoRAs by name and hash."""
    told: dict[str, dict[str, None]] = {"model": {}, "LoRA": {}, "embedding": {}}
    for recipe in plan.recipes:
        model, loras, *_, words = recipe.load
        told["model"][f"{model.name}, sha256 {model.sha256}, {model.config.dtype}"] = None
        told["LoRA"] |= {f"{lora.name}, sha256 {lora.sha256}": None for lora in loras}
        told["embedding"] |= {f"{word.name}, sha256 {word.sha256}": None for word in words}
    return {name: "; ".join(lines) for name, lines in told.items() if lines}


def _counted(drawn: Drawn, measured: Measured | None) -> dict[str, str]:
    """How many pictures there are, and who is missing or has no score, and why."""
    told = {"pictures": f"{len(drawn.pictures):,} of {len(drawn.pictures) + len(drawn.missing):,} different ones"}
    if drawn.missing:
        told["pictures that are missing"] = _reasons(drawn.missing)
    if measured and measured.scored.lost:
        told["pictures without a score"] = _reasons(measured.scored.lost)
    return told


def _reasons(lost: Mapping[str, str]) -> str:
    """How many, by reason, the most frequent first."""
    counted = Counter(lost.values()).most_common()
    return f"{len(lost):,}: " + "; ".join(f"{count:,} {why}" for why, count in counted)
