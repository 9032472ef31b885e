"""What small autoencoders and diffusion models do to pictures, imitated: the classifier must see through it.

Pictures are float32 [b s s 3], 0..255 and a little beyond; every picture is damaged with a strength of its own.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

Bytes = UInt8[np.ndarray, "b s s 3"]
Pictures = Float[np.ndarray, "b s s 3"]
BLOCK = 8  # pixels along a side of a latent pixel, and of JPEG's blocks
SHARP = 0.35  # sigma of a kernel that only interpolates, pixels


def damaged(pixels: Bytes, rng: np.random.Generator) -> Bytes:
    """The pictures, nearly all of them changed in several ways."""
    x = _moved(pixels.astype(np.float32), rng)
    for damage, share in DAMAGES:
        chosen = np.flatnonzero(rng.random(len(x)) < share)
        if len(chosen):
            x[chosen] = damage(x[chosen], rng)
    return to_bytes(noised(x, np.maximum(rng.uniform(-6, 14, len(x)), 0), rng))


def to_bytes(x: Pictures) -> Bytes:
    """Rounded, cut off at 0 and 255."""
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)


def noised(x: Pictures, strength: Float[np.ndarray, "b"], rng: np.random.Generator) -> Pictures:
    """White noise; strength: its standard deviation in grey levels."""
    return x + _each(strength) * rng.standard_normal(x.shape, np.float32)


def blurred(x: Pictures, sigma: Float[np.ndarray, "b"]) -> Pictures:
    """Gaussian blur; sigma in pixels."""
    where = np.tile(np.arange(x.shape[1], dtype=np.float32), (len(x), 1))
    return _applied([_gaussians(where, sigma)] * 2, x)


def _moved(x: Pictures, rng: np.random.Generator) -> Pictures:
    """Shifted by up to 3 pixels, zoomed by up to 4 % along each axis, and half of them blurred."""
    b, size = x.shape[:2]
    sigma = np.maximum(rng.uniform(-0.8, 1.5, b), SHARP)
    steps = np.arange(size) - (size - 1) / 2
    zooms, shifts = rng.uniform(0.96, 1.04, (2, b, 1)), rng.uniform(-3, 3, (2, b, 1))
    where = np.clip(steps * zooms + shifts - steps[0], 0, size - 1)  # [2 b s], clipped: edges repeat
    return _applied([_gaussians(w, sigma) for w in where], x)


def _halved(x: Pictures, rng: np.random.Generator) -> Pictures:
    """At half the size and back."""
    b, h, w, c = x.shape
    small = x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    return small.repeat(2, axis=1).repeat(2, axis=2)


def _recoloured(x: Pictures, rng: np.random.Generator) -> Pictures:
    """Of another contrast, saturation, white point and brightness."""
    contrast, saturation = (_each(rng.uniform(0.85, 1.15, len(x))) for _ in range(2))
    x = 128 + contrast * (x - 128)
    grey = x.mean(axis=3, keepdims=True)
    white = rng.uniform(0.94, 1.06, (len(x), 1, 1, 3)).astype(np.float32)
    return (grey + saturation * (x - grey)) * white + _each(rng.uniform(-12, 12, len(x)))


def _mottled(x: Pictures, rng: np.random.Generator) -> Pictures:
    """With soft coloured blotches as large as latent pixels."""
    b, h, w, c = x.shape
    blotches = rng.standard_normal((b, h // BLOCK, w // BLOCK, c), np.float32)
    soft = blurred(blotches.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2), np.full(b, BLOCK / 2))
    return x + _each(rng.uniform(3, 20, len(x))) * soft


def _quantised(x: Pictures, rng: np.random.Generator) -> Pictures:
    """With rounded coefficients of the blocks' cosine transforms, the fine ones most: what JPEG does."""
    size = x.shape[1]
    cosines = np.kron(np.eye(size // BLOCK, dtype=np.float32), _COSINES)
    frequency = np.arange(size) % BLOCK
    coarse = 1 + 0.6 * (frequency[:, None] + frequency)[None, :, :, None]
    step = (_each(rng.uniform(4, 20, len(x))) * coarse).astype(np.float32)
    return _applied([cosines.T] * 2, step * np.round(_applied([cosines] * 2, x) / step))


DAMAGES: tuple[tuple[Callable[[Pictures, np.random.Generator], Pictures], float], ...] = (
    (_halved, 0.15),
    (_recoloured, 0.7),
    (_mottled, 0.3),
    (_quantised, 0.3),
)
_PHASES = np.pi * (np.arange(BLOCK) + 0.5) * np.arange(BLOCK)[:, None] / BLOCK
_COSINES = (np.cos(_PHASES) * np.sqrt(np.where(np.arange(BLOCK) > 0, 2, 1) / BLOCK)[:, None]).astype(np.float32)


def _gaussians(where: Float[np.ndarray, "b s"], sigma: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b s s"]:
    """Matrices that give each place of the result the mean around `where` in the picture."""
    distance = where[:, :, None] - np.arange(where.shape[1])
    kernel = np.exp(-0.5 * np.square(distance / sigma[:, None, None])).astype(np.float32)
    return kernel / kernel.sum(axis=2, keepdims=True)


def _applied(matrices: list[Float[np.ndarray, "*b s s"]], x: Pictures) -> Pictures:
    """The first matrix on each column of pixels, the second on each row."""
    for matrix in matrices:
        x = np.swapaxes((matrix @ x.reshape(*x.shape[:2], -1)).reshape(x.shape), 1, 2)
    return np.ascontiguousarray(x)


def _each(values: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b 1 1 1"]:
    return values.astype(np.float32)[:, None, None, None]
