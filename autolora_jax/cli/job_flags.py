"""Flags of the programs that draw large jobs."""

from typing import Annotated

from autolora_jax.cli.flags import option

RUN = "Run"  # panel of --help

BatchSize = Annotated[int | None, option("--batch-size", panel=RUN, default="4", help="Pictures per device at once.")]
Retry = Annotated[bool, option("--retry", panel=RUN, help="Draw also what failed before, or came out not finite.")]
Calibrate = Annotated[
    bool, option("--calibrate", panel=RUN, help="(--dry-run) Draw a batch to estimate the time, and drop it.")
]
