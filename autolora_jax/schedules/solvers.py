"""What a solver does with a grid, one linear update per step; which solvers there are, and for which checkpoints."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules import diffusion, flow
from autolora_jax.schedules.grid import Grid, Numbers, exponential_sigmas, karras_sigmas


class Steps(NamedTuple):
    """x' = keep·x + toward·denoised + previous·(denoised before) + fresh·z, per step."""

    keep: Numbers
    toward: Numbers
    previous: Numbers
    fresh: Numbers


def first_order(grid: Grid) -> Steps:
    """ε kept as the network sees it: x' = signal'·x0 + noise'·(x − signal·x0)/noise.

    On a VP grid this is DDIM (arXiv 2010.02502, Eq. 12, η = 0), on a VE or a flow grid Euler.
    """
    keep = grid.next_noise / grid.noise
    zeros = np.zeros_like(keep)
    return Steps(keep, grid.next_signal - grid.signal * keep, zeros, zeros)


def ancestral(grid: Grid) -> Steps:
    """A first-order step down past the next noise level, then fresh noise up to it.

    Source: k-diffusion get_ancestral_step, η = 1: σ_up² = σ'²(σ² − σ'²)/σ², hence σ_down = σ'²/σ.
    """
    sigma, target = grid.noise / grid.signal, grid.next_noise / grid.next_signal
    up = target * np.sqrt(1 - (target / sigma) ** 2)
    down = first_order(grid._replace(next_noise=grid.next_signal * target**2 / sigma))
    return down._replace(fresh=grid.next_signal * up)


def multistep(grid: Grid) -> Steps:
    """DPM-Solver++(2M), midpoint: the denoised picture is extrapolated from the last two.

    First order at the first step, at a last step to σ = 0, and at the last of fewer than 15 (diffusers'
    lower_order_final). Source: arXiv 2211.01095, Algorithm 2.
    """
    n = len(grid.noise)
    second = np.arange(n) > 0
    second[-1] &= n >= 15 and grid.next_noise[-1] > 0
    with np.errstate(divide="ignore"):  # log SNR is infinite at σ = 0, where `second` is False
        here, there = np.log(grid.signal / grid.noise), np.log(grid.next_signal / grid.next_noise)
    past = np.concatenate([here[:1] - 1, here[:-1]])  # the first entry is not used
    steps = first_order(grid)
    lean = np.where(second, steps.toward * np.where(second, there - here, 0) / (2 * (here - past)), 0)
    return steps._replace(toward=steps.toward + lean, previous=-lean)


class Solver(NamedTuple):
    """What a scheduler's name stands for. flow: for models that predict flow, and no others."""

    grid: Callable[[SchedulerConfig, int], Grid]
    step: Callable[[Grid], Steps]
    flow: bool = False


# diffusers' scheduler classes under short names. Other spacings of sigmas exist where diffusers has them.
SOLVERS: dict[str, Solver] = {
    "ddim": Solver(diffusion.ddim_grid, first_order),
    "euler": Solver(diffusion.euler_grid, first_order),
    "euler_karras": Solver(partial(diffusion.euler_grid, karras=True), first_order),
    "euler_ancestral": Solver(diffusion.euler_ancestral_grid, ancestral),
    "dpmpp_2m": Solver(diffusion.dpm_grid, multistep),
    "dpmpp_2m_karras": Solver(partial(diffusion.dpm_grid, karras=True), multistep),
    "flow_euler": Solver(flow.flow_euler_grid, first_order, flow=True),
    "flow_euler_karras": Solver(partial(flow.flow_euler_grid, respace=karras_sigmas), first_order, flow=True),
    "flow_euler_exponential": Solver(partial(flow.flow_euler_grid, respace=exponential_sigmas), first_order, flow=True),
    "flow_dpmpp_2m": Solver(flow.flow_dpm_grid, multistep, flow=True),
}


def solvers_for(config: SchedulerConfig) -> dict[str, Solver]:
    """The rows of SOLVERS that fit what a checkpoint predicts."""
    return {name: solver for name, solver in SOLVERS.items() if solver.flow == config.flow}


def own_scheduler(config: SchedulerConfig) -> str:
    """The key of SOLVERS that a checkpoint's file asks for. Raises ValueError where it is none of them."""
    if config.unknown:
        raise ValueError(
            f"the checkpoint asks for {config.unknown}, which is no solver of ours; name another with scheduler= "
            f"(--scheduler), such as {', '.join([*solvers_for(config)][:4])}"
        )
    asked = {"karras": config.use_karras_sigmas, "exponential": config.use_exponential_sigmas}
    names = [f"{config.solver}_{spacing}" for spacing, wanted in asked.items() if wanted]
    return next((name for name in names if name in SOLVERS), config.solver)
