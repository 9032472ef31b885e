"""What a solver does with a grid, one linear update per step; which solvers there are, and for which checkpoints."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules import diffusion, flow
from autolora_jax.schedules.grid import RESPACED, Grid, Numbers


class Steps(NamedTuple):
    """x' = keep·x + toward·denoised + previous·(the one before) + earlier·(the one before that) + fresh·z, per step."""

    keep: Numbers
    toward: Numbers
    previous: Numbers
    earlier: Numbers
    fresh: Numbers


# Each takes the grid, and how many steps the run has whose last ones these are: diffusers' DPM-Solver++ minds.


def first_order(grid: Grid, n: int) -> Steps:
    """ε kept as the network sees it: x' = signal'·x0 + noise'·(x − signal·x0)/noise.

    On a VP grid this is DDIM (arXiv 2010.02502, Eq. 12, η = 0), on a VE or a flow grid Euler.
    """
    keep = grid.next_noise / grid.noise
    zeros = np.zeros_like(keep)
    return Steps(keep, grid.next_signal - grid.signal * keep, zeros, zeros, zeros)


def renoised(grid: Grid, n: int) -> Steps:
    """A first-order step down past the next noise level, to grid.down, then fresh noise up to it."""
    assert grid.down is not None
    up = np.sqrt((grid.next_noise / grid.next_signal) ** 2 - grid.down**2)
    steps = first_order(grid._replace(next_noise=grid.next_signal * grid.down), n)
    return steps._replace(fresh=grid.next_signal * up)


def ancestral(grid: Grid, n: int) -> Steps:
    """Source: k-diffusion get_ancestral_step, η = 1: σ_up² = σ'²(σ² − σ'²)/σ², hence σ_down = σ'²/σ."""
    sigma, target = grid.noise / grid.signal, grid.next_noise / grid.next_signal
    return renoised(grid._replace(down=target**2 / sigma), n)


def consistency(grid: Grid, n: int) -> Steps:
    """The picture as it is seen, and fresh noise on it, as consistency models are sampled: arXiv 2310.04378.

    What is seen is the denoised picture, and of x what the boundary condition leaves, c_skip and c_out for σ_data = 0.5
    at ten times the timestep. Source: diffusers scheduling_lcm.py get_scalings_for_boundary_condition_discrete.
    """
    t = 10 * grid.timestep
    skip, out = 0.25 / (t**2 + 0.25), t / np.sqrt(t**2 + 0.25)
    zeros = np.zeros_like(t)
    return Steps(grid.next_signal * skip, grid.next_signal * out, zeros, zeros, grid.next_noise)


def multistep(grid: Grid, n: int, noisy: bool = False) -> Steps:
    """DPM-Solver++(2M), midpoint: the denoised picture is extrapolated from the last two.

    First order at the first step, at a last step to σ = 0, and at the last of fewer than 15 (diffusers'
    lower_order_final). Source: arXiv 2211.01095, Algorithm 2; noisy: its SDE-DPM-Solver++(2M): a step as if it were
    twice as long in log SNR, and fresh noise that makes up for it.
    """
    here, there = _log_snr(grid)
    second = np.arange(len(here)) > 0
    second[-1] &= n >= 15 and grid.next_noise[-1] > 0
    past = np.concatenate([here[:1] - 1, here[:-1]])  # the first entry is not used
    steps = first_order(grid, n)
    if noisy:
        left = np.exp(here - there)  # of the noise that there is; 0 at a step to σ = 0
        gain = grid.next_signal * (1 - left**2)
        steps = steps._replace(keep=steps.keep * left, toward=gain, fresh=grid.next_noise * np.sqrt(1 - left**2))
    lean = np.where(second, steps.toward * np.where(second, there - here, 0) / (2 * (here - past)), 0)
    return steps._replace(toward=steps.toward + lean, previous=-lean)


