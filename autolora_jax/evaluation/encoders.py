"""The models whose features stand for pictures: DINOv2, CLIP, and the classifier of the built-in model's world."""

import functools
import hashlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32, UInt8
from PIL import Image

from autolora_jax.config import (
    CLIPConfig,
    CLIPTextConfig,
    Dinov2Config,
    ImageProcessorConfig,
    image_processor,
    read_json,
)
from autolora_jax.demo import MODEL as BUILTIN
from autolora_jax.demo import classifier
from autolora_jax.evaluation.features import BATCH_SIZE, Encoder, PictureEncoder, Placement
from autolora_jax.image_files import PictureError
from autolora_jax.models.attention import default_implementation
from autolora_jax.models.networks import network_of
from autolora_jax.text.tokens import open_tokenizer
from autolora_jax.weights.errors import WeightsError
from autolora_jax.weights.transformers_folder import Pretrained, open_pretrained

# Names of models -> hub ids.
PUBLISHED: Mapping[str, str] = {
    **{f"dinov2-{size}": f"facebook/dinov2-{size}" for size in ("giant", "large", "base", "small")},
    "clip": "openai/clip-vit-large-patch14",
    "pickscore": "yuvalkirstain/PickScore_v1",
}
RECIPE = 1  # of how features are made of a model; cached ones of another are not taken
PathOrId = str | PathLike[str]
Function = Callable[[Any, Array], Array]  # (parameters, rows) -> vectors


class Clip:
    """CLIP: pictures and texts as vectors of one space. Both halves share one copy of the weights.

    pictures: its vision half. identity: of the features of texts; size: of a vector. temperature: what cosines were
    multiplied by when it was trained; read when it is asked for.
    """

    def __init__(self, model: "_Model", config: CLIPConfig) -> None:
        self.size = config.projection_dim
        self.pictures = model.pictures(self.size, functools.partial(model.apply, method="image_features"))
        self.identity = f"{self.pictures.identity}-texts"
        self.temperature = functools.cache(lambda: math.exp(model.pretrained.number("logit_scale")))
        self._texts = model.encoder(functools.partial(model.apply, method="text_features"))
        self._length = config.text_config.max_position_embeddings
        self._tokenizer = functools.cache(lambda: open_tokenizer(CLIPTextConfig, model.pretrained.tokenizer()))

    def texts(self, texts: Sequence[str]) -> Float32[np.ndarray, "n d"]:
        """A vector a text. Warns of texts that are too long to be read whole."""
        tokenizer = self._tokenizer()
        if cut := sum(len(ids) > self._length for ids in tokenizer(list(texts)).input_ids):
            said = f"{cut} of {len(texts)} prompts are longer than the {self._length} tokens CLIP reads"
            warnings.warn(said, stacklevel=2)
        padded = tokenizer(list(texts), padding="max_length", max_length=self._length, truncation=True).input_ids
        return self._texts(np.array(padded, np.int32))


def open_encoder(
    name: PathOrId,
    mesh: Mesh,
    *,
    dtype: str = "float32",
    batch_size: int = BATCH_SIZE,
    cache_dir: PathOrId | None = None,
) -> PictureEncoder:
    """The model of a name.

    name: a key of PUBLISHED; "builtin", for pictures of the built-in model; a folder or hub id of a DINOv2 or CLIP.
    dtype: "float32" or "bfloat16", of weights and products.
    batch_size: pictures a device. cache_dir: of hub repositories.
    Raises WeightsError or ConfigError.
    """
    if name == BUILTIN:
        return _builtin(mesh, batch_size)
    model = _Model(name, mesh, dtype, batch_size, cache_dir)
    match model.pretrained.config:
        case CLIPConfig() as config:
            return Clip(model, config).pictures
        case Dinov2Config() as config:
            return model.pictures(config.hidden_size, lambda params, pixels: model.apply(params, pixels)[:, 0])
    raise AssertionError("open_pretrained opens nothing else")


