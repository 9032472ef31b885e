"""What a long call of the pipeline tells its caller."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Partial(NamedTuple):
    """Pictures that are being drawn. latents, denoised: float32 [n h/8 w/8 c], as the steps so far have left them, and
    the finished latents that the last step saw in them: `pipe.decode` makes pictures of either."""

    pictures: list[int]  # their places in the call's Output
    latents: np.ndarray
    denoised: np.ndarray


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a long call is doing: stage "load", "encode", "sample" (its first step includes compiling) or "decode"."""

    stage: str
    done: int
    total: int
    what: str = ""
    partial: Callable[[], Partial] | None = None  # of "sample": fetches what the pictures have come to


OnProgress = Callable[[Progress], None]
