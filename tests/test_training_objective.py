"""Noised latents, targets and weighted losses against diffusers' scheduler and the formulas of its training scripts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from autolora_jax.config import ConfigError, SchedulerConfig
from autolora_jax.settings.training import LossConfig
from autolora_jax.training.objective import TARGETS, Noised, Objective
from tests.parity import channels_first, error, normal

LATENTS = 1e-6  # seen: 1.1e-7
LOSS = 2e-6  # seen: 2.3e-7
BETAS = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
TIMESTEPS = np.array([0, 1, 17, 500, 998, 999])
CLEAN, NOISE = normal(1, 6, 5, 7, 4), normal(2, 6, 5, 7, 4)
# prediction type, whether the noise ends at a signal of 0 (for v alone: ε has no target there that says anything)
KINDS = [("epsilon", False), ("v_prediction", False), ("v_prediction", True)]


def objective(prediction_type: str = "epsilon", zero_snr: bool = False, **settings) -> Objective:
    scheduler = SchedulerConfig(**BETAS, prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr)
    return Objective(scheduler, LossConfig(**{"min_snr_gamma": None, **settings}))


def reference(prediction_type: str, zero_snr: bool) -> DDPMScheduler:
    return DDPMScheduler(**BETAS, prediction_type=prediction_type, rescale_betas_zero_snr=zero_snr)


def noised(objective: Objective) -> Noised:
    return objective.noised(jnp.asarray(CLEAN), jnp.asarray(TIMESTEPS), jnp.asarray(NOISE))


def reference_target(scheduler: DDPMScheduler) -> torch.Tensor:
    clean, noise, t = channels_first(CLEAN), channels_first(NOISE), torch.from_numpy(TIMESTEPS)
    return noise if scheduler.config.prediction_type == "epsilon" else scheduler.get_velocity(clean, noise, t)


def keys(n: int) -> jax.Array:
    return jax.random.split(jax.random.key(3), n)


@pytest.mark.parametrize("kind", KINDS)
def test_noised_latents_and_targets_match_diffusers(kind):
    ours, theirs = noised(objective(*kind)), reference(*kind)
    x = theirs.add_noise(channels_first(CLEAN), channels_first(NOISE), torch.from_numpy(TIMESTEPS))
    assert error(ours.latents, x) < LATENTS
    target, _ = TARGETS[kind[0]]
    assert error(target(ours), reference_target(theirs)) < LATENTS


@pytest.mark.parametrize("gamma", [None, 5.0, 0.5])
@pytest.mark.parametrize("kind", KINDS)
def test_losses_match_the_formula_of_diffusers_script(kind, gamma):
    """Each row's, so the batch's mean as well."""
    prediction = normal(4, *CLEAN.shape)
    ours = objective(*kind, min_snr_gamma=gamma)
    scheduler = reference(*kind)
    squares = torch.square(channels_first(prediction) - reference_target(scheduler)).mean(dim=(1, 2, 3)).numpy()
    snr = compute_snr(scheduler, torch.from_numpy(TIMESTEPS)).numpy()
    divisor = snr if kind[0] == "epsilon" else snr + 1
    expected = squares if gamma is None else squares * np.minimum(snr, gamma) / divisor
    losses = np.asarray(ours.losses(jnp.asarray(prediction), noised(ours)))
    assert losses.shape == (6,)
    np.testing.assert_allclose(losses, expected, rtol=LOSS)


def test_losses_of_half_precision_predictions_are_float32():
    ours = objective(min_snr_gamma=5.0)
    half = jnp.asarray(normal(4, *CLEAN.shape), jnp.bfloat16)
    losses = ours.losses(half, noised(ours))
    assert losses.dtype == jnp.float32
    np.testing.assert_array_equal(losses, ours.losses(half.astype(jnp.float32), noised(ours)))


def test_noise_without_any_signal_has_a_finite_weight():
    """SNR 0 is 0 / 0 in diffusers' formula for ε; below the cut-off its weight is 1."""
    ours = objective("epsilon", True, min_snr_gamma=5.0)
    plain = objective("epsilon", True)
    prediction = jnp.asarray(normal(4, *CLEAN.shape))
    assert noised(ours).signal_level[-1] == 0
    assert ours.losses(prediction, noised(ours))[-1] == plain.losses(prediction, noised(plain))[-1]


def test_a_row_does_not_depend_on_its_batch():
    ours = objective(noise_offset=0.3)
    draw = jax.jit(ours.draw)
    whole = draw(keys(6), jnp.asarray(CLEAN))
    part = draw(keys(6)[2:4], jnp.asarray(CLEAN[2:4]))
    for one, other in zip(whole, part, strict=True):
        np.testing.assert_array_equal(one[2:4], other)


@pytest.mark.parametrize("limits", [(0, None), (200, 210), (0, 1), (999, 1000)])
def test_timesteps_are_uniform_between_the_limits(limits):
    n = 20_000
    ours = objective(min_timestep=limits[0], max_timestep=limits[1])
    drawn = np.asarray(jax.jit(ours.draw)(keys(n), jnp.zeros((n, 1, 1, 1))).timesteps)
    first, last = limits[0], limits[1] or 1000
    assert drawn.min() >= first and drawn.max() < last
    bins = min(10, last - first)
    counts = np.histogram(drawn, bins, range=(first, last))[0]
    expected = n / bins
    assert np.square(counts - expected).sum() / expected < 40  # χ² of at most 9 degrees of freedom: p > 1e-5


def test_noise_is_standard_normal_and_its_offset_one_for_a_channel():
    n, shape = 200, (200, 8, 8, 4)
    plain = np.asarray(jax.jit(objective().draw)(keys(n), jnp.zeros(shape)).noise)
    assert abs(plain.mean()) < 0.02 and abs(plain.std() - 1) < 0.02
    offset = np.asarray(jax.jit(objective(noise_offset=0.5).draw)(keys(n), jnp.zeros(shape)).noise) - plain
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1, :1], shape), atol=1e-6)
    assert abs(offset[:, 0, 0].std() - 0.5) < 0.05


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(prediction_type="sample"), "need epsilon or v_prediction"),
        (dict(min_timestep=-1), "0 <= min < max <= 1000"),
        (dict(min_timestep=500, max_timestep=500), "min_timestep = 500, max_timestep = 500"),
        (dict(max_timestep=1001), "max_timestep = 1001"),
        (dict(min_snr_gamma=0.0), "5 is usual"),
    ],
)
def test_settings_that_can_not_be_meant_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        objective(**settings)
