"""What is said of a cell: presence, diversity, agreement, and how much the LoRA drags its training context along."""

from collections.abc import Sequence

import numpy as np

from autolora_jax.demo.classifier import Judgement, agreement
from autolora_jax.demo.world import CHARACTER, LABELS
from autolora_jax.demo.world.character import CONTEXT
from autolora_jax.evaluation import Interval, bootstrap_interval, diversity_statistic, mean_statistic
from autolora_jax.evaluation.bootstrap import Statistic
from recipes.builtin.sweep.cells import Shot

PRESENCE, DIVERSITY, PRODUCT = "presence", "diversity", "diversity x presence"
DRAGGED, AGREEMENT, ALL_RIGHT = "training context", "agreement", "all right"
MEANING = {
    PRESENCE: f"mean probability that the classifier gives to a {CHARACTER}",
    DIVERSITY: "Eq. 8 of the paper on the classifier's features, of each prompt, averaged over the prompts",
    PRODUCT: "the product of the two",
    DRAGGED: f"share of pictures classified as {CONTEXT.place} at {CONTEXT.sky}, where all training pictures were",
    AGREEMENT: "share of the caption's place, sky, size and side that the classifier finds in the picture",
    ALL_RIGHT: f"share of pictures with a {CHARACTER} and everything else that the caption says",
}
SURROUNDINGS = ("place", "sky", "size", "side")


def statistics(judgement: Judgement, shots: Sequence[Shot]) -> dict[str, Statistic]:
    """The figures of a cell, as functions of how often each picture counts."""
    groups = groups_of(shots)
    presence = mean_statistic(judgement.presence)
    varied = diversity_statistic(judgement.features, groups)
    found = judgement.classes
    dragged = np.logical_and.reduce(
        [found[name] == LABELS[name].index(getattr(CONTEXT, name)) for name in ("place", "sky")]
    )
    figures = {
        PRESENCE: presence,
        DIVERSITY: varied,
        PRODUCT: _product(varied, presence),
        DRAGGED: mean_statistic(dragged.astype(float)),
    }
    scenes = [shot.scene for shot in shots if shot.scene]
    if scenes:
        judged = agreement(judgement, scenes)
        surroundings = np.nanmean([judged.right[name] for name in SURROUNDINGS], axis=0)
        figures |= {AGREEMENT: mean_statistic(surroundings), ALL_RIGHT: mean_statistic(judged.all_right)}
    return figures


def intervals(judgement: Judgement, shots: Sequence[Shot]) -> dict[str, Interval]:
    """The figures of a cell with their 95 % intervals."""
    return {n: bootstrap_interval(s, groups_of(shots)) for n, s in statistics(judgement, shots).items()}


def differences(one: Judgement, other: Judgement, shots: Sequence[Shot]) -> dict[str, Interval]:
    """`other` minus `one`, which were drawn of the same prompts and noise."""
    before, after = statistics(one, shots), statistics(other, shots)
    return {name: bootstrap_interval(_difference(after[name], before[name]), groups_of(shots)) for name in before}


def groups_of(shots: Sequence[Shot]) -> np.ndarray:
    """The number of each picture's prompt."""
    return np.array([shot.group for shot in shots])


def _product(one: Statistic, other: Statistic) -> Statistic:
    return lambda weights: one(weights) * other(weights)


def _difference(one: Statistic, other: Statistic) -> Statistic:
    return lambda weights: one(weights) - other(weights)
