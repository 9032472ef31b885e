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


class Summary(NamedTuple):
    """What a run is about to do, told before its first step.

    buckets: (height, width) in pixels -> pictures. captions: different ones. layers: component -> layers that learn.
    parameters: numbers that learn. rows: pictures a step. finished: steps that are done, by a checkpoint.
    """

    model: str
    pictures: int
    buckets: Mapping[tuple[int, int], int]
    captions: int
    layers: Mapping[str, int]
    parameters: int
    devices: int
    rows: int
    steps: int
    steps_per_epoch: int
    finished: int
