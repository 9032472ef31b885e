"""Training an autoencoder from scratch: pixels and edges come back, latents stay near unit variance.

Source: arXiv 2112.10752, section 3.1 (KL-regularised autoencoder), with a pyramid of L1 errors and their gradients in
the place of a pretrained perceptual loss.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from autolora_jax.models.vae import AutoencoderKL


@dataclasses.dataclass(frozen=True)
class AutoencoderLoss:
    """A `step.Loss` over batches {"pixels": uint8 [b h w 3], "draw": int32 [b]}; frozen: {"seed": int32}.

    kl: weight of the divergence from unit Gaussians, per latent value. edges: weight of the errors of differences
    between neighbouring pixels. levels: sizes of the pyramid, each half the one before.
    """

    vae: AutoencoderKL
    kl: float = 1e-3
    edges: float = 1.0
    levels: int = 3

    def __call__(self, params: Any, frozen: Any, batch: Any) -> tuple[Float[Array, "b"], dict[str, Float[Array, "b"]]]:
        pixels = batch["pixels"].astype(jnp.float32) / 127.5 - 1
        mean, logvar = self.vae.apply({"params": params}, pixels, method="encode")
        seed = jax.random.key(frozen["seed"])
        noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(seed, i), mean.shape[1:]))(batch["draw"])
        decoded = self.vae.apply({"params": params}, mean + jnp.exp(logvar / 2) * noise, method="decode")
        pixel_error, edge_error = self._errors(decoded - pixels)
        divergence = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1 - logvar).mean(axis=(1, 2, 3))
        losses = pixel_error + self.edges * edge_error + self.kl * divergence
        return losses, {"pixels": jnp.abs(decoded - pixels).mean(axis=(1, 2, 3)), "divergence": divergence}

    def _errors(self, error: Float[Array, "b h w c"]) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        """(mean absolute error, mean absolute error of differences), means over the pyramid."""
        pixels: list[Array] = []
        edges: list[Array] = []
        for _ in range(self.levels):
            pixels.append(jnp.abs(error).mean(axis=(1, 2, 3)))
            edges.extend(jnp.abs(jnp.diff(error, axis=axis)).mean(axis=(1, 2, 3)) for axis in (1, 2))
            b, h, w, c = error.shape
            error = error.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
        return jnp.stack(pixels).mean(axis=0), jnp.stack(edges).mean(axis=0)