def open_clip(
    name: PathOrId,
    mesh: Mesh,
    *,
    dtype: str = "float32",
    batch_size: int = BATCH_SIZE,
    cache_dir: PathOrId | None = None,
) -> Clip:
    """The CLIP of a name, as for open_encoder. Raises WeightsError for another kind of model."""
    model = _Model(name, mesh, dtype, batch_size, cache_dir)
    if not isinstance(model.pretrained.config, CLIPConfig):
        raise WeightsError(f"{model.pretrained.name} is no CLIP, which reads texts; give clip, a folder or a hub id")
    return Clip(model, model.pretrained.config)


class _Model:
    """An opened network, and how it is run."""

    def __init__(self, name: PathOrId, mesh: Mesh, dtype: str, batch_size: int, cache_dir: PathOrId | None) -> None:
        self.name = str(name)
        self.pretrained: Pretrained = open_pretrained(PUBLISHED.get(self.name, name), cache_dir=cache_dir)
        self._mesh, self._dtype, self._batch_size = mesh, dtype, batch_size
        attention = default_implementation(mesh.devices.flat[0].platform, dtype)
        dtypes = {"dtype": jnp.dtype(dtype), "param_dtype": jnp.dtype(dtype)}
        self._network = network_of(self.pretrained.config, **dtypes, attention=attention)
        self._load = functools.cache(lambda placement: self.pretrained.load(dtype, placement))

    def apply(self, params: Any, x: Array, method: str | None = None) -> Any:
        """What a method of the network makes of x."""
        return self._network.apply({"params": params}, x, method=method)

    def encoder(self, function: Function) -> Encoder:
        """A function of the parameters, mapped over the mesh."""
        return Encoder(function, self._load, self._mesh, self._batch_size)

    def pictures(self, size: int, function: Function) -> PictureEncoder:
        """function: (parameters, pictures as the network takes them) -> [n size]."""
        wants = _image_processor(self.pretrained)
        return PictureEncoder(
            self.name,
            _identity(self.name, RECIPE, self.pretrained.fingerprint(), wants, self._dtype),
            size,
            lambda image: prepared(image, wants),
            self.encoder(lambda params, pixels: function(params, normalised(pixels, wants))),
        )


def prepared(image: Image.Image, config: ImageProcessorConfig) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB picture as a vision model sees it, by transformers' processors: the middle, of 8-bit pixels, of what it is
    once its shortest edge was resized (bicubic, antialiased).

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


def _image_processor(pretrained: Pretrained) -> ImageProcessorConfig:
    """What the files beside the weights say; where there are none, what the published ones do."""
    names = pretrained.folder.names()
    for file, part in (("preprocessor_config.json", None), ("processor_config.json", "image_processor")):
        if file in names:
            path = pretrained.folder.path(file)
            raw = read_json(path)
            return ImageProcessorConfig.from_dict(raw[part] if part else raw, str(path))
    return image_processor.CLIP if isinstance(pretrained.config, CLIPConfig) else image_processor.DINOV2


def _builtin(mesh: Mesh, batch_size: int) -> PictureEncoder:
    network = classifier.Network()
    side = classifier.SIZE

    def square(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
        if image.size != (side, side):
            size = "{} × {}".format(*image.size)
            raise PictureError(f"is {size} pixels; the features {BUILTIN!r} are of pictures of {side} × {side}")
        return np.asarray(image)

    def features(params: Any, pixels: Array) -> Array:
        return network.apply({"params": params}, classifier.normalised(pixels))[1]

    def load(placement: Placement) -> Any:
        return jax.device_put(classifier.Classifier.load().params, placement)

    identity = _identity(BUILTIN, RECIPE, hashlib.sha256(classifier.WEIGHTS.read_bytes()).hexdigest())
    return PictureEncoder(BUILTIN, identity, classifier.FEATURES, square, Encoder(features, load, mesh, batch_size))


def _identity(name: str, *depends: Any) -> str:
    """The start of a file name: readable, and different for everything that features depend on."""
    readable = "".join(c if c.isalnum() else "-" for c in name.rstrip("/").rpartition("/")[2])[:40]
    return f"{readable}-{hashlib.sha256(repr(depends).encode()).hexdigest()[:16]}"
