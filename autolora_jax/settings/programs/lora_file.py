"""Options of the programs that make one LoRA out of others."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from autolora_jax.settings.fields import setting
from autolora_jax.settings.programs.program import Program

RANKS, FILE = "Ranks", "File"  # panels of --help


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranked(Program):
    """A program whose LoRA has the ranks that are asked for."""

    # No accelerator is taken, one core does the work: on the matrices of a network LAPACK's threads wait for each other
    # more than they work; an eigendecomposition of [1280, 1280] took 0.5 s with two, 0.16 s with one.
    ENVIRONMENT: ClassVar[Mapping[str, str]] = {"JAX_PLATFORMS": "cpu", "OPENBLAS_NUM_THREADS": "1"}
    PANEL: ClassVar[str] = RANKS

    out: Path = setting(help="The new .safetensors file.", short="-o", panel=FILE, metavar="FILE")
    max_error: float | None = setting(
        None,
        "Let every layer choose: the fewest ranks that miss at most this share of its change (Frobenius norm of what "
        "is missing over that of the change), such as 0.05. Then --rank is the most that a layer gets.",
        metavar="SHARE",
    )
    conv_rank: int | None = setting(
        None,
        "Instead of --rank for 3x3 convolutions, whose ranks are the largest; 0 leaves them out.",
        shown="as --rank",
    )
