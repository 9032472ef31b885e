"""In which form a picture is kept: array and settings -> the bytes of a file. Equal input, equal bytes."""

import io
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from safetensors.numpy import save

from autolora_jax.evaluation.kept import FEATURES
from autolora_jax.pictures import chunks, png_bytes

TEXT = 1000  # bytes of a file that say how its picture was made, roughly
EXIF, USER_COMMENT = 0x8769, 0x9286  # where A1111 writes its parameters in files without text chunks
Encode = Callable[[np.ndarray, Mapping[str, Any], int], bytes]  # (array, settings, quality)


class Format(NamedTuple):
    """What is kept: pixels uint8 [H W 3], the sampler's latents [h w c], or features [d] of the pixels.

    bytes_per_pixel: roughly, to estimate what a job needs.
    """

    suffix: str
    encode: Encode
    bytes_per_pixel: float
    latents: bool = False
    features: bool = False


def _png(pixels: np.ndarray, settings: Mapping[str, Any], quality: int) -> bytes:
    return png_bytes(Image.fromarray(pixels), chunks(settings))


def _with_exif(kind: str) -> Encode:
    def encode(pixels: np.ndarray, settings: Mapping[str, Any], quality: int) -> bytes:
        exif = Image.Exif()
        text = chunks(settings)["parameters"].encode("utf-16-be", "replace")
        exif.get_ifd(EXIF)[USER_COMMENT] = b"UNICODE\0" + text
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind, quality=quality, exif=exif)
        return file.getvalue()

    return encode


def _array(name: str) -> Encode:
    def encode(values: np.ndarray, settings: Mapping[str, Any], quality: int) -> bytes:
        # One text alone: safetensors writes several in any order.
        return save({name: np.ascontiguousarray(values)}, {"autolora": chunks(settings)["autolora"]})

    return encode


FORMATS: Mapping[str, Format] = {
    "png": Format("png", _png, 1.6),
    "webp": Format("webp", _with_exif("WEBP"), 0.2),
    "jpeg": Format("jpg", _with_exif("JPEG"), 0.3),
    "latent": Format("safetensors", _array("latents"), 0.25, latents=True),
    "features": Format("safetensors", _array(FEATURES), 0.0, features=True),
}
