"""What small autoencoders and diffusion models do to pictures, imitated: the classifier must see through it.

Pictures are float32 [b h w 3], 0..255 and a little beyond; every picture is damaged with a strength of its own.
"""

import numpy as np
from jaxtyping import Float, UInt8

Bytes = UInt8[np.ndarray, "b h w 3"]
Pictures = Float[np.ndarray, "b h w 3"]
REACH = 4  # of the blur's kernel, pixels
BLOCK = 8  # of the imitated JPEG, pixels


def damaged(pixels: Bytes, rng: np.random.Generator) -> Bytes:
    """The pictures, nearly all of them changed in one way or several."""
    x = moved(pixels.astype(np.float32), rng)
    for damage, share in DAMAGES:
        chosen = np.flatnonzero(rng.random(len(x)) < share)
        if len(chosen):
            x[chosen] = damage(x[chosen], rng)
    return to_bytes(noised(x, np.maximum(rng.uniform(-6, 14, len(x)), 0), rng))


def to_bytes(x: Pictures) -> Bytes:
    """Rounded, cut off at 0 and 255."""
    return np.clip(x + 0.5, 0, 255).astype(np.uint8)


def noised(x: Pictures, strength: Float[np.ndarray, "b"], rng: np.random.Generator) -> Pictures:
    """White noise of a standard deviation in grey levels."""
    return x + _each(strength) * rng.standard_normal(x.shape, np.float32)


def blurred(x: Pictures, sigma: Float[np.ndarray, "b"]) -> Pictures:
    """Gaussian blur, sigma in pixels; edges repeat."""
    offsets = np.arange(-REACH, REACH + 1)
    kernel = np.exp(-0.5 * np.square(offsets / sigma[:, None]))
    kernel = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)  # [b taps]
    for axis in (1, 2):
        size = x.shape[axis]
        x = sum(
            _each(kernel[:, i]) * np.take(x, np.clip(np.arange(size) + offset, 0, size - 1), axis)
            for i, offset in enumerate(offsets)
        )
    return x


def moved(x: Pictures, rng: np.random.Generator) -> Pictures:
    """Shifted by up to 3 pixels and zoomed by up to 4 % along each axis; edges repeat."""
    for _ in range(2):
        zoom, shift = rng.uniform(0.96, 1.04, (len(x), 1)), rng.uniform(-3, 3, (len(x), 1))
        last = x.shape[1] - 1
        where = np.clip((np.arange(last + 1) - last / 2) * zoom + last / 2 + shift, 0, last)  # [b h]
        low = np.minimum(where.astype(np.int64), last - 1)
        part = (where - low).astype(np.float32)[:, :, None, None]
        picture = np.arange(len(x))[:, None]
        x = np.swapaxes(x[picture, low] * (1 - part) + x[picture, low + 1] * part, 1, 2)
    return np.ascontiguousarray(x)


def _soft(x: Pictures, rng: np.random.Generator) -> Pictures:
    return blurred(x, rng.uniform(0.3, 1.5, len(x)))


def _halved(x: Pictures, rng: np.random.Generator) -> Pictures:
    """At half the size and back."""
    b, h, w, c = x.shape
    small = x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))
    return small.repeat(2, axis=1).repeat(2, axis=2)


def _recoloured(x: Pictures, rng: np.random.Generator) -> Pictures:
    """Other contrast, saturation, white point and brightness."""
    contrast, saturation = (_each(rng.uniform(0.85, 1.15, len(x))) for _ in range(2))
    x = 128 + contrast * (x - 128)
    grey = x.mean(axis=3, keepdims=True)
    gain = rng.uniform(0.94, 1.06, (len(x), 1, 1, 3)).astype(np.float32)
    return (grey + saturation * (x - grey)) * gain + _each(rng.uniform(-12, 12, len(x)))


def _mottled(x: Pictures, rng: np.random.Generator) -> Pictures:
    """Coloured blotches as large as latent pixels."""
    b, h, w, c = x.shape
    blotches = rng.standard_normal((b, h // BLOCK, w // BLOCK, c), np.float32)
    return x + _each(rng.uniform(2, 12, b)) * blurred(blotches.repeat(BLOCK, axis=1).repeat(BLOCK, axis=2), np.full(b, 3.0))


def _quantised(x: Pictures, rng: np.random.Generator) -> Pictures:
    """Coefficients of each block's cosine transform, rounded, the fine ones most: what JPEG does."""
    b, h, w, c = x.shape
    blocks = x.reshape(b, h // BLOCK, BLOCK, w // BLOCK, BLOCK, c)
    coefficients = np.einsum("ky,byvxwc->bkvxwc", _COSINES, blocks.transpose(0, 2, 1, 3, 4, 5), optimize=True)
    return x


def _each(values: Float[np.ndarray, "b"]) -> Float[np.ndarray, "b 1 1 1"]:
    return values.astype(np.float32)[:, None, None, None]
