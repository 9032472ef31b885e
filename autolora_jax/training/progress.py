"""What a long training call tells whoever started it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple


class TrainProgress(NamedTuple):
    """stage: "latents", "captions", "train" (with metrics: loss, gradient_norm, learning_rate), "sample", "save"."""

    stage: str
    done: int
    total: int
    metrics: Mapping[str, float] = MappingProxyType({})


OnTrain = Callable[[TrainProgress], None]
