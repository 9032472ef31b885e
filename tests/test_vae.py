"""The VAE against diffusers': both ways, whole, an image at a time, and in blended tiles."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL as Reference

from autolora_jax.config import VAEConfig
from autolora_jax.engine import decode
from autolora_jax.models import vae as vae_module
from autolora_jax.models.vae import AutoencoderKL, decode_sliced, decode_tiled, encode_sliced, encode_tiled
from autolora_jax.sharding import data_mesh
from autolora_jax.training import cache
from tests.parity import channels_first, error, normal, params_of
from tests.reference import VAE, randomize

PARITY = 2e-5  # seen: 2.4e-6
TILED = 5e-5  # seen: 1.3e-6
SLICED = 1e-6  # seen: 2e-7

# SD3's layout: 16 channels and no 1x1 convolutions around the latents; and a VAE without attention.
VARIANTS = {
    "SDXL": {},
    "SD3": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False},
    "no attention": {"mid_block_add_attention": False},
}
# Small enough to be cut into tiles quickly: 2 levels, tiles of 16 latents or 32 pixels.
SMALL = {
    **VAE,
    "block_out_channels": (16, 32),
    "down_block_types": VAE["down_block_types"][:2],
    "up_block_types": VAE["up_block_types"][:2],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 32,
}


def build(**changes) -> tuple[Reference, AutoencoderKL, dict]:
    """(torch's, ours, our params)."""
    module = randomize(Reference(**changes), 3)
    network = AutoencoderKL(config=VAEConfig.from_dict(dict(module.config)))
    return module, network, params_of(module, network)


@partial(jax.jit, static_argnames=("network", "method"))
def apply(network: AutoencoderKL, params: dict, x: jax.Array, method: str):
    return network.apply({"params": params}, x, method=method)


@pytest.mark.parametrize("variant", VARIANTS)
def test_matches_diffusers(variant):
    module, network, params = build(**{**VAE, **VARIANTS[variant]})
    pixels = normal(0, 2, 40, 64, 3)
    latents = normal(1, 2, 6, 11, network.config.latent_channels)
    with torch.no_grad():
        posterior = module.encode(channels_first(pixels)).latent_dist
        decoded = module.decode(channels_first(latents)).sample
    mean, logvar = apply(network, params, pixels, "encode")
    assert error(mean, posterior.mean) < PARITY
    assert error(logvar, posterior.logvar) < PARITY
    assert error(apply(network, params, latents, "decode"), decoded) < PARITY


def test_sd3s_latents_are_shifted_and_scaled():
    """(z − shift) · scale on the way in, z / scale + shift on the way out, as SD3's pipeline has it."""
    module, network, params = build(**{**SMALL, **VARIANTS["SD3"], "scaling_factor": 1.5, "shift_factor": 0.6})
    pixels = np.random.default_rng(0).integers(0, 256, (1, 24, 16, 3)).astype(np.uint8)
    latents = normal(1, 1, 12, 8, 16)
    with torch.no_grad():
        posterior = module.encode(channels_first(pixels.astype(np.float32)) / 127.5 - 1).latent_dist
        decoded, unshifted = (module.decode(channels_first(latents) / 1.5 + shift).sample for shift in (0.6, 0.0))
    mean, std = cache._encode(network, params, jnp.asarray(pixels))
    assert error(mean, (posterior.mean - 0.6) * 1.5) < PARITY
    assert error(std, posterior.std * 1.5) < PARITY
    pictures, finite = decode(network, data_mesh(jax.devices()[:1]), params, jnp.asarray(latents))
    expected, other = (((x / 2 + 0.5).clamp(0, 1) * 255).numpy().transpose(0, 2, 3, 1) for x in (decoded, unshifted))
    assert finite.all()
    assert np.abs(pictures - expected).max() < 0.51  # rounded
    assert np.abs(other - expected).max() > 10


def test_log_variance_is_clipped():
    mean, logvar = vae_module.split_moments(jnp.asarray([[[[5.0, -40.0]]], [[[5.0, 25.0]]]]))
    assert mean.ravel().tolist() == [5, 5]
    assert logvar.ravel().tolist() == [-30, 20]


def test_sliced_equals_whole():
    _, network, params = build(**SMALL)
    pixels, latents = jnp.asarray(normal(0, 3, 24, 16, 3)), jnp.asarray(normal(1, 3, 12, 8, 4))
    whole = apply(network, params, latents, "decode")
    assert error(jax.jit(decode_sliced, static_argnums=0)(network, params, latents), whole) < SLICED
    for ours, theirs in zip(
        jax.jit(encode_sliced, static_argnums=0)(network, params, pixels),
        apply(network, params, pixels, "encode"),
        strict=True,
    ):
        assert error(ours, theirs) < SLICED


# Latent sizes: tiles of three heights and three widths, the last narrower than the overlap; just larger than a tile;
# no larger than one, which is not cut.
@pytest.mark.parametrize("height, width", [(27, 38), (16, 17), (16, 16)])
def test_tiled_equals_diffusers(height, width):
    module, network, params = build(**SMALL)
    module.enable_tiling()
    latents, pixels = normal(1, 2, height, width, 4), normal(0, 2, 2 * height, 2 * width, 3)
    with torch.no_grad():
        posterior = module.encode(channels_first(pixels)).latent_dist
        decoded = module.decode(channels_first(latents)).sample
    y = jax.jit(decode_tiled, static_argnums=0)(network, params, jnp.asarray(latents))
    assert error(y, decoded) < TILED
    mean, logvar = jax.jit(encode_tiled, static_argnums=0)(network, params, jnp.asarray(pixels))
    assert error(mean, posterior.mean) < TILED
    assert error(logvar, posterior.logvar) < TILED


def test_tiles_of_one_shape_share_one_network():
    """A large image does not make a large program."""
    _, network, params = build(**SMALL)

    def loops(size: int) -> int:
        z = jax.ShapeDtypeStruct((1, size, size, 4), jnp.float32)
        jaxpr = jax.make_jaxpr(lambda z: decode_tiled(network, params, z))(z)
        return str(jaxpr).count("scan[")

    assert [loops(size) for size in (20, 40, 100)] == [4, 4, 4]
    assert loops(27) == 9  # the most: whole tiles, and two kinds of cut ones in each direction


def test_a_large_mean_survives_in_bfloat16():
    """The decoder's activations reach means far above their spread; statistics are float32 whatever the dtype."""
    _, network, params = build(**SMALL)
    half = network.clone(dtype=jnp.bfloat16)
    z = normal(1, 1, 8, 8, 4) + 20
    exact, y = (apply(n, params, z, "decode") for n in (network, half))
    assert y.dtype == jnp.bfloat16
    assert np.sqrt(np.mean((y.astype(jnp.float32) - exact) ** 2) / np.mean(exact**2)) < 0.04  # seen: 0.02
