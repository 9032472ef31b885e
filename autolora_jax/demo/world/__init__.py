"""A procedurally drawn, captioned picture world: what the small built-in model is trained on and measured by."""

from autolora_jax.demo.world.captions import WORDS, caption, full_caption, named
from autolora_jax.demo.world.character import character_set
from autolora_jax.demo.world.draw import draw
from autolora_jax.demo.world.scene import (
    CHARACTER,
    COLOURS,
    LABELS,
    PLACES,
    SIDES,
    SIZES,
    SKIES,
    SUBJECTS,
    Scene,
    is_held_out,
    labels,
    sample_scene,
)
from autolora_jax.demo.world.style import pixel_art, style_set, write_folder

__all__ = [
    "CHARACTER",
    "COLOURS",
    "LABELS",
    "PLACES",
    "SIDES",
    "SIZES",
    "SKIES",
    "SUBJECTS",
    "WORDS",
    "Scene",
    "caption",
    "character_set",
    "draw",
    "full_caption",
    "is_held_out",
    "labels",
    "named",
    "pixel_art",
    "sample_scene",
    "style_set",
    "write_folder",
]
