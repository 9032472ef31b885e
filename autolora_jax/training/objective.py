"""What a denoiser is trained for: pictures, noised at random timesteps, are told apart from their noise.

    x_t = signal_t·x_0 + noise_t·ε          loss = weight_t · ‖network(x_t, t) − target‖²

| model              | signal, noise    | timesteps are drawn | target                 |
|--------------------|------------------|---------------------|------------------------|
| diffusion (SDXL)   | √ᾱ_t, √(1−ᾱ_t)   | uniformly           | ε, or v = √ᾱ·ε − √(1−ᾱ)·x_0 |
| flow (SD3)         | 1−σ_t, σ_t       | logit-normally      | ε − x_0                |

Sources: diffusers examples/text_to_image/train_text_to_image_lora_sdxl.py (losses and their weights); arXiv 2403.03206,
section 3.1, and diffusers training_utils.py compute_density_for_timestep_sampling (flow).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from autolora_jax.config import ConfigError, SchedulerConfig
from autolora_jax.schedules import alphas_cumprod, flow_training_sigmas
from autolora_jax.settings.training import LossConfig

Vector = Float[Array, "b"]
Latents = Float[Array, "b h w c"]


class Noised(NamedTuple):
    """Latents at the moment of a timestep."""

    clean: Latents
    noise: Latents
    timesteps: Vector  # as the network is told
    signal_level: Vector
    noise_level: Vector

    @property
    def latents(self) -> Latents:
        """x_t, what the network sees."""
        return _rows(self.signal_level) * self.clean + _rows(self.noise_level) * self.noise


# prediction type -> (what the network should say, the loss's weight for a signal-to-noise ratio cut off at γ).
# Source of the weights: Min-SNR, arXiv 2303.09556; for v its division by SNR + 1.
TARGETS: dict[str, tuple[Callable[[Noised], Latents], Callable[[Vector, float], Vector]]] = {
    "epsilon": (lambda n: n.noise, lambda snr, gamma: jnp.minimum(1.0, gamma / snr)),  # SNR may be 0
    "v_prediction": (
        lambda n: _rows(n.signal_level) * n.noise - _rows(n.noise_level) * n.clean,
        lambda snr, gamma: jnp.minimum(snr, gamma) / (snr + 1),
    ),
    "flow_prediction": (lambda n: n.noise - n.clean, lambda snr, gamma: jnp.ones_like(snr)),  # the draw weighs already
}


@dataclasses.dataclass(frozen=True)
class Objective:
    """How timesteps are drawn and errors weighed. Static: a part of the compiled step.

    scheduler: the checkpoint's; its prediction type is what the network predicts.
    loss: of its settings
        min_snr_gamma: cut-off of Min-SNR weighting; None weighs all timesteps alike, as flow models always do.
        noise_offset: std of a constant added to each channel's noise, which teaches very dark and very light pictures.
        min_timestep, max_timestep: timesteps are drawn from [min, max); None is the scheduler's last.
        logit_mean, logit_std: of a flow model's timesteps, whose logit is normal; a higher mean is more noise.
    """

    scheduler: SchedulerConfig
    loss: LossConfig

    def __post_init__(self) -> None:
        if self.scheduler.prediction_type not in TARGETS:
            known = " or ".join(TARGETS)
            raise ConfigError(f"can't train a model that predicts {self.scheduler.prediction_type!r}; need {known}")
        if not 0 <= self.loss.min_timestep < self.last <= self.scheduler.num_train_timesteps:
            raise ConfigError(
                f"min_timestep = {self.loss.min_timestep}, max_timestep = {self.last}: need "
                f"0 <= min < max <= {self.scheduler.num_train_timesteps}"
            )
        if self.loss.min_snr_gamma is not None and self.loss.min_snr_gamma <= 0:
            raise ConfigError(f"min_snr_gamma = {self.loss.min_snr_gamma} should be above 0 (5 is usual), or none")

    @property
    def last(self) -> int:
        """First timestep that is not drawn any more."""
        return self.scheduler.num_train_timesteps if self.loss.max_timestep is None else self.loss.max_timestep

    def draw(self, keys: Array, latents: Latents) -> Noised:
        """Each row's noise and timestep, from its own key: [b] keys, so a row does not depend on its batch."""

        def one(key: Array) -> tuple[Array, Array]:
            for_time, for_noise, for_offset = jax.random.split(key, 3)
            noise = jax.random.normal(for_noise, latents.shape[1:], jnp.float32)
            if self.loss.noise_offset:
                noise += self.loss.noise_offset * jax.random.normal(for_offset, (1, 1, latents.shape[-1]), jnp.float32)
            return self._timestep(for_time), noise

        timesteps, noise = jax.vmap(one)(keys)
        return self.noised(latents, timesteps, noise)

    def _timestep(self, key: Array) -> Int[Array, ""]:
        if not self.scheduler.flow:
            return jax.random.randint(key, (), self.loss.min_timestep, self.last)
        share = jax.nn.sigmoid(self.loss.logit_mean + self.loss.logit_std * jax.random.normal(key, (), jnp.float32))
        drawn = self.loss.min_timestep + jnp.floor(share * (self.last - self.loss.min_timestep)).astype(jnp.int32)
        return jnp.minimum(drawn, self.last - 1)  # a share may round to 1

    def noised(self, latents: Latents, timesteps: Int[Array, "b"], noise: Latents) -> Noised:
        """Latents with this noise at these of the scheduler's training timesteps, counted from the least noise."""
        if self.scheduler.flow:
            sigmas = flow_training_sigmas(self.scheduler)
            told, *levels = sigmas * self.scheduler.num_train_timesteps, 1 - sigmas, sigmas
        else:
            alphas = alphas_cumprod(self.scheduler)
            told, *levels = np.arange(len(alphas)), np.sqrt(alphas), np.sqrt(1 - alphas)
        of_rows = (jnp.asarray(table, jnp.float32)[timesteps] for table in (told, *levels))
        return Noised(latents.astype(jnp.float32), noise, *of_rows)

    def losses(self, prediction: Latents, noised: Noised) -> Vector:
        """Weighted mean squared error of each row, float32."""
        target, weight = TARGETS[self.scheduler.prediction_type]
        error = jnp.square(prediction.astype(jnp.float32) - target(noised)).mean(axis=(1, 2, 3))
        if self.loss.min_snr_gamma is None:
            return error
        return error * weight(jnp.square(noised.signal_level / noised.noise_level), self.loss.min_snr_gamma)


def _rows(values: Vector) -> Float[Array, "b 1 1 1"]:
    return values[:, None, None, None]
