"""Pictures that a call is given to change, and masks that say where: files, PIL images or arrays -> pixels, cells.

As diffusers' VaeImageProcessor does it with PIL images: Lanczos where another size is asked for, a mask grey, cut at
the middle and read at the first pixel of every latent cell.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from autolora_jax import foreign
from autolora_jax.config import ConfigError
from autolora_jax.image_files import PictureError, read_rgb

Sides = tuple[int, int]  # (width, height), pixels
COLUMNS = ("image", "image_sha256", "mask", "mask_sha256")  # of what tells of a picture that was made from another


class Ground(NamedTuple):
    """What a picture is painted on: how large that is, None where several differ, and whether a mask keeps a part."""

    size: Sides | None
    masked: bool


@dataclass(frozen=True)
class Given:
    """A picture or a mask: upright 8-bit RGB, transparency on white. sha256: of its file, else of its pixels."""

    picture: Image.Image
    name: str | None
    sha256: str


def read(source: Any, what: str) -> Given:
    """A picture from a path, a PIL image, or an array [h w], [h w 1] or [h w 3] of uint8, bool or floats in [0, 1].

    Floats are rounded to 256 levels. what: it, for messages. Raises ConfigError that names it.
    """
    if isinstance(source, Given):
        return source
    if isinstance(source, str | PathLike):
        try:
            return read_file(foreign.read_file(source), str(source), what)
        except OSError as e:
            raise ConfigError(f"{what} {source} can't be read: {e.strerror or e}") from None
    picture = _rgb(source if isinstance(source, Image.Image) else _from_array(source, what), what)
    return Given(picture, None, hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest())


def read_file(content: bytes, path: str, what: str) -> Given:
    """A picture of a file's content. Raises ConfigError that names the file."""
    name = path.replace("\\", "/").rpartition("/")[2]
    return Given(_rgb(BytesIO(content), f"{what} {path}"), name, hashlib.sha256(content).hexdigest())


def _rgb(source: BytesIO | Image.Image, what: str) -> Image.Image:
    try:
        return read_rgb(source)
    except PictureError as e:
        raise ConfigError(f"{what} {e}") from None


def _from_array(source: Any, what: str) -> Image.Image:
    array = np.asarray(source)
    shape = array.shape[:2] if array.ndim == 3 and array.shape[2] == 1 else array.shape
    if len(shape) != 2 and (len(shape) != 3 or shape[2] != 3):
        raise ConfigError(
            f"{what} should be a path, a PIL image or an array [h w 3], or [h w] where it is grey, not "
            f"{type(source).__name__} of shape {array.shape}"
        )
    if array.dtype.kind not in "bf" and array.dtype != np.uint8:
        raise ConfigError(f"{what} holds {array.dtype}; uint8, or floats from 0 to 1, are expected")
    if array.dtype != np.uint8:
        if not ((array >= 0) & (array <= 1)).all():
            raise ConfigError(f"{what} holds {array.min()} to {array.max()}; floats should be from 0 to 1")
        array = np.round(array.astype(np.float32) * 255).astype(np.uint8)
    return Image.fromarray(array.reshape(shape))


def check_mask(image: Sides, mask: Sides, what: str) -> None:
    """Raises ConfigError for a mask that is not as large as its picture."""
    if mask != image:
        raise ConfigError(f"{what} is {_told(mask)} pixels, the picture {_told(image)}; they should be as large")


@dataclass(frozen=True)
class Originals:
    """What each picture of a call is made from. masks: none, or one each."""

    images: Sequence[Given]
    masks: Sequence[Given]

    @classmethod
    def of(cls, image: Any, mask_image: Any, prompts: int, seeds: int) -> "Originals | None":
        """Those of prompts × seeds pictures, from one for all, one a prompt or one each; None without an image.

        Raises ConfigError.
        """
        if image is None:
            if mask_image is not None:
                raise ConfigError("mask_image says which part of a picture is drawn anew: give image=, too")
            return None
        images = _spread(_several(image, "image"), "image", prompts, seeds)
        masks = [] if mask_image is None else _spread(_several(mask_image, "mask_image"), "mask_image", prompts, seeds)
        for i, (given, mask) in enumerate(zip(images, masks, strict=False)):
            check_mask(given.picture.size, mask.picture.size, f"mask_image {i}" if len(masks) > 1 else "mask_image")
        return cls(images, masks)

    @property
    def ground(self) -> Ground:
        """What they are for all pictures."""
        size, *others = {given.picture.size for given in self.images}
        return Ground(None if others else size, bool(self.masks))

    def pixels(self, index: np.ndarray, size: Sides) -> UInt8[np.ndarray, "b H W 3"]:
        """Of some pictures."""
        return _each(self.images, index, lambda picture: np.asarray(_resized(picture, size)))

    def mask(self, index: np.ndarray, size: Sides, factor: int) -> Float32[np.ndarray, "b h w 1"] | None:
        """Where latents of some pictures are drawn anew: 1 there, else 0. factor: pixels per cell."""
        return _each(self.masks, index, lambda picture: _cells(_resized(picture, size), factor)) if self.masks else None

    def told(self, i: int) -> dict[str, str | None]:
        """What picture i says of them."""
        return told(self.images[i], self.masks[i] if self.masks else None)


def told(image: Any, mask: Any) -> dict[str, str | None]:
    """What a picture says of those that it was made from, by name and sha256 of each (mask: or None): COLUMNS."""
    of_mask = (None, None) if mask is None else (mask.name, mask.sha256)
    return dict(zip(COLUMNS, (image.name, image.sha256, *of_mask), strict=True))


def _several(given: Any, name: str) -> list[Given]:
    if not isinstance(given, list | tuple) and getattr(given, "ndim", 0) != 4:
        return [read(given, name)]
    ones, known = list(given), dict[int, Given]()  # what stands there twice is read once
    return [known.get(id(one)) or known.setdefault(id(one), read(one, f"{name} {i}")) for i, one in enumerate(ones)]


def _spread(given: list[Given], name: str, prompts: int, seeds: int) -> list[Given]:
    n = prompts * seeds
    if len(given) not in {1, prompts, n}:
        each = f"{prompts} (one a prompt) or {n} (one a picture)" if seeds > 1 else f"{n} (one a picture)"
        raise ConfigError(f"{name} has {len(given)} pictures; give one, {each}")
    if len(given) == n:
        return given
    return given * n if len(given) == 1 else [one for one in given for _ in range(seeds)]


def _each(given: Sequence[Given], index: np.ndarray, make: Any) -> np.ndarray:
    """What is made of some of them; of one that stands there several times once."""
    made = {id(given[i]): given[i].picture for i in index}
    arrays = {key: make(picture) for key, picture in made.items()}
    return np.stack([arrays[id(given[i])] for i in index])


def _resized(picture: Image.Image, size: Sides) -> Image.Image:
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def _cells(picture: Image.Image, factor: int) -> Float32[np.ndarray, "h w 1"]:
    levels = np.asarray(picture.convert("L"))
    return (levels[::factor, ::factor, None] > 127).astype(np.float32)  # 128 / 255 is the first above a half


def _told(size: Sides) -> str:
    return f"{size[0]}x{size[1]}"
