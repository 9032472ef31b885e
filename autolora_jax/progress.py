"""What a long call of the pipeline tells its caller."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Progress:
    """What a long call is doing: stage "load", "encode", "sample" (its first step includes compiling) or "decode"."""

    stage: str
    done: int
    total: int
    what: str = ""


OnProgress = Callable[[Progress], None]
