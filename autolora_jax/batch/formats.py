"""In which form a picture is kept: array and settings -> the bytes of a file. Equal input, equal bytes.

Features are kept in place of pictures that are drawn to be measured and not to be looked at. They are those that
`autolora evaluate` takes of the pictures' PNG files, by the same code: a network's square of pixels is made on the
host, while the devices draw the batches after, and they compute the features in between.
"""

import io
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float32
from PIL import Image
from safetensors.numpy import save

from autolora_jax.batch.plan import Plan
from autolora_jax.config import ConfigError
from autolora_jax.evaluation.encoders import open_encoder
from autolora_jax.evaluation.features import PictureEncoder
from autolora_jax.evaluation.kept import FEATURES, Source
from autolora_jax.image_files import PictureError
from autolora_jax.pictures import chunks, png_bytes
from autolora_jax.settings.jobs import OutputConfig
from autolora_jax.sharding import data_mesh

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


class Features:
    """Takes features by one model. Its weights are loaded when the first pictures come.

    size: of a vector. source: what a place and its files say of the model.
    """

    def __init__(self, encoder: PictureEncoder) -> None:
        self.size, self.source = encoder.size, Source(encoder.name, encoder.identity)
        self._encoder = encoder
        self._one_at_a_time = threading.Lock()  # else two batches would load the weights

    def of(self, pictures: Sequence[np.ndarray], pool: Executor) -> Float32[np.ndarray, "n d"]:
        """Of pictures uint8 [H W 3], as many as one batch has. pool: for what can be done at once."""
        if not pictures:
            return np.zeros((0, self.size), np.float32)
        prepared = list(pool.map(lambda pixels: self._encoder.prepare(Image.fromarray(pixels)), pictures))
        with self._one_at_a_time:
            return self._encoder.encode(np.stack(prepared))


def open_features(output: OutputConfig, plan: Plan, devices: Sequence[jax.Device] | None = None) -> Features | None:
    """What takes the features that a job keeps; None when it keeps something else.

    devices: default: this process's. Raises WeightsError, ConfigError for a model that can't be used, or not for this
    plan's pictures.
    """
    if not FORMATS[output.format].features:
        return None
    encoder = open_encoder(output.features, data_mesh(jax.local_devices() if devices is None else devices))
    for size in dict.fromkeys(recipe.size for recipe in plan.recipes):
        try:
            encoder.prepare(Image.new("RGB", size))
        except PictureError as e:
            raise ConfigError(f"output.features = {output.features!r}: a picture of this job {e}") from None
    return Features(encoder)
