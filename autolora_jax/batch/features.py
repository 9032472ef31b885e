"""Features in place of pictures: what is kept of pictures that are drawn to be measured and not to be looked at.

They are those that `autolora evaluate` takes of the pictures' PNG files, by the same code: a network's square of pixels
is made on the host, while the devices draw the batches after, and they compute the features in between.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Executor

import jax
import numpy as np
from jaxtyping import Float32
from PIL import Image

from autolora_jax.batch.formats import FORMATS
from autolora_jax.batch.plan import Plan
from autolora_jax.config import ConfigError
from autolora_jax.evaluation.encoders import open_encoder
from autolora_jax.evaluation.features import PictureEncoder
from autolora_jax.evaluation.kept import Source
from autolora_jax.settings.jobs import OutputConfig
from autolora_jax.sharding import data_mesh
from autolora_jax.training.image_files import PictureError


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
