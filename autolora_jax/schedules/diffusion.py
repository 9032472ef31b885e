"""Grids of models that tell pictures from noise along a schedule of betas (SDXL): VP and VE."""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules.grid import Grid, Numbers, Respace, karras_sigmas
from autolora_jax.settings.fields import choose


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
    make_betas = choose(BETAS, config.beta_schedule, "beta_schedule")
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


def _trailing(config: SchedulerConfig, n: int) -> Numbers:
    # [:n]: the last of arange can be a rounding error above 0 (n = 61), where diffusers takes an extra step at t = −1
    return np.arange(config.num_train_timesteps, 0, -config.num_train_timesteps / n)[:n].round() - 1


def _distilled(config: SchedulerConfig, n: int) -> Numbers:
    """Some of the few timesteps that LCM and TCD learn at. Source: diffusers scheduling_lcm.py set_timesteps."""
    known = config.original_inference_steps
    if n > known:
        raise ValueError(
            f"num_inference_steps = {n} should be at most {known}: 'distilled' spacing takes them from the {known} "
            "timesteps that LCM and TCD are trained at; else use 'trailing'"
        )
    learned = np.arange(known, 0, -1) * (config.num_train_timesteps // known) - 1.0
    return learned[np.linspace(0, known, n, endpoint=False).astype(int)]


# Falling timesteps. Source: arXiv 2305.08891, Table 2.
SPACINGS: dict[str, Callable[[SchedulerConfig, int], Numbers]] = {
    "leading": lambda c, n: np.arange(n)[::-1] * float(c.num_train_timesteps // n) + c.steps_offset,
    "linspace": lambda c, n: np.linspace(0, c.num_train_timesteps - 1, n)[::-1],
    "trailing": _trailing,
    "distilled": _distilled,
}


def _sigma_to_timestep(sigma: Numbers, table: Numbers) -> Numbers:
    return np.interp(np.log(sigma), np.log(table), np.arange(len(table)))


FINAL_SIGMAS: dict[str, Callable[[Numbers], float]] = {"zero": lambda table: 0.0, "sigma_min": lambda table: table[0]}


def _append_final(config: SchedulerConfig, sigma: Numbers, table: Numbers) -> Numbers:
    return np.append(sigma, choose(FINAL_SIGMAS, config.final_sigmas_type, "final_sigmas_type")(table))


def ddim_grid(config: SchedulerConfig, n: int) -> Grid:
    """Source: diffusers scheduling_ddim.py set_timesteps and step, eta 0."""
    alpha_bar = alphas_cumprod(config)
    t = SPACINGS[config.timestep_spacing](config, n).round().astype(int)
    before = t - config.num_train_timesteps // n
    last = 1.0 if config.set_alpha_to_one else alpha_bar[0]
    now, then = alpha_bar.take(t, mode="clip"), np.where(before >= 0, alpha_bar.take(before, mode="clip"), last)
    ones = np.ones(n)
    return Grid(t.astype(float), np.sqrt(now), np.sqrt(1 - now), np.sqrt(then), np.sqrt(1 - then), ones, 1.0)


def lcm_grid(config: SchedulerConfig, n: int) -> Grid:
    """From each timestep to the next, and from the last to the picture. Source: diffusers scheduling_lcm.py step."""
    return _vp_grid(config, n, 1.0)


def tcd_grid(config: SchedulerConfig, n: int, eta: float) -> Grid:
    """From each timestep to the next, and from the last to timestep 0, each by way of a cleaner one.

    eta: 0 to 1: how much of the way from the next timestep to 0 that one lies; γ in arXiv 2402.19159. Source: diffusers
    scheduling_tcd.py step.
    """
    alpha_bar = alphas_cumprod(config)
    grid = _vp_grid(config, n, alpha_bar[0])
    onward = np.append(grid.timestep[1:], 0).astype(np.float32)
    cleaner = alpha_bar[np.floor(np.float32(1 - eta) * onward).astype(int)]  # cut off in float32, as torch does
    return grid._replace(down=np.sqrt(1 - cleaner) / np.sqrt(cleaner))


def _vp_grid(config: SchedulerConfig, n: int, last: float) -> Grid:
    """VP between neighbours of the spacing, and on to ᾱ = last."""
    t = SPACINGS[config.timestep_spacing](config, n).round()
    alpha_bar = np.append(alphas_cumprod(config).take(t.astype(int), mode="clip"), last)
    signal, noise = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
    return Grid(t, signal[:-1], noise[:-1], signal[1:], noise[1:], np.ones(n), 1.0)


def euler_grid(config: SchedulerConfig, n: int, respace: Respace | None = None) -> Grid:
    """Source: diffusers scheduling_euler_discrete.py set_timesteps. respace: sigmas between the spacing's own ends."""
    table = training_sigmas(config)
    t = SPACINGS[config.timestep_spacing](config, n)
    sigma = np.interp(t, np.arange(len(table)), table)
    if respace:
        sigma = respace(sigma[0], sigma[-1], n)
        t = _sigma_to_timestep(sigma, table)  # not rounded
    return _ve_grid(config, t, _append_final(config, sigma, table))


def euler_ancestral_grid(config: SchedulerConfig, n: int) -> Grid:
    """Euler's; diffusers' ancestral class always ends at σ = 0."""
    return euler_grid(dataclasses.replace(config, final_sigmas_type="zero"), n)


def _ve_grid(config: SchedulerConfig, t: Numbers, sigma: Numbers) -> Grid:
    """VE between neighbours of sigma [n + 1]."""
    ones = np.ones(len(t))
    # init_noise_sigma in diffusers: the variance of a noised picture where the grid may start below the largest σ
    initial_scale = np.hypot(sigma[0], 1) if config.timestep_spacing == "leading" else sigma[0]
    return Grid(t, ones, sigma[:-1], ones, sigma[1:], 1 / np.hypot(sigma[:-1], 1), float(initial_scale))


def dpm_grid(config: SchedulerConfig, n: int, respace: Respace | None = None) -> Grid:
    """Source: diffusers scheduling_dpmsolver_multistep.py and scheduling_unipc_multistep.py set_timesteps.

    respace: sigmas between the training schedule's ends, whatever the spacing.
    """
    table = training_sigmas(config)
    if respace:
        table = table.astype(np.float32).astype(np.float64)
        sigma = respace(table[-1], table[0], n)
        # What diffusers does not round it cuts off, 998.99 to 998: then the last bits of its float32 logs matter.
        t = np.interp(np.log(sigma), np.log(table).astype(np.float32), np.arange(len(table)))
        t = t.round() if respace is karras_sigmas else np.trunc(t)
    else:
        # n + 1 points of which the last, where the picture is done, is dropped; trailing has none to drop
        points = n if config.timestep_spacing == "trailing" else n + 1
        t = SPACINGS[config.timestep_spacing](config, points)[:n].round()
        sigma = np.interp(t, np.arange(len(table)), table)
    sigma = _append_final(config, sigma, table)
    signal = 1 / np.hypot(sigma, 1)
    noise = sigma * signal
    return Grid(t, signal[:-1], noise[:-1], signal[1:], noise[1:], np.ones(n), 1.0)


def check(grid: Grid, config: SchedulerConfig) -> None:
    """Refuses grids that stand still or leave the training timesteps (diffusers repeats or clamps them silently)."""
    t, last = grid.timestep, config.num_train_timesteps - 1
    falls = np.diff(grid.noise / np.hypot(grid.signal, grid.noise)) < 0
    if t.min() < 0 or t.max() > last or not falls.all():
        raise ValueError(
            f"{len(t)} steps with {config.timestep_spacing!r} spacing and steps_offset {config.steps_offset} do not "
            f"fit the training timesteps 0..{last} ({t[0]:g} to {t[-1]:g}); use fewer steps or 'trailing' spacing"
        )
