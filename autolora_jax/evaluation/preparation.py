"""From a picture of any size to the square that a vision model sees, on the host, as transformers' processors do it."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from autolora_jax.config import ImageProcessorConfig


def prepared(image: Image.Image, config: ImageProcessorConfig) -> UInt8[np.ndarray, "h w 3"]:
    """The middle of an RGB picture whose shortest edge was resized (bicubic, antialiased): 8-bit pixels.

    Source: transformers 5.23 image_processing_backends.py PilBackend; image_transforms.py for how it rounds.
    """
    width, height = image.size
    shortest = min(width, height)
    width, height = (config.size * edge // shortest for edge in (width, height))
    left, top = ((edge - config.crop_size) // 2 for edge in (width, height))
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized.crop((left, top, left + config.crop_size, top + config.crop_size)))


def normalised(pixels: UInt8[Array, "n h w 3"], config: ImageProcessorConfig) -> Float[Array, "n h w 3"]:
    """Prepared pixels as the network takes them."""
    mean, std = (jnp.asarray(x, jnp.float32)[None, None, None] for x in (config.image_mean, config.image_std))
    return (pixels.astype(jnp.float32) / 255 - mean) / std
