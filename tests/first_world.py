"""Pictures of the first edition's world, which the shipped model and classifier know; the recipe draws the second's.

tests/data/first_world.webp holds them one below the other: 60 of any scene, the character in each of 30 places and
skies, and 20 of the first as pixel art.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from autolora_jax.demo.world import Scene

DATA = Path(__file__).with_name("data")
ANY, ZIBS = 60, 30


class World(NamedTuple):
    """uint8 [n 96 96 3] and what is on them; art: of the first scenes."""

    scenes: list[Scene]
    pixels: np.ndarray
    zibs: list[Scene]
    zib_pixels: np.ndarray
    art: np.ndarray


def first_world() -> World:
    """All of them."""
    scenes = [Scene(**words) for words in json.loads((DATA / "first_world.json").read_text(encoding="utf-8"))]
    stack = np.asarray(Image.open(DATA / "first_world.webp")).reshape(-1, 96, 96, 3)
    pixels, zib_pixels, art = np.split(stack, (ANY, ANY + ZIBS))
    return World(scenes[:ANY], pixels, scenes[ANY:], zib_pixels, art)
