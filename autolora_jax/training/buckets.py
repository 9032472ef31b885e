"""Examples -> buckets of few shapes -> batches: which pixels a step trains on, and what SDXL is told about their size.

Source: kohya-ss/sd-scripts@48d368fa library/model_util.py make_bucket_resolutions (which shapes);
diffusers@58eb52c0 examples/text_to_image/train_text_to_image_lora_sdxl.py preprocess_train (resize, crop, time ids).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8, UInt64
from PIL import Image

from autolora_jax.image_files import PictureError, read_rgb
from autolora_jax.text import Sizes
from autolora_jax.training.dataset import DatasetError, Example

Size = tuple[int, int]  # (height, width), pixels
MULTIPLE = 8  # of the VAE


@dataclass(frozen=True)
class Crop:
    """How a picture becomes one of its bucket's shape: resize, then cut out. Pixels, (height, width) or (top, left).

    original: the file's size.
    resized: covers the target and exceeds it along one axis at most.
    top_left: of the target in the resized picture.
    target: the bucket.
    """

    original: Size
    resized: Size
    top_left: tuple[int, int]
    target: Size

    def sizes(self, flip: bool = False) -> Sizes:
        """SDXL's conditioning. With `flip`, the crop's left edge is counted in the mirrored picture.

        So numbers and pixels agree, as in diffusers, which mirrors the resized picture first and crops it then. (Its
        train_lcm_distill_lora_sdxl.py crops first and then gives `cropped width - left`, which is no edge of the crop.)
        """
        top, left = self.top_left
        return Sizes(self.original, (top, self.resized[1] - self.target[1] - left if flip else left), self.target)

    def time_ids(self, flip: bool = False) -> Float[np.ndarray, "6"]:
        """(original, top left, target) as the network's `time_ids`, float32."""
        return self.sizes(flip).time_ids()


class Batch(NamedTuple):
    """indices: rows of the batch, as positions in the examples; all of one bucket."""

    bucket: Size
    indices: tuple[int, ...]


