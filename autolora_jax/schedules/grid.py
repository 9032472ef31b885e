"""Between which noise levels a run moves."""

from collections.abc import Callable
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
    down: Numbers | None = None  # noise / signal that a step goes down to before fresh noise leads it to the next


def karras_sigmas(largest: float, smallest: float, n: int) -> Numbers:
    """n sigmas evenly spaced in σ^(1/7), falling. Source: arXiv 2206.00364, Eq. 5, ρ = 7."""
    return (largest ** (1 / 7) + np.linspace(0, 1, n) * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7


def exponential_sigmas(largest: float, smallest: float, n: int) -> Numbers:
    """n sigmas evenly spaced in log σ, falling."""
    return np.exp(np.linspace(np.log(largest), np.log(smallest), n))


def beta_sigmas(largest: float, smallest: float, n: int) -> Numbers:
    """n sigmas, more of them near both ends, falling: quantiles of Beta(0.6, 0.6). Source: arXiv 2407.12173, α, β."""
    from scipy.stats import beta  # half a second, for those who ask

    quantiles: Numbers = beta.ppf(1 - np.linspace(0, 1, n), 0.6, 0.6)
    return smallest + quantiles * (largest - smallest)


Respace = Callable[[float, float, int], Numbers]  # (largest, smallest, n) -> n sigmas, falling
# The ends of solvers' names -> how their sigmas are spaced between the ends of the usual ones.
RESPACED: dict[str, Respace] = {
    "karras": karras_sigmas,
    "exponential": exponential_sigmas,
    "beta": beta_sigmas,
}
