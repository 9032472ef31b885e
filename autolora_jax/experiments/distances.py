"""How far pictures are from those of another cell from the same prompts and noise: in features, and in grey levels."""

from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Float

from autolora_jax.experiments.drawn import Drawn, DrawnPictures, Shot
from autolora_jax.experiments.experiment import Experiment
from autolora_jax.image_files import PictureError

FAR, PIXELS = "Distance", "Pixels"
Pair = tuple[str, str]  # keys of two pictures


def meanings(reference: str) -> dict[str, str]:
    """Figure -> what it is. reference: the method whose pictures are near."""
    near = f"of the picture and of {reference}'s from the same noise, averaged"
    return {
        FAR: f"1 − the cosine of the features {near}; 0: the same",
        PIXELS: f"root mean square of the difference in grey levels, of 255, {near}",
    }


def reference_pairs(experiment: Experiment, drawn: Drawn) -> list[Mapping[Shot, Pair]]:
    """Of each cell: shot -> its picture and the reference's; nothing where there is no reference, or of itself."""
    places = [(cell.method, cell.at) for cell in experiment.cells]
    if not experiment.reference:
        return [{}] * len(places)
    chosen = places.index(experiment.reference)
    there, exact = {*drawn.pictures.keys}, drawn.cells[chosen]
    return [
        {}
        if i == chosen
        else {shot: (key, exact[shot]) for shot, key in cell.items() if {key, exact.get(shot)} <= there}
        for i, cell in enumerate(drawn.cells)
    ]


def feature_distances(features: Float[np.ndarray, "n d"], others: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n"]:
    """1 − the cosine, row by row; NaN for one without a direction."""
    one, other = (each.astype(np.float64) for each in (features, others))
    with np.errstate(invalid="ignore"):  # 0 / 0
        return 1 - (one * other).sum(axis=1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))


def pixel_distances(pictures: DrawnPictures, pairs: Iterable[Pair]) -> dict[Pair, float]:
    """Root mean squares of differences, 0 to 255; NaN where a picture can't be read or they differ in size."""
    found: dict[Pair, float] = {}
    for pair in pairs:
        if pair not in found:
            try:
                one, other = (np.asarray(pictures.one(key).image(), np.float64) for key in pair)
            except PictureError:
                found[pair] = np.nan
            else:
                found[pair] = np.sqrt(np.mean(np.square(one - other))) if one.shape == other.shape else np.nan
    return found
