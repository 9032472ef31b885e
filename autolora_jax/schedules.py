"""Schedules: every solver as a table of numbers, so that one compiled sampler serves them all.

Along a run the state is x = signal·x0 + noise·ε, ε of unit variance. A `Grid` says between which (signal, noise) each
step moves and at which timestep the network is asked:

| grid | (signal, noise)        | the network sees | used by                |
|------|------------------------|------------------|------------------------|
| VP   | (√ᾱ, √(1−ᾱ))           | x                | DDIM, DPM-Solver++     |
| VE   | (1, σ), σ = √(1/ᾱ − 1) | x/√(1 + σ²)      | Euler, Euler ancestral |

A `PREDICTIONS` row turns the network's output into the denoised picture x0, and a `SOLVERS` row joins a grid with a
step: both are linear in their inputs, so a whole run is a `Schedule` of coefficients. Everything here is numpy on the
host, in float64, rounded to float32 at the end. Another family (flow matching: signal = 1−σ, noise = σ) is a grid
function, a prediction row and a solver row.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Float64

from autolora_jax.config import SchedulerConfig

Numbers = Float64[np.ndarray, "_"]  # of the steps, or of the training timesteps
Row = Float[Any, "n"]  # numpy from make_schedule, traced inside the sampler
T = TypeVar("T")


class Schedule(NamedTuple):
    """Coefficients of a run of n steps, float32. For step i, with unit-variance noise z and x = initial_scale·z first:

        prediction = network(input_scale[i]·x, timestep[i])
        denoised   = denoised_from_x[i]·x + denoised_from_prediction[i]·prediction
        x          = keep[i]·x + toward[i]·denoised + previous[i]·(last step's denoised) + fresh[i]·z_i

    and x is the latents. z_i is needed only if `fresh` has an entry that is not 0.
    """

    timestep: Row  # 0..num_train_timesteps−1, not always whole
    input_scale: Row
    denoised_from_x: Row
    denoised_from_prediction: Row
    keep: Row
    toward: Row
    previous: Row
    fresh: Row
    initial_scale: Float[Any, ""]


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


class Steps(NamedTuple):
    """x' = keep·x + toward·denoised + previous·(denoised before) + fresh·z, per step."""

    keep: Numbers
    toward: Numbers
    previous: Numbers
    fresh: Numbers


class Solver(NamedTuple):
    """What a scheduler's name stands for."""

    grid: Callable[[SchedulerConfig, int], Grid]
    step: Callable[[Grid], Steps]


def make_schedule(
    config: SchedulerConfig,
    num_inference_steps: int,
    scheduler: str | None = None,
    timestep_spacing: str | None = None,
) -> Schedule:
    """The table of a run.

    num_inference_steps: 1..config.num_train_timesteps.
    scheduler: a key of SOLVERS; None is the checkpoint's own, with Karras sigmas if its file asks for them.
    timestep_spacing: a key of SPACINGS; None is the checkpoint's own.
    Raises ValueError for unknown names and for steps that do not fit the training timesteps.
    """
    if not 1 <= num_inference_steps <= config.num_train_timesteps:
        raise ValueError(
            f"num_inference_steps should be between 1 and the {config.num_train_timesteps} training timesteps, "
            f"not {num_inference_steps}; 20 to 50 is usual"
        )
    solver = _choose(SOLVERS, scheduler or own_scheduler(config), "scheduler")
    spacing = config.timestep_spacing if timestep_spacing is None else timestep_spacing
    _choose(SPACINGS, spacing, "timestep_spacing")
    config = dataclasses.replace(config, timestep_spacing=spacing)
    grid = solver.grid(config, num_inference_steps)
    _check(grid, config)
    steps = solver.step(grid)
    from_x, from_prediction = _choose(PREDICTIONS, config.prediction_type, "prediction_type")(grid.signal, grid.noise)
    arrays = (grid.timestep, grid.input_scale, from_x, from_prediction, *steps, grid.initial_scale)
    return Schedule(*(np.asarray(a, np.float32) for a in arrays))


def own_scheduler(config: SchedulerConfig) -> str:
    """The key of SOLVERS that a checkpoint's file asks for."""
    karras = f"{config.solver}_karras"
    return karras if config.use_karras_sigmas and karras in SOLVERS else config.solver


def _choose(table: Mapping[str, T], name: str, what: str) -> T:
    if name not in table:
        close = difflib.get_close_matches(name, table, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"{what} {name!r} is not known; {hint}Use one of {', '.join(table)}")
    return table[name]


def _check(grid: Grid, config: SchedulerConfig) -> None:
    """Refuses grids that stand still or leave the training timesteps (diffusers repeats or clamps them silently)."""
    t, last = grid.timestep, config.num_train_timesteps - 1
    falls = np.diff(grid.noise / np.hypot(grid.signal, grid.noise)) < 0
    if t.min() < 0 or t.max() > last or not falls.all():
        raise ValueError(
            f"{len(t)} steps with {config.timestep_spacing!r} spacing and steps_offset {config.steps_offset} do not "
            f"fit the training timesteps 0..{last} ({t[0]:g} to {t[-1]:g}); use fewer steps or 'trailing' spacing"
        )


def _linspace32(start: float, stop: float, n: int) -> Float[np.ndarray, "_"]:
    """torch.linspace in float32: counted from both ends, which numpy's is not; differs in the last bit."""
    first, last = np.float32(start), np.float32(stop)
    step = np.float64((last - first) / np.float32(n - 1))
    i = np.arange(n)
    return np.where(i < n // 2, first + step * i, last - step * (n - 1 - i)).astype(np.float32)


BETAS: dict[str, Callable[[float, float, int], Float[np.ndarray, "_"]]] = {
    "scaled_linear": lambda start, stop, n: _linspace32(start**0.5, stop**0.5, n) ** 2,
    "linear": _linspace32,
}


def _cumulative(alphas: Float[np.ndarray, "_"]) -> Float[np.ndarray, "_"]:
    return np.cumprod(alphas, dtype=np.float64).astype(np.float32)  # torch accumulates in float64 too


def alphas_cumprod(config: SchedulerConfig) -> Numbers:
    """ᾱ_t for t = 0..num_train_timesteps−1: the very float32 numbers that diffusers holds.

    In float64 from the start, 1 − ᾱ_0 would differ by 2.6e-5 of itself, and the last sigmas with it.
    """
    one = np.float32(1)
    make_betas = _choose(BETAS, config.beta_schedule, "beta_schedule")
    alphas = one - make_betas(config.beta_start, config.beta_end, config.num_train_timesteps)
    if config.rescale_betas_zero_snr:
        # Shift and scale √ᾱ so that it ends at 0 and starts where it did. Source: arXiv 2305.08891, Algorithm 1.
        root = np.sqrt(_cumulative(alphas))
        root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
        alpha_bar = root**2
        # Through betas and back, as diffusers does it, to round alike.
        betas = one - np.concatenate([alpha_bar[:1], alpha_bar[1:] / alpha_bar[:-1]])
        alphas = one - betas
    return _cumulative(alphas).astype(np.float64)


def training_sigmas(config: SchedulerConfig) -> Numbers:
    """σ_t = √(1/ᾱ_t − 1), rising, for t = 0..num_train_timesteps−1."""
    alpha_bar = alphas_cumprod(config)
    if config.rescale_betas_zero_snr:
        alpha_bar[-1] = 2.0**-24  # diffusers' stand-in for 0: σ = 4096 where it would be infinite
    return np.sqrt((1 - alpha_bar) / alpha_bar)


def _leading(config: SchedulerConfig, n: int) -> Numbers:
    return np.arange(n)[::-1] * float(config.num_train_timesteps // n) + config.steps_offset


def _linspace(config: SchedulerConfig, n: int) -> Numbers:
    return np.linspace(0, config.num_train_timesteps - 1, n)[::-1]


def _trailing(config: SchedulerConfig, n: int) -> Numbers:
    # [:n]: the last of arange can be a rounding error above 0 (n = 61), where diffusers takes an extra step at t = −1
    return np.arange(config.num_train_timesteps, 0, -config.num_train_timesteps / n)[:n].round() - 1


# Falling timesteps. Source: arXiv 2305.08891, Table 2.
SPACINGS: dict[str, Callable[[SchedulerConfig, int], Numbers]] = {
    "leading": _leading,
    "linspace": _linspace,
    "trailing": _trailing,
}


def _karras(largest: float, smallest: float, n: int) -> Numbers:
    """n sigmas evenly spaced in σ^(1/7), falling. Source: arXiv 2206.00364, Eq. 5, ρ = 7."""
    return (largest ** (1 / 7) + np.linspace(0, 1, n) * (smallest ** (1 / 7) - largest ** (1 / 7))) ** 7


def _sigma_to_timestep(sigma: Numbers, table: Numbers) -> Numbers:
    return np.interp(np.log(sigma), np.log(table), np.arange(len(table)))


FINAL_SIGMAS: dict[str, Callable[[Numbers], float]] = {"zero": lambda table: 0.0, "sigma_min": lambda table: table[0]}


def _append_final(config: SchedulerConfig, sigma: Numbers, table: Numbers) -> Numbers:
    return np.append(sigma, _choose(FINAL_SIGMAS, config.final_sigmas_type, "final_sigmas_type")(table))


def _ddim_grid(config: SchedulerConfig, n: int) -> Grid:
    """Source: diffusers scheduling_ddim.py set_timesteps and step, eta 0."""
    alpha_bar = alphas_cumprod(config)
    t = SPACINGS[config.timestep_spacing](config, n).round().astype(int)
    before = t - config.num_train_timesteps // n
    last = 1.0 if config.set_alpha_to_one else alpha_bar[0]
    now, then = alpha_bar.take(t, mode="clip"), np.where(before >= 0, alpha_bar.take(before, mode="clip"), last)
    ones = np.ones(n)
    return Grid(t.astype(float), np.sqrt(now), np.sqrt(1 - now), np.sqrt(then), np.sqrt(1 - then), ones, 1.0)


def _euler_grid(config: SchedulerConfig, n: int, karras: bool = False) -> Grid:
    """Source: diffusers scheduling_euler_discrete.py set_timesteps."""
    table = training_sigmas(config)
    t = SPACINGS[config.timestep_spacing](config, n)
    sigma = np.interp(t, np.arange(len(table)), table)
    if karras:
        sigma = _karras(sigma[0], sigma[-1], n)  # between the spacing's own ends
        t = _sigma_to_timestep(sigma, table)  # not rounded
    return _ve_grid(config, t, _append_final(config, sigma, table))


def _euler_ancestral_grid(config: SchedulerConfig, n: int) -> Grid:
    """Euler's; diffusers' ancestral class always ends at σ = 0."""
    return _euler_grid(dataclasses.replace(config, final_sigmas_type="zero"), n)


def _ve_grid(config: SchedulerConfig, t: Numbers, sigma: Numbers) -> Grid:
    """VE between neighbours of sigma [n + 1]."""
    ones = np.ones(len(t))
    # init_noise_sigma in diffusers: the variance of a noised picture where the grid may start below the largest σ
    initial_scale = np.hypot(sigma[0], 1) if config.timestep_spacing == "leading" else sigma[0]
    return Grid(t, ones, sigma[:-1], ones, sigma[1:], 1 / np.hypot(sigma[:-1], 1), float(initial_scale))


def _dpm_grid(config: SchedulerConfig, n: int, karras: bool = False) -> Grid:
    """Source: diffusers scheduling_dpmsolver_multistep.py set_timesteps."""
    table = training_sigmas(config)
    if karras:
        sigma = _karras(table[-1], table[0], n)  # between the training schedule's ends, whatever the spacing
        t = _sigma_to_timestep(sigma, table).round()
    else:
        # n + 1 points of which the last, where the picture is done, is dropped; trailing has none to drop
        points = n if config.timestep_spacing == "trailing" else n + 1
        t = SPACINGS[config.timestep_spacing](config, points)[:n].round()
        sigma = np.interp(t, np.arange(len(table)), table)
    sigma = _append_final(config, sigma, table)
    signal = 1 / np.hypot(sigma, 1)
    noise = sigma * signal
    return Grid(t, signal[:-1], noise[:-1], signal[1:], noise[1:], np.ones(n), 1.0)


def _first_order(grid: Grid) -> Steps:
    """ε kept as the network sees it: x' = signal'·x0 + noise'·(x − signal·x0)/noise.

    On a VP grid this is DDIM (arXiv 2010.02502, Eq. 12, η = 0), on a VE grid Euler.
    """
    keep = grid.next_noise / grid.noise
    zeros = np.zeros_like(keep)
    return Steps(keep, grid.next_signal - grid.signal * keep, zeros, zeros)


def _ancestral(grid: Grid) -> Steps:
    """A first-order step down past the next noise level, then fresh noise up to it.

    Source: k-diffusion get_ancestral_step, η = 1: σ_up² = σ'²(σ² − σ'²)/σ², hence σ_down = σ'²/σ.
    """
    sigma, target = grid.noise / grid.signal, grid.next_noise / grid.next_signal
    up = target * np.sqrt(1 - (target / sigma) ** 2)
    down = _first_order(grid._replace(next_noise=grid.next_signal * target**2 / sigma))
    return down._replace(fresh=grid.next_signal * up)


def _multistep(grid: Grid) -> Steps:
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
    steps = _first_order(grid)
    lean = np.where(second, steps.toward * np.where(second, there - here, 0) / (2 * (here - past)), 0)
    return steps._replace(toward=steps.toward + lean, previous=-lean)


# diffusers' scheduler classes under short names. Karras sigmas exist where diffusers has them.
SOLVERS: dict[str, Solver] = {
    "ddim": Solver(_ddim_grid, _first_order),
    "euler": Solver(_euler_grid, _first_order),
    "euler_karras": Solver(partial(_euler_grid, karras=True), _first_order),
    "euler_ancestral": Solver(_euler_ancestral_grid, _ancestral),
    "dpmpp_2m": Solver(_dpm_grid, _multistep),
    "dpmpp_2m_karras": Solver(partial(_dpm_grid, karras=True), _multistep),
}


def _from_epsilon(signal: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    if signal.min() == 0:
        raise ValueError(
            "prediction_type 'epsilon' says nothing about the picture at the timestep of pure noise that "
            "rescale_betas_zero_snr makes; use 'leading' spacing, which starts below it"
        )
    return 1 / signal, -noise / signal


def _from_velocity(signal: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    """v = (signal·ε − noise·x0)/√(signal² + noise²). Source: arXiv 2202.00512, Appendix D."""
    norm = np.hypot(signal, noise)
    return signal / norm**2, -noise / norm


def _from_sample(signal: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    return np.zeros_like(signal), np.ones_like(signal)


# What the network predicts -> (a, b) with x0 = a·x + b·prediction.
PREDICTIONS: dict[str, Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]] = {
    "epsilon": _from_epsilon,
    "v_prediction": _from_velocity,
    "sample": _from_sample,
}
