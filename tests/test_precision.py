"""What networks round, and where: the VAE's default, float16, and the figures that benchmarks/precision.py gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autolora_jax import AutoLoRAPipeline
from autolora_jax.config import ConfigError, VAEConfig
from autolora_jax.loading import check_platform, vae_settings
from autolora_jax.models.layers import EXACT, FAST, HIGH
from autolora_jax.models.networks import network_of, param_shapes
from autolora_jax.training import train_lora
from autolora_jax.weights.published import SDXL_BASE
from benchmarks.precision import (
    DECODERS,
    DENOISERS,
    DEVICES,
    EXACTLY,
    STRONG,
    WEAK,
    Computing,
    Scene,
    played,
    rms,
    within,
)
from recipes.builtin.words import sample_scene
from recipes.builtin.world import draw
from tests.parity import equations, normal

FLOAT32, BFLOAT16, FLOAT16 = map(jnp.dtype, ("float32", "bfloat16", "float16"))
SMALL = VAEConfig(block_out_channels=(32, 32), layers_per_block=1)


@pytest.mark.parametrize(
    ("dtype", "asked", "force", "chosen", "precision"),
    [
        (BFLOAT16, None, True, FLOAT32, HIGH),
        (FLOAT16, None, True, FLOAT32, HIGH),
        (FLOAT32, None, True, FLOAT32, EXACT),
        (FLOAT16, None, False, FLOAT16, EXACT),
        (BFLOAT16, FLOAT32, True, FLOAT32, EXACT),  # what is asked for is what is done
        (FLOAT32, BFLOAT16, True, BFLOAT16, EXACT),
        (BFLOAT16, FLOAT16, True, FLOAT16, EXACT),
    ],
)
def test_what_the_vae_computes_in(dtype, asked, force, chosen, precision):
    config = VAEConfig(force_upcast=force)
    vae = network_of(config, **vae_settings(config, dtype, asked))
    assert (vae.dtype, vae.param_dtype, vae.precision) == (chosen, chosen, precision)


@pytest.mark.parametrize("method", ["decode", "encode"])
def test_the_decoder_s_products_are_fast_and_the_encoder_s_exact(method):
    vae = network_of(SMALL, precision=HIGH)
    x = jnp.zeros((1, 8, 8, 4 if method == "decode" else 3))
    traced = jax.make_jaxpr(lambda p, x: vae.apply({"params": p}, x, method=method))(param_shapes(vae), x)
    products = [e for e in equations(traced.jaxpr) if e.primitive.name in ("dot_general", "conv_general_dilated")]
    named = [{str(p).lower() for p in jax.tree.leaves(e.params["precision"])} for e in products]
    assert all(names in ({"high"}, {"highest"}) for names in named)
    exact = named.count({"highest"})
    assert exact == (len(named) if method == "encode" else 2)  # those that read latents


def test_no_tpu_computes_in_float16():
    check_platform("tpu", BFLOAT16, None)
    check_platform("gpu", FLOAT16, None)
    for dtypes in ((FLOAT16, None), (BFLOAT16, FLOAT16)):
        with pytest.raises(ConfigError, match="do not take float16; use dtype bfloat16 or float32"):
            check_platform("tpu", *dtypes)


def test_a_pipeline_in_float16(small_folder, tmp_path):
    pipe = AutoLoRAPipeline.from_pretrained(small_folder, dtype="float16", devices=jax.devices()[:1])
    assert (pipe.denoiser.dtype, pipe.vae.dtype, pipe.vae.precision) == (FLOAT16, FLOAT32, HIGH)
    assert {leaf.dtype for leaf in jax.tree.leaves(pipe.params["unet"])} == {FLOAT16}
    with pytest.raises(ConfigError, match="gradients vanish in float16"):
        train_lora(pipe, tmp_path, tmp_path / "lora.safetensors")


def test_products_are_played_as_devices_round_them():
    """Against numpy's own bfloat16, and sums in float64."""
    a, b = normal(0, 16, 300), normal(1, 300, 16)

    def once(dtype):
        return np.asarray(a.astype(dtype), np.float64) @ np.asarray(b.astype(dtype), np.float64)

    exact, seen = a.astype(np.float64) @ b, {}
    for device, precision in [("TPU", FAST), ("TPU", HIGH), ("GPU", FAST), ("TPU", EXACT)]:
        with played(device):
            seen[device, precision] = np.asarray(jax.jit(lambda a, b, p=precision: jnp.matmul(a, b, precision=p))(a, b))
    assert DEVICES.keys() == {"TPU", "GPU"}
    assert rms(seen["TPU", FAST] - once(BFLOAT16), exact) < 1e-6
    off = [rms(product - exact, exact) for product in seen.values()]
    assert 1e-3 < off[0] < 4e-3 and 1e-4 < off[2] < 5e-4  # 8 and 11 digits
    assert off[1] < 1e-5 and off[3] < 1e-6  # 16 and 24


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Of pictures as the model's world has them: drawn by hand, encoded."""
    scene = Scene(pictures=2)
    vae, params = scene.pipe.vae, scene.pipe.params["vae"]
    side = vae.config.sample_size
    rng = np.random.default_rng(0)
    pixels = np.stack([draw(sample_scene(rng), rng, side) for _ in range(2)]).astype(np.float32) / 127.5 - 1
    mean, _ = jax.jit(lambda p, x: vae.apply({"params": p}, x, method="encode"))(params, pixels)
    scene.latents = np.asarray(mean) * vae.config.scaling_factor
    return scene


def test_the_decoder_by_default_is_within_a_grey_level(scene: Scene):
    exact = scene.pictures(EXACTLY)
    assert within(scene.pictures(DECODERS["the default on a TPU"]), exact) >= 0.999  # seen: 1
    assert within(scene.pictures(DECODERS["bfloat16"]), exact) < 0.999  # else it were the default


@pytest.mark.slow
def test_a_decoder_as_large_as_sdxl_s():
    """Of random weights, so it says little of pictures: how far rounding goes through so many layers."""
    vae = network_of(SDXL_BASE["vae"])
    params = jax.jit(vae.init)(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    z = jnp.asarray(normal(0, 1, 16, 16, 4))

    def decoded(how: Computing) -> np.ndarray:
        with played(how.device):
            decode = jax.jit(partial(how.network(vae.config).apply, method="decode"))
            return np.asarray(decode({"params": params}, z))

    ways = [
        EXACTLY,
        *(DECODERS[name] for name in ("the default on a TPU", "the default on a GPU", "one pass of a TPU")),
    ]
    drawn = [decoded(how) for how in ways]
    exact, *others = (np.round(np.clip(x / 4 / drawn[0].std() + 0.5, 0, 1) * 255).astype(np.uint8) for x in drawn)
    on_tpu, on_gpu, one_pass = (within(levels, exact) for levels in others)
    assert min(on_tpu, on_gpu) >= 0.999 > one_pass  # seen: 1, 1, 0.974


@pytest.mark.slow
def test_what_rounding_makes_of_a_lora_s_difference(scene: Scene):
    base, (weak, strong) = scene.predictions(EXACTLY)
    for name, least, most in (("bfloat16", 0.05, 0.25), ("float16", 0.005, 0.04)):
        found, changed = scene.predictions(DENOISERS[name])
        wrong = [rms(theirs - exact, exact) for theirs, exact in zip(changed, (weak, strong), strict=True)]
        assert least < wrong[0] < most and wrong[1] < wrong[0] / 3, (name, wrong)
        assert rms(found - base, base) < wrong[0]
    assert WEAK < STRONG
