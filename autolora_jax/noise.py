"""Noise: a seed, and nothing else, decides an image's initial noise and the noise of its steps.

Two kinds. "jax": a threefry key per image. "torch": bit for bit the values of torch's CPU generator, and so the
pictures that diffusers and ComfyUI users know by their seeds. Both are drawn image by image on the host's CPU: neither
the batch, nor the place in it, nor the accelerator can touch a value. All float32; torch's float16 and bfloat16 draws
are these values rounded.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial, reduce
from itertools import count, islice

import jax
import numpy as np
from jaxtyping import Array, Float32, UInt32

Shape = tuple[int, int, int]
Floats = Float32[np.ndarray, "..."]
Words = Callable[[int], UInt32[np.ndarray, "_"]]


def initial_noise(seeds: Sequence[int], shape: Shape, kind: str, before: int = 0) -> Float32[np.ndarray, "n h w c"]:
    """The noise that each seed's run starts from, unit variance.

    seeds: 0..2^64−1; with "torch" from −2^63 on, as torch takes them: a negative one is the same as 2^64 more.
    shape: (h, w, c) of one latent. kind: "jax" or "torch". before: draws of each seed that are left out.
    """
    return _draw(seeds, shape, kind, before, before + 1)[0]


def step_noise(
    seeds: Sequence[int], steps: int, shape: Shape, kind: str, before: int = 0
) -> Float32[np.ndarray, "steps n h w c"]:
    """What a stochastic solver adds at each step, unit variance; the other arguments as for `initial_noise`.

    Step i's noise does not depend on `steps`. "torch" goes on with the generator that drew the initial noise, one draw
    a step, as diffusers does.
    """
    return _draw(seeds, shape, kind, 1 + before, 1 + before + steps)


def _draw(seeds: Sequence[int], shape: Shape, kind: str, start: int, stop: int) -> Float32[np.ndarray, "draws n h w c"]:
    if kind not in STREAMS:
        raise ValueError(f"noise kind {kind!r} is not known; use one of {', '.join(map(repr, STREAMS))}")
    if min(shape) < 1:
        raise ValueError(f"a latent's shape (h, w, c) should be positive, not {shape}")
    least = -(2**63) if kind == "torch" else 0
    if wrong := [seed for seed in seeds if not least <= seed < 2**64]:
        raise ValueError(f"seeds should be whole numbers from {'−2^63' if least else 0} to 2^64 − 1, not {wrong[0]}")
    out = np.empty((stop - start, len(seeds), *shape), np.float32)
    for i, seed in enumerate(seeds):
        for j, draw in enumerate(islice(STREAMS[kind](seed, shape), start, stop)):
            out[j, i] = draw
    return out


@partial(jax.jit, static_argnames="shape")
def _jax_normal(key_data: UInt32[Array, "2"], index: UInt32[Array, ""], shape: Shape) -> Float32[Array, "h w c"]:
    key = jax.random.wrap_key_data(key_data, impl="threefry2x32")
    return jax.random.normal(jax.random.fold_in(key, index), shape, np.float32)


def _jax_stream(seed: int, shape: Shape) -> Iterator[Floats]:
    """Draw i comes from the seed's key folded with i. One image a call: in a batch's vector loops, where a value lies
    could decide how its logarithm is rounded."""
    key_data = np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)  # jax.random.key keeps 32 bits only, without x64
    for index in count():
        with jax.default_device(_host()), jax.threefry_partitionable(True):  # not as an environment variable may set it
            draw = np.asarray(_jax_normal(key_data, np.uint32(index), shape))
        yield draw


def _host() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out: the same bits, with the accelerator's rounding
        return jax.local_devices()[0]


def _torch_stream(seed: int, shape: Shape) -> Iterator[Floats]:
    """torch.randn((1, c, h, w), generator=torch.Generator("cpu").manual_seed(seed)), again and again, as [h w c].

    As on x86 CPUs with AVX2 (with AVX-512 torch uses the same kernel). Elsewhere torch calls the system's log, sin and
    cos, and four values in ten differ in their last bits (by up to 2e-6, seen with AVX2 switched off). The generator is
    MT19937, seeded by the seed's lower 32 bits alone.
    """
    h, w, c = shape
    generator = np.random.RandomState(seed & 0xFFFFFFFF)

    def words(n: int) -> UInt32[np.ndarray, "_"]:
        return generator.randint(0, 2**32, n, np.uint32)

    for draw in (_vector_draws if h * w * c >= 16 else _scalar_draws)(words, h * w * c):
        yield draw.reshape(c, h, w).transpose(1, 2, 0)


# What a seed's draws are: the first is the initial noise, then one for each step.
STREAMS: dict[str, Callable[[int, Shape], Iterator[Floats]]] = {"jax": _jax_stream, "torch": _torch_stream}


def _scalar_draws(words: Words, size: int) -> Iterator[Floats]:
    """Below 16 values torch draws pairs in float64, and keeps a pair's second half for the next draw.

    Source: aten/src/ATen/core/DistributionsHelper.h, normal_distribution<double>.
    """

    def uniform() -> float:
        high, low = words(2).tolist()
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53

    def normals() -> Iterator[float]:
        while True:
            angle, radius = 2 * math.pi * uniform(), math.sqrt(-2 * math.log1p(-uniform()))
            yield radius * math.cos(angle)
            yield radius * math.sin(angle)

    endless = normals()
    while True:
        yield np.array(list(islice(endless, size)), np.float32)


def _vector_draws(words: Words, size: int) -> Iterator[Floats]:
    """From 16 values on torch works in float32 on blocks of 16; a remainder has the last 16 drawn anew.

    Source: aten/src/ATen/native/cpu/DistributionTemplates.h, normal_fill_AVX2.
    """

    def uniform(n: int) -> Floats:
        return (words(n) & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)

    whole = size // 16 * 16
    while True:
        values = uniform(size)
        values[:whole] = _box_muller(values[:whole])
        if whole < size:
            values[-16:] = _box_muller(uniform(16))
        yield values


def _box_muller(uniform: Floats) -> Floats:
    """Of every 16 uniforms in [0, 1), the first 8 make radii, the last 8 angles."""
    blocks = uniform.reshape(-1, 2, 8)
    radius = np.sqrt(np.float32(-2) * _log(np.float32(1) - blocks[:, 0]))
    sine, cosine = _sincos(np.float32(2 * np.pi) * blocks[:, 1])
    normal = np.stack([radius * cosine, radius * sine], axis=1) + np.float32(0)  # torch adds the mean: no -0
    return normal.reshape(-1)


# log and sincos below are Cephes' single-precision polynomials, in the order in which torch's vector kernel
# (aten/src/ATen/native/cpu/avx_mathfun.h) evaluates them and with the fused multiply-adds its compiler makes of them.
LOG = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LN2 = (0.693359375, -2.12194440e-4)  # log 2 in two parts, as π/4 below in three: the first have few digits
SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
QUARTER_PI = (0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8)


def _log(x: Floats) -> Floats:
    """Natural logarithm of x in (0, 1]."""
    mantissa, exponent = np.frexp(x)  # x = mantissa · 2^exponent, mantissa in [0.5, 1)
    low = mantissa < np.float32(math.sqrt(0.5))
    r = np.where(low, 2 * mantissa - 1, mantissa - 1)
    e = (exponent - low).astype(np.float32)
    z = r * r
    y = _polynomial(LOG, r) * r
    y = _fma(y, z, e * np.float32(LN2[1])) - z * np.float32(0.5)
    return _fma(e, LN2[0], r + y)


def _sincos(x: Floats) -> tuple[Floats, Floats]:
    """Sine and cosine of x in [0, 2π]."""
    octant = (x * np.float32(4 / math.pi)).astype(np.int32)
    octant += octant & 1
    turns = octant.astype(np.float32)
    r = reduce(lambda r, part: _fma(turns, -part, r), QUARTER_PI, x)  # x − octant · π/4
    z = r * r
    cosine = _fma(_polynomial(COSINE, z) * z, z, z * np.float32(-0.5)) + np.float32(1)
    sine = _fma(_polynomial(SINE, z) * z, r, r)
    swap = octant & 2 != 0
    return (
        np.where(swap, cosine, sine) * np.where(octant & 4 != 0, -1, 1).astype(np.float32),
        np.where(swap, sine, cosine) * np.where((octant + 2) & 4 != 0, -1, 1).astype(np.float32),
    )


def _polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    """Horner's rule, highest power first."""
    return reduce(lambda y, c: _fma(y, x, c), coefficients[1:], np.full_like(x, coefficients[0]))


def _fma(a: Floats | float, b: Floats | float, c: Floats | float) -> Floats:
    """a·b + c of float32 values, rounded once.

    The product is exact in float64 (24 + 24 bits < 53). Rounding the sum to 53 bits and then to 24 goes wrong only if
    the first rounding lands exactly between two float32 values, which takes the sign of what it dropped to undo.
    """
    product = np.float64(np.float32(a)) * np.float64(np.float32(b))
    addend = np.float64(np.float32(c))
    total = np.asarray(product + addend)
    between = total.view(np.int64) & 0x1FFFFFFF == 0x10000000  # float64 has 29 more bits than float32
    if between.any():
        product, addend, tie = (np.broadcast_to(v, total.shape)[between] for v in (product, addend, total))
        part = tie - product
        dropped = (product - (tie - part)) + (addend - part)  # Knuth's two-sum: exact
        total[between] = np.nextafter(tie, np.where(dropped == 0, tie, np.copysign(np.inf, dropped)))
    return total.astype(np.float32)
