"""Grids of flow-matching models (SD3): x = (1−σ)·x0 + σ·ε, told σ·num_train_timesteps.

The larger a picture, the more noise hides it as well, so σ is shifted up: σ' = s·σ/(1 + (s−1)·σ), arXiv 2403.03206,
Eq. 23. The shift s is the checkpoint's, or grows with the picture ("dynamic").
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules.grid import Grid, Numbers, Respace
from autolora_jax.settings.fields import choose

Sigmas = Float[np.ndarray, "_"]

# What μ, a line through the picture's number of tokens, means as a shift.
TIME_SHIFTS: dict[str, Callable[[float], float]] = {"exponential": math.exp, "linear": lambda mu: mu}


def shift_sigmas(sigma: Sigmas, shift: float) -> Sigmas:
    """σ in 0..1 -> σ in 0..1, more of it the larger the shift; 1 changes nothing."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_training_sigmas(config: SchedulerConfig) -> Numbers:
    """σ of the training timesteps 1..num_train_timesteps, rising to 1: the very float32 numbers that diffusers holds.

    Shifted, unless the shift is dynamic: then each run shifts them.
    """
    sigma = np.arange(1, config.num_train_timesteps + 1, dtype=np.float32) / np.float32(config.num_train_timesteps)
    if not config.use_dynamic_shifting:
        sigma = shift_sigmas(sigma, config.shift)
    return sigma.astype(np.float64)


def at_resolution(config: SchedulerConfig, image_seq_len: int | None) -> SchedulerConfig:
    """The config with its dynamic shift settled for a picture's tokens: base_shift and max_shift are both its μ.

    image_seq_len: latent patches of a picture, 4096 for 1024x1024. Raises ValueError where it is needed and None.
    Source: diffusers pipeline_stable_diffusion_3.py calculate_shift.
    """
    if not config.use_dynamic_shifting or config.base_shift == config.max_shift:
        return config
    if image_seq_len is None:
        raise ValueError(
            "this checkpoint shifts its sigmas by the picture's size (use_dynamic_shifting), so image_seq_len is "
            "needed: the number of the picture's tokens, 4096 for 1024x1024"
        )
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = image_seq_len * slope + (config.base_shift - slope * config.base_image_seq_len)
    return dataclasses.replace(config, base_shift=mu, max_shift=mu)


def _shift(config: SchedulerConfig) -> float:
    """s of a config that is `at_resolution`."""
    if not config.use_dynamic_shifting:
        return config.shift
    assert config.base_shift == config.max_shift
    return choose(TIME_SHIFTS, config.time_shift_type, "time_shift_type")(config.base_shift)


def flow_euler_grid(config: SchedulerConfig, n: int, respace: Respace | None = None) -> Grid:
    """Source: diffusers scheduling_flow_match_euler_discrete.py set_timesteps.

    A fixed shift counts twice at the small end: the sigmas run down to the smallest *shifted* training sigma, and are
    all shifted again. sd3-ref agrees.
    respace: other sigmas between the same ends, (largest, smallest, n) -> [n].
    """
    count, shift = config.num_train_timesteps, _shift(config)
    trained = flow_training_sigmas(config)
    sigma = np.linspace(trained[-1] * count, trained[0] * count, n) / count
    sigma = shift_sigmas(sigma, shift)
    if config.shift_terminal:
        sigma = _stretched(sigma, config.shift_terminal)
    if respace:
        sigma = respace(sigma[0], sigma[-1], n)
    rounded = sigma.astype(np.float32)
    return _flow_grid(config, rounded * np.float32(count), rounded)


def _stretched(sigma: Numbers, terminal: float) -> Numbers:
    """Sigmas stretched away from 1 so that the last one is `terminal`. Source: diffusers stretch_shift_to_terminal."""
    if len(sigma) < 2:
        raise ValueError(f"num_inference_steps should be at least 2 to end at shift_terminal {terminal}, not 1")
    signal = 1 - sigma
    return 1 - signal / (signal[-1] / (1 - terminal))


def flow_dpm_grid(config: SchedulerConfig, n: int) -> Grid:
    """Source: diffusers scheduling_dpmsolver_multistep.py set_timesteps with use_flow_sigmas.

    It starts a little below σ = 1, where the signal's log would be infinite, and cuts the timesteps that the network
    is told off to whole ones.
    """
    if config.shift_terminal:
        raise ValueError(f"flow_dpmpp_2m can't end at shift_terminal {config.shift_terminal}; use flow_euler")
    count = config.num_train_timesteps
    sigma = shift_sigmas(1 - np.linspace(1, 1 / count, n + 1), _shift(config))[:0:-1]  # falling, without the 0
    return _flow_grid(config, np.trunc(sigma * count).astype(np.float32), sigma.astype(np.float32))


def _flow_grid(config: SchedulerConfig, t: Sigmas, sigma: Sigmas) -> Grid:
    """Between neighbours of sigma, and from the last to 0."""
    if not (np.diff(sigma) < 0).all():
        raise ValueError(
            f"{len(sigma)} steps from {sigma[0]:g} to {sigma[-1]:g} at shift {_shift(config):g} do not fall at every "
            "step; use fewer steps or a shift nearer 1"
        )
    noise = np.append(sigma, 0).astype(np.float64)
    signal = 1 - noise
    ones = np.ones(len(sigma))
    return Grid(t.astype(np.float64), signal[:-1], noise[:-1], signal[1:], noise[1:], ones, 1.0)
