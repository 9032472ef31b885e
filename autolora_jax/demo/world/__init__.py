"""A procedurally drawn, captioned picture world: what the small built-in model is trained on and measured by."""

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
    WORDS,
    Scene,
    caption,
    full_caption,
    is_held_out,
    labels,
    named,
    sample_scene,
)
from autolora_jax.demo.world.sets import CONTEXT, PIXELS, STYLE, character_set, pixel_art, style_set, write_folder

__all__ = [
    "CHARACTER",
    "COLOURS",
    "CONTEXT",
    "LABELS",
    "PIXELS",
    "PLACES",
    "SIDES",
    "SIZES",
    "SKIES",
    "STYLE",
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