def unipc(grid: Grid, n: int) -> Steps:
    """UniPC of second order, B(h) = e^h − 1: each step corrects the one before by what is seen now, then predicts.

    x + (what the correction adds to it) is what diffusers calls the corrected sample; both are linear in the last three
    denoised pictures. Source: arXiv 2302.04867; diffusers scheduling_unipc_multistep.py.
    """
    count = len(grid.noise)
    here, there = _log_snr(grid)
    second = np.zeros(count, bool)
    second[1:-1] = True  # of the predictor: the first step has nothing to lean on, the last none to be corrected by
    with np.errstate(divide="ignore", invalid="ignore"):
        h = there - here
        past = np.concatenate([[1.0], h[:-1]])  # the first entry is not used
        gain = -np.expm1(-h)  # of the denoised picture in a step of first order
        ratio = -past / h  # where the one before stands, in units of the step
    steps = first_order(grid, n)
    lean = np.where(second, 0.5 * grid.next_signal * gain / np.where(second, ratio, 1), 0)
    toward, previous, earlier = steps.toward - lean, lean.copy(), np.zeros(count)
    for i in range(1, count):
        now, before, earliest = _correction(grid, i - 1, h[i - 1], ratio[i - 1], bool(second[i - 1]))
        toward[i] += steps.keep[i] * now
        previous[i] += steps.keep[i] * before
        earlier[i] += steps.keep[i] * earliest
    return Steps(steps.keep, toward, previous, earlier, np.zeros(count))


def _correction(grid: Grid, i: int, h: float, ratio: float, second: bool) -> tuple[float, float, float]:
    """What is added to x after step i, of the picture denoised there, of the one before and of the one before that.

    second: whether the step had two to lean on, as its correction then has, too.
    """
    gain = grid.next_signal[i] * -np.expm1(-h)
    if not second:
        return 0.5 * gain, -0.5 * gain, 0.0
    # φ's of −h over B(−h): the sides of the system that diffusers solves for order 2
    phi = np.expm1(-h) / -h - 1
    sides = np.array([phi, 2 * (phi / -h - 0.5)]) / np.expm1(-h)
    lean, last = np.linalg.solve(np.array([[1, 1], [ratio, 1]]), sides)
    lean = gain * (lean - 0.5) / ratio  # the predictor had leant by half of it
    return gain * last, -gain * last - lean, lean


def _log_snr(grid: Grid) -> tuple[Numbers, Numbers]:
    """log(signal / noise) where steps begin and where they end, infinite at σ = 0."""
    with np.errstate(divide="ignore"):
        return np.log(grid.signal / grid.noise), np.log(grid.next_signal / grid.next_noise)


class Solver(NamedTuple):
    """What a scheduler's name stands for.

    grid: (config, steps) -> where they go. step: (grid, steps of the whole run) -> what they do.
    flow: for models that predict flow, and no others. spacing: of timesteps, where it is not the checkpoint's.
    eta: the usual share of fresh noise, of solvers whose grid takes it.
    """

    grid: Callable[..., Grid]
    step: Callable[[Grid, int], Steps]
    flow: bool = False
    spacing: str | None = None
    eta: float | None = None


def _respaced(name: str, grid: Any, step: Any, **more: Any) -> dict[str, Solver]:
    """A solver, and it with each other spacing of its sigmas."""
    rows = {f"{name}_{end}": Solver(partial(grid, respace=respace), step, **more) for end, respace in RESPACED.items()}
    return {name: Solver(grid, step, **more), **rows}


# diffusers' scheduler classes under short names. Other spacings of sigmas exist where diffusers has them.
SOLVERS: dict[str, Solver] = {
    "ddim": Solver(diffusion.ddim_grid, first_order),
    **_respaced("euler", diffusion.euler_grid, first_order),
    "euler_ancestral": Solver(diffusion.euler_ancestral_grid, ancestral),
    **_respaced("dpmpp_2m", diffusion.dpm_grid, multistep),
    **_respaced("dpmpp_2m_sde", diffusion.dpm_grid, partial(multistep, noisy=True)),
    **_respaced("unipc", diffusion.dpm_grid, unipc),
    "lcm": Solver(diffusion.lcm_grid, consistency, spacing="distilled"),
    "tcd": Solver(diffusion.tcd_grid, renoised, spacing="distilled", eta=0.3),
    **_respaced("flow_euler", flow.flow_euler_grid, first_order, flow=True),
    "flow_dpmpp_2m": Solver(flow.flow_dpm_grid, multistep, flow=True),
}

# Those whose steps can be divided: they move along σ alone, and remember nothing from step to step.
FINER = tuple(name for name, solver in SOLVERS.items() if solver.step is first_order and name != "ddim")


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
    names = [f"{config.solver}_{end}" for end in RESPACED if getattr(config, f"use_{end}_sigmas")]
    return next((name for name in names if name in SOLVERS), config.solver)


def own_spacing(config: SchedulerConfig, solver: str) -> str | None:
    """The timestep_spacing of a solver on a checkpoint where none is asked for; None of flows, which have none."""
    return None if config.flow else SOLVERS[solver].spacing or config.timestep_spacing
