"""Pictures on disk for training tests, and what is wrong with a folder of them."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autolora_jax.training.dataset import DatasetError, read_folder

RED, WHITE = (255, 0, 0), (255, 255, 255)


def draw(path: Path, size: tuple[int, int] = (12, 16), mode: str = "RGB", colour=RED, **options) -> Path:
    """Writes a picture of one colour; size is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size[::-1], colour).save(path, **options)
    return path


def pair(folder: Path, name: str, caption: str = "a fox", **options) -> Path:
    path = draw(folder / name, **options)
    path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def problems(folder: Path, **options) -> tuple[str, ...]:
    with pytest.raises(DatasetError) as caught:
        read_folder(folder, **options)
    return caught.value.problems


def noise_picture(height: int, width: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
