"""Noise: torch's values bit for bit, and images that know nothing of their batch."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from autolora_jax import noise
from autolora_jax.noise import STREAMS, initial_noise, step_noise

SEEDS = (0, 1, 42, 20241003, 2**32 - 1, 2**32, 2**40 + 7, 2**63 - 1)
TORCHS = (2**64 - 1, -1, -(2**63), -(2**32) - 5)
SHAPES = {
    "SDXL 1024": (128, 128, 4),
    "SD3 768x512": (64, 96, 16),
    "one block": (2, 2, 4),
    "a remainder": (5, 7, 4),
    "a remainder of 1": (17, 1, 1),
    "scalar path, even": (1, 3, 4),
    "scalar path, odd": (3, 5, 1),
    "one value": (1, 1, 1),
}


def torch_draws(seed: int, n: int, shape: tuple[int, int, int]) -> np.ndarray:
    """n draws of a latent, one after the other, [n h w c]."""
    h, w, c = shape
    generator = torch.Generator("cpu").manual_seed(seed)
    draws = [torch.randn((1, c, h, w), generator=generator)[0].permute(1, 2, 0) for _ in range(n)]
    return torch.stack(draws).numpy()


@pytest.fixture
def needs_avx2():
    """torch's values are those of its AVX2 kernel; see noise._torch_stream."""
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"), "torch has other kernels on this machine"


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal, -0 and 0 told apart."""
    return a.dtype == b.dtype == np.float32 and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("seed", (*SEEDS, *TORCHS))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_torch_noise_is_torchs(seed: int, shape: tuple[int, int, int], needs_avx2):
    theirs = torch_draws(seed, 4, shape)
    assert same_bits(initial_noise([seed], shape, "torch")[0], np.ascontiguousarray(theirs[0]))
    assert same_bits(step_noise([seed], 3, shape, "torch")[:, 0], np.ascontiguousarray(theirs[1:]))


def test_torch_noise_of_millions_of_values(needs_avx2):
    """Enough for the rare roundings. Seen once over 2^29 values, with all 2^24 uniforms as radius: none differs."""
    shape = (1024, 1024, 4)
    assert same_bits(initial_noise([9], shape, "torch")[0], np.ascontiguousarray(torch_draws(9, 1, shape)[0]))


@pytest.mark.parametrize("seed", [1918, 2334])
def test_torch_noise_where_a_radius_is_zero(seed: int, needs_avx2):
    """Found by search: a uniform of 0, so that log 1 = 0 and the sign of 0 must come out right too."""
    theirs = np.ascontiguousarray(torch_draws(seed, 1, (128, 128, 4))[0])
    assert (theirs == 0).any()
    assert same_bits(initial_noise([seed], (128, 128, 4), "torch")[0], theirs)


def test_half_precision_draws_are_rounded_draws(needs_avx2):
    ours = torch.from_numpy(initial_noise([5], (8, 8, 4), "torch")[0])
    for dtype in (torch.float16, torch.bfloat16):
        theirs = torch.randn((1, 4, 8, 8), generator=torch.Generator("cpu").manual_seed(5), dtype=dtype)[0]
        assert torch.equal(ours.to(dtype), theirs.permute(1, 2, 0))


def test_fused_multiply_add_rounds_once():
    """Two cases that float64 alone rounds wrongly, a tie that it rounds rightly, and two thousand others."""
    rare = [
        (641 * 2.0**-28, 6700417 * 2.0**-28, 1.0),  # 641 · 6700417 = 2^32 + 1: 2^-56 above the middle
        ((1 + 2.0**-16) * 2.0**-12, (1 - 2.0**-16) * 2.0**-12, 1 + 2.0**-23),  # 2^-56 below
        (2.0**-12, 2.0**-12, 1 + 2.0**-23),  # the middle: to even
    ]
    a, b, c = np.array(rare, np.float32).T
    np.testing.assert_array_equal(noise._fma(a, b, c), np.float32([1 + 2**-23, 1 + 2**-23, 1 + 2**-22]))
    np.testing.assert_array_equal(noise._fma(-a, b, -c), -noise._fma(a, b, c))
    random = np.random.default_rng(0).standard_normal((3, 2000)).astype(np.float32)
    for a, b, c, ours in zip(*random, noise._fma(*random), strict=True):
        exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
        near = (np.nextafter(ours, np.float32(d)) for d in (-np.inf, np.inf))
        assert all(abs(exact - Fraction(float(ours))) <= abs(exact - Fraction(float(n))) for n in near)


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("shape", [(16, 12, 4), (5, 7, 3), (1, 3, 1)])
def test_an_image_does_not_know_its_batch(kind: str, shape: tuple[int, int, int]):
    seeds = [3, 2**40, 3, 8, 1]
    batch, steps = initial_noise(seeds, shape, kind), step_noise(seeds, 4, shape, kind)
    assert batch.shape == (5, *shape) and steps.shape == (4, 5, *shape)
    for i, seed in enumerate(seeds):
        assert same_bits(batch[i], initial_noise([seed], shape, kind)[0])
        assert same_bits(steps[:2, i], step_noise([seed], 2, shape, kind)[:, 0])


@pytest.mark.parametrize("shape", [(16, 12, 4), (5, 7, 3), (1, 3, 1)])
def test_jax_noise_is_the_same_eagerly_compiled_and_mapped(shape: tuple[int, int, int]):
    expected = initial_noise([1, 2, 3], shape, "jax")
    keys = jnp.array([[0, 1], [0, 2], [0, 3]], jnp.uint32)

    def draw(key_data):
        return noise._jax_normal.__wrapped__(key_data, jnp.uint32(0), shape)

    assert same_bits(np.asarray(jax.jit(jax.vmap(draw))(keys)), expected)
    with jax.disable_jit():
        assert same_bits(np.asarray(draw(keys[1])), expected[1])


def test_jax_noise_is_a_plain_fold_of_the_seeds_key():
    expected = jax.random.normal(jax.random.fold_in(jax.random.key(7), 0), (4, 5, 3))
    assert same_bits(initial_noise([7], (4, 5, 3), "jax")[0], np.asarray(expected))


def test_jax_noise_does_not_depend_on_jax_settings():
    expected = initial_noise([2**40 + 7], (4, 5, 3), "jax")
    for setting in (jax.enable_x64(True), jax.threefry_partitionable(False), jax.default_prng_impl("rbg")):
        with setting:
            assert same_bits(initial_noise([2**40 + 7], (4, 5, 3), "jax"), expected)


def test_seeds_that_differ_above_32_bits_differ():
    seeds = [5, 5 + 2**32, 5 + 2**33, 5 + 2**62]
    draws = initial_noise(seeds, (4, 4, 4), "jax")
    assert len({d.tobytes() for d in draws}) == 4


@pytest.mark.parametrize("kind", STREAMS)
def test_all_draws_are_normal_and_independent(kind: str):
    """Moments within five standard errors; no draw repeats or follows another."""
    n = 64 * 64 * 4
    draws = np.concatenate([initial_noise([1, 2], (64, 64, 4), kind)[None], step_noise([1, 2], 3, (64, 64, 4), kind)])
    draws = draws.reshape(8, n).astype(np.float64)
    assert np.abs(draws.mean(1)).max() < 5 / n**0.5
    assert np.abs(draws.var(1) - 1).max() < 5 * (2 / n) ** 0.5
    assert np.abs((draws**4).mean(1) - 3).max() < 5 * (96 / n) ** 0.5
    assert np.abs(np.corrcoef(draws) - np.eye(8)).max() < 5 / n**0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1], (8, 8, 4), "numpy"), "use one of 'jax', 'torch'"),
        (([1, -1], (8, 8, 4), "jax"), r"from 0 to 2\^64 − 1, not -1"),
        (([2**64], (8, 8, 4), "jax"), "not 18446744073709551616"),
        (([2**64], (8, 8, 4), "torch"), r"from −2\^63 to 2\^64 − 1, not 18446744073709551616"),
        (([-(2**63) - 1], (8, 8, 4), "torch"), "not -9223372036854775809"),
        (([1], (8, 0, 4), "jax"), "should be positive"),
    ],
)
def test_errors_say_what_to_do(arguments: tuple, message: str):
    with pytest.raises(ValueError, match=message):
        initial_noise(*arguments)
