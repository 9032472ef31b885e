"""Between which noise levels a run moves."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64

Numbers = Float64[np.ndarray, "_"]  # of the steps, or of the training timesteps


class Grid(NamedTuple):
    """Step i leads from x = signal[i]·x0 + noise[i]·ε to next_signal[i]·x0 + next_noise[i]·ε.

    The next of one step need not be the start of the following one: diffusers' DDIM steps down by a fixed number of
    timesteps whatever the spacing.
    """

    timestep: Numbers
    signal: Numbers
    noise: Numbers
    next_signal: Numbers
    next_noise: Numbers
    input_scale: Numbers
    initial_scale: float


def karras_sigmas(largest: float, smallest: float, n: int) -> Numbers:
    """n sigmas evenly spaced in σ^(1/7), falling. Source: arXiv 2206.00364, Eq. 5, ρ = 7."""
    return (largest ** (1 / 7) + np.linspace(0, 1, n) * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7


def exponential_sigmas(largest: float, smallest: float, n: int) -> Numbers:
    """n sigmas evenly spaced in log σ, falling."""
    return np.exp(np.linspace(np.log(largest), np.log(smallest), n))