def make_buckets(
    resolution: int,
    *,
    minimum: int | None = None,
    maximum: int | None = None,
    step: int = 64,
    max_aspect: float | int = 2,
) -> tuple[Size, ...]:
    """(height, width) of all buckets: for each length of one side the longest other, of at most resolution² pixels.

    resolution: side of the square bucket, a multiple of `step`.
    minimum, maximum: limits of both sides; None is no limit.
    step: what sides are multiples of, itself a multiple of 8.
    max_aspect: of the longer to the shorter side; 1 turns bucketing off: the square alone.
    """
    if step < MULTIPLE or step % MULTIPLE:
        raise ValueError(f"step is {step}; expected a multiple of {MULTIPLE}, as 64 for SDXL")
    if resolution < step or resolution % step:
        near = max(1, round(resolution / step)) * step
        raise ValueError(f"resolution {resolution} is not a multiple of step {step}; use {near}, or another step")
    if not max_aspect >= 1:
        raise ValueError(f"max_aspect is {max_aspect}; expected at least 1 (longer side / shorter side)")
    low, high = minimum or step, maximum or resolution**2 // step
    if not low <= resolution <= high:
        raise ValueError(f"resolution {resolution} is outside minimum {low} to maximum {high}")
    buckets = {(resolution, resolution)}
    for side in range(-(-low // step) * step, high + 1, step):
        other = min(resolution**2 // side, high) // step * step
        if other >= low and max(side, other) <= max_aspect * min(side, other):
            buckets |= {(side, other), (other, side)}
    return tuple(sorted(buckets))


def assign(
    size: Size,
    buckets: Sequence[Size],
    *,
    upscale: bool = True,
    place: Literal["center", "random"] = "center",
    seed: int = 0,
) -> Crop:
    """The bucket nearest in aspect ratio, and how a picture is resized and cropped to it.

    upscale: whether a picture may be enlarged (SDXL is told its original size). If not, only buckets that it covers
        are considered.
    place: "random" picks among all positions by `seed` (not negative), the same for the same seed.
    Raises ValueError if upscale is false and every bucket is larger than the picture.
    """
    height, width = size
    fitting = [b for b in buckets if upscale or (b[0] <= height and b[1] <= width)]
    if not fitting:
        raise ValueError(f"{height} × {width} pixels cover no bucket; allow upscaling, or lower the resolution")

    def mismatch(bucket: Size) -> tuple[float, int, Size]:
        a, b = height * bucket[1], width * bucket[0]
        return max(a, b) / min(a, b), -bucket[0] * bucket[1], bucket  # ratio of aspect ratios; ties: the larger

    target = min(fitting, key=mismatch)
    resized = _cover(size, target)
    spare = (resized[0] - target[0], resized[1] - target[1])
    if place == "random":
        top, left = (int(r) % (s + 1) for r, s in zip(_random(2, seed), spare, strict=True))
    else:
        top, left = round(spare[0] / 2), round(spare[1] / 2)
    return Crop(size, resized, (top, left), target)


def assign_all(
    examples: Sequence[Example],
    buckets: Sequence[Size],
    *,
    upscale: bool = True,
    place: Literal["center", "random"] = "center",
    seed: int = 0,
) -> tuple[Crop, ...]:
    """`assign` for each example, with a seed of its own. Raises DatasetError that names all that fit no bucket."""
    crops, problems = [], []
    for i, example in enumerate(examples):
        own = int(_random(1, seed, i)[0]) if place == "random" else 0
        try:
            crops.append(assign(example.size, buckets, upscale=upscale, place=place, seed=own))
        except ValueError as e:
            problems.append(f"{example.path}: {e}")
    if problems:
        raise DatasetError(f"{len(problems)} of {len(examples)} pictures", problems)
    return tuple(crops)


def load_pixels(
    example: Example, crop: Crop, flip: bool = False, sha256: str | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The picture resized (Lanczos, antialiased) and cropped to its bucket; `flip` mirrors the result left to right.

    sha256: what its file should hold; None: anything.
    Raises DatasetError if the file can't be decoded or is not the one that was listed.
    """
    try:
        content = example.path.read_bytes()
        if sha256 not in (None, hashlib.sha256(content).hexdigest()):
            raise PictureError("is not the picture that it was a moment ago; run again when nobody writes there")
        image = read_rgb(BytesIO(content))
    except OSError as e:
        raise DatasetError(example.path, [f"can't be read: {e.strerror}"]) from e
    except PictureError as e:
        raise DatasetError(example.path, [str(e)]) from e
    if (image.height, image.width) != crop.original:
        expected, came = " × ".join(map(str, crop.original)), f"{image.height} × {image.width}"
        raise DatasetError(example.path, [f"is {came} pixels, was {expected}; list the folder again"])
    y, x = image.height / crop.resized[0], image.width / crop.resized[1]
    (top, left), (rows, columns) = crop.top_left, crop.target
    # The crop alone is computed, of the whole picture's neighbourhood: a panorama enlarged in full may fill the memory.
    box = (left * x, top * y, min((left + columns) * x, image.width), min((top + rows) * y, image.height))
    pixels = np.asarray(image.resize((columns, rows), Image.Resampling.LANCZOS, box))
    return np.ascontiguousarray(pixels[:, ::-1] if flip else pixels)


class Plan:
    """Which examples each step trains on: a pure function of (seed, step), so a resumed run needs no state.

    An epoch has every example `repeats` times, shuffled by (seed, epoch); every batch is of one bucket and full: what
    is left over in a bucket is filled up from the beginning of its shuffled rows.
    """

    def __init__(self, examples: Sequence[Example], crops: Sequence[Crop], batch_size: int, seed: int = 0) -> None:
        """crops: one for each example. batch_size: rows of a batch. seed: not negative."""
        if not examples or len(examples) != len(crops):
            raise ValueError(f"expected a crop for each of at least one example; got {len(examples)} and {len(crops)}")
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size is {batch_size} and seed {seed}; expected at least 1 and at least 0")
        self.batch_size, self.seed = batch_size, seed
        groups: dict[Size, list[int]] = {}
        for i, (example, crop) in enumerate(zip(examples, crops, strict=True)):
            groups.setdefault(crop.target, []).extend([i] * example.repeats)
        self._groups = {bucket: np.array(groups[bucket]) for bucket in sorted(groups)}
        self.steps_per_epoch = sum(-(-len(rows) // batch_size) for rows in groups.values())
        self._cached: tuple[int, tuple[Batch, ...]] = (-1, ())

    def epoch(self, epoch: int) -> tuple[Batch, ...]:
        """All batches of an epoch (from 0), in order."""
        batches = []
        for number, (bucket, rows) in enumerate(self._groups.items()):
            shuffled = rows[_order(len(rows), self.seed, epoch, number)]
            whole = -(-len(rows) // self.batch_size) * self.batch_size
            table = np.resize(shuffled, (whole // self.batch_size, self.batch_size))  # repeats from the beginning
            batches += [Batch(bucket, tuple(indices)) for indices in table.tolist()]
        return tuple(batches[i] for i in _order(len(batches), self.seed, epoch, len(self._groups)))

    def batch_at(self, step: int) -> Batch:
        """The batch of global step `step` (from 0). Remembers the current epoch only."""
        epoch, position = divmod(step, self.steps_per_epoch)
        cached, batches = self._cached
        if cached != epoch:
            batches = self.epoch(epoch)
            self._cached = epoch, batches
        return batches[position]


def _cover(size: Size, target: Size) -> Size:
    """The smallest size of a picture's aspect ratio that covers the target; the longer side is rounded down."""
    (height, width), (rows, columns) = size, target
    if rows * width >= columns * height:
        return rows, rows * width // height
    return columns * height // width, columns


def _random(count: int, *entropy: int) -> UInt64[np.ndarray, "{count}"]:
    """Uniform 64-bit integers. numpy keeps the stream of a bit generator, and not that of `Generator`, for ever."""
    return np.random.PCG64(list(entropy)).random_raw(count)


def _order(count: int, *entropy: int) -> np.ndarray:
    """A permutation of 0 … count − 1."""
    return np.argsort(_random(count, *entropy), kind="stable")
