"""A run as a table of coefficients."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from autolora_jax.config import SchedulerConfig
from autolora_jax.schedules import diffusion, flow
from autolora_jax.schedules.grid import Grid, Numbers
from autolora_jax.schedules.solvers import SOLVERS, Solver, own_scheduler, own_spacing, solvers_for
from autolora_jax.settings.fields import choose


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


def _from_flow(signal: Numbers, noise: Numbers) -> tuple[Numbers, Numbers]:
    """v = ε − x0, on a grid with signal = 1 − noise. Source: arXiv 2403.03206, Eq. 13."""
    return np.ones_like(signal), -noise


# What the network's output says about the picture: what it predicts -> (a, b) with x0 = a·x + b·prediction.
PREDICTIONS: dict[str, Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]] = {
    "epsilon": _from_epsilon,
    "v_prediction": _from_velocity,
    "sample": lambda signal, noise: (np.zeros_like(signal), np.ones_like(signal)),
    "flow_prediction": _from_flow,
}

Row = Float[Any, "n"]  # numpy from make_schedule, traced inside the sampler


class Known(NamedTuple):
    """How much of a picture that is known, and of the noise z, the state holds: x = picture·p + noise·z."""

    picture: Row
    noise: Row


class Schedule(NamedTuple):
    """Coefficients of a run of n steps, float32. For step i, with unit-variance noise z and x = initial_scale·z first:

        prediction = network(input_scale[i]·x, timestep[i])
        denoised   = denoised_from_x[i]·x + denoised_from_prediction[i]·prediction
        x          = keep[i]·x + toward[i]·denoised + previous[i]·(last step's denoised)
                     + earlier[i]·(denoised of the step before that) + fresh[i]·z_i

    and x is the latents. z_i is needed only if `fresh` has an entry that is not 0.

    known: [n + 1], of a run that begins with a picture: what x is before the first step and, where a mask keeps the
    picture, what it is made again after each.
    """

    timestep: Row  # 0..num_train_timesteps−1, of a flow σ·num_train_timesteps; not always whole
    input_scale: Row
    denoised_from_x: Row
    denoised_from_prediction: Row
    keep: Row
    toward: Row
    previous: Row
    earlier: Row
    fresh: Row
    initial_scale: Float[Any, ""]
    known: Known | None = None


def make_schedule(
    config: SchedulerConfig,
    num_inference_steps: int,
    scheduler: str | None = None,
    timestep_spacing: str | None = None,
    image_seq_len: int | None = None,
    strength: float | None = None,
    masked: bool = False,
    eta: float | None = None,
    parts: int = 1,
) -> Schedule:
    """The table of a run.

    num_inference_steps: 1..config.num_train_timesteps.
    scheduler: a key of solvers_for(config); None is the checkpoint's own, with Karras sigmas if its file asks for them.
    timestep_spacing: a key of SPACINGS; None is the solver's, else the checkpoint's own. Flows have none.
    image_seq_len: latent patches of a picture, as the network sees them; needed by a config with dynamic shifting.
    strength: how much noise a given picture gets, in (0, 1]: the table then has the last steps alone, as skipped_steps
        says; None: there is no picture. masked: whether a mask keeps a part of it.
    eta: 0 to 1, of solvers that have a share of fresh noise, such as tcd; None is what is usual for it.
    parts: into how many each step is divided, for solvers of FINER: the run comes by the states of the undivided one.
    Raises ValueError for unknown names, for a solver of another kind of model, and for steps that do not fit.
    """
    if not 1 <= num_inference_steps <= config.num_train_timesteps:
        raise ValueError(
            f"num_inference_steps should be between 1 and the {config.num_train_timesteps} training timesteps, "
            f"not {num_inference_steps}; 20 to 50 is usual"
        )
    name = scheduler or own_scheduler(config)
    solver = _solver(config, name)
    if eta is not None and solver.eta is None:
        having = ", ".join(name for name, solver in SOLVERS.items() if solver.eta is not None)
        raise ValueError(f"eta = {eta} means nothing to the scheduler {name!r}, only to {having}; leave it out")
    if config.flow:
        if timestep_spacing is not None:
            raise ValueError(f"timestep_spacing {timestep_spacing!r} means nothing to a flow model; leave it out")
        config = flow.at_resolution(config, image_seq_len)
    else:
        spacing = own_spacing(config, name) if timestep_spacing is None else timestep_spacing
        choose(diffusion.SPACINGS, spacing, "timestep_spacing")
        config = dataclasses.replace(config, timestep_spacing=str(spacing))
    share = {} if solver.eta is None else {"eta": solver.eta if eta is None else eta}
    grid, known = solver.grid(config, num_inference_steps, **share), None
    if not config.flow:
        diffusion.check(grid, config)
    if parts > 1:
        grid = _divided(grid, config, parts)
    if strength is not None:
        skipped = skipped_steps(num_inference_steps, strength, config.flow)
        grid, known = _from_picture(grid, skipped, noise_alone=masked and strength == 1)
    steps = solver.step(grid, num_inference_steps)
    from_x, from_prediction = choose(PREDICTIONS, config.prediction_type, "prediction_type")(grid.signal, grid.noise)
    arrays = (grid.timestep, grid.input_scale, from_x, from_prediction, *steps, grid.initial_scale)
    return Schedule(*_float32(arrays))._replace(known=None if known is None else Known(*_float32(known)))


def _float32(arrays: Iterable[Any]) -> list[Any]:
    return [np.asarray(a, np.float32) for a in arrays]


def _divided(grid: Grid, config: SchedulerConfig, parts: int) -> Grid:
    """The grid with steps between its own, evenly spaced in the timesteps that the network is told."""
    if config.flow:
        times, sigmas = np.array([0.0, config.num_train_timesteps]), np.array([0.0, 1.0])
    else:
        times, sigmas = np.arange(-1.0, config.num_train_timesteps), np.append(0, diffusion.training_sigmas(config))
    end = grid.next_noise[-1]
    told = np.append(grid.timestep, np.interp(end, sigmas, times))
    t = (told[:-1, None] + np.diff(told)[:, None] * np.arange(parts) / parts).ravel()
    noise = np.interp(t, times, sigmas)
    noise[::parts] = grid.noise
    after = np.append(noise[1:], end)
    signal, next_signal = (1 - noise, 1 - after) if config.flow else (np.ones_like(t), np.ones_like(t))
    scale = np.ones_like(t) if config.flow else 1 / np.hypot(noise, 1)
    return Grid(t, signal, noise, next_signal, after, scale, grid.initial_scale)


def skipped_steps(n: int, strength: float, flow: bool) -> int:
    """How many of n steps a run from a picture leaves out. Raises ValueError when that is all of them.

    Source: get_timesteps of diffusers' img2img and inpainting pipelines: SDXL's round down what is left, SD3's what is
    left out.
    """
    skipped = int(max(n - n * strength, 0)) if flow else max(n - int(n * strength), 0)
    if skipped >= n:
        raise ValueError(
            f"strength = {strength} leaves none of {n} steps; at least {math.ceil(1e4 / n) / 1e4} is needed"
        )
    return skipped


def _from_picture(grid: Grid, skipped: int, noise_alone: bool) -> tuple[Grid, Known]:
    """What is left of a run that begins with a noised picture. Source: diffusers' add_noise and scale_noise.

    noise_alone: it begins with noise, as diffusers' inpainting does at strength 1.
    """
    grid = grid._replace(**{name: row[skipped:] for name, row in grid._asdict().items() if np.ndim(row)})
    known = Known(np.append(grid.signal, 1), np.append(grid.noise, 0))
    if noise_alone:
        known.picture[0], known.noise[0] = 0, grid.initial_scale
    return grid, known


def _solver(config: SchedulerConfig, name: str) -> Solver:
    fitting = solvers_for(config)
    if name in SOLVERS and name not in fitting:
        raise ValueError(
            f"scheduler {name!r} is not for this checkpoint, which predicts {config.prediction_type!r}; "
            f"use one of {', '.join(fitting)}"
        )
    return choose(fitting, name, "scheduler")
