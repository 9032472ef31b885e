"""Schedules: every solver as a table of numbers, so that one compiled sampler serves them all.

Along a run the state is x = signal·x0 + noise·ε, ε of unit variance. A `Grid` says between which (signal, noise) each
step moves and at which timestep the network is asked:

| grid | (signal, noise)        | the network sees | used by                             |
|------|------------------------|------------------|-------------------------------------|
| VP   | (√ᾱ, √(1−ᾱ))           | x                | DDIM, DPM-Solver++, UniPC, LCM, TCD |
| VE   | (1, σ), σ = √(1/ᾱ − 1) | x/√(1 + σ²)      | Euler, Euler ancestral              |
| flow | (1−σ, σ)               | x                | flow-match Euler, flow DPM-Solver++ |

A `PREDICTIONS` row turns the network's output into the denoised picture x0, and a `SOLVERS` row joins a grid with a
step: both are linear in their inputs, so a whole run is a `Schedule` of coefficients. Everything here is numpy on the
host, in float64, rounded to float32 at the end. Another family is a grid function, a prediction row and a solver row.
"""

from autolora_jax.schedules.diffusion import SPACINGS, alphas_cumprod, training_sigmas
from autolora_jax.schedules.flow import flow_training_sigmas, shift_sigmas
from autolora_jax.schedules.grid import Grid
from autolora_jax.schedules.solvers import FINER, SOLVERS, Solver, own_scheduler, own_spacing, solvers_for
from autolora_jax.schedules.table import PREDICTIONS, Known, Schedule, make_schedule, skipped_steps

__all__ = [
    "FINER",
    "PREDICTIONS",
    "SOLVERS",
    "SPACINGS",
    "Grid",
    "Known",
    "Schedule",
    "Solver",
    "alphas_cumprod",
    "flow_training_sigmas",
    "make_schedule",
    "own_scheduler",
    "own_spacing",
    "shift_sigmas",
    "skipped_steps",
    "solvers_for",
    "training_sigmas",
]
