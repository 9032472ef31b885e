"""Features that a job kept in place of its pictures, measured as the pictures would have been, without any model.

A file of them is safetensors with one array, "features", and the picture's settings in its header, as a PNG has them;
their entry "features" says by which model they are.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from autolora_jax.evaluation.features import Collected, Known
from autolora_jax.evaluation.pictures import KEPT, Picture

FEATURES = "features"  # the array, and the entry among the settings


class Source(NamedTuple):
    """A model that features are by: its name, and the identity of its PictureEncoder: of all that they depend on."""

    name: str
    identity: str


def source_of(picture: Picture) -> Source | None:
    """By which model the features are that stand for a picture; None for a picture as such.

    Raises ValueError for a safetensors file that holds something else.
    """
    if not picture.key.endswith(KEPT):
        return None
    told = picture.fields.get(FEATURES)
    if not isinstance(told, dict) or set(told) != set(Source._fields):
        raise ValueError(f"{picture.key} holds neither a picture nor features of one as autolora batch keeps them")
    return Source(**told)


def gather(pictures: Iterable[Picture], source: Source, on_progress: Callable[[int, str], None]) -> Collected:
    """The features that stand for pictures, as `collect` gives those that it computes.

    on_progress: as for `collect`. Raises ValueError where some are by others than `source`, or pictures.
    """
    known, vectors, bad = [], [], {}
    for picture in pictures:
        if (found := source_of(picture)) != source:
            what = f"features by {found.identity}" if found else "a picture"
            raise ValueError(f"{picture.key} holds {what}, others features by {source.identity}: measure them apart")
        try:
            vectors.append(load(picture.data)[FEATURES])
        except (SafetensorError, KeyError) as e:
            bad[picture.key] = f"can't be read ({e}); draw it again"
        else:
            known.append(Known(picture.key, picture.sha256, picture.fields))
        on_progress(len(known), "")
    return Collected(known, {source.name: np.stack(vectors)} if vectors else {}, bad)
