"""Latents -> 8-bit pictures: the VAE's decoder as one program mapped over devices, an image at a time on each."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, UInt8

from autolora_jax.models import vae as vae_module
from autolora_jax.models.vae import AutoencoderKL
from autolora_jax.sharding import map_images

Tree = Mapping[str, Any]


@partial(jax.jit, static_argnames=("vae", "mesh", "tiled"))
def decode(
    vae: AutoencoderKL, mesh: Mesh, params: Tree, latents: Float[Array, "b h w c"], tiled: bool = False
) -> tuple[UInt8[Array, "b H W 3"], Bool[Array, "b"]]:
    """(pictures, whether all their values were finite) of latents as the sampler leaves them (scaled).

    b is a multiple of the mesh's data axis.

    tiled: decode overlapping tiles, for pictures whose decoder activations would not fit.
    """
    to_pixels = vae_module.decode_tiled if tiled else vae_module.decode_sliced

    def pictures(params: Tree, latents: Array) -> tuple[Array, Array]:
        z = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels = to_pixels(vae, params, z).astype(jnp.float32)  # [b H W 3] in [-1, 1]
        levels = jnp.round(jnp.clip(pixels / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)
        return levels, jnp.isfinite(pixels).all(axis=(1, 2, 3))

    return map_images(pictures, mesh)(params, latents)
