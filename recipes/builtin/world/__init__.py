"""The world drawn, procedurally: what the model and its LoRAs are trained on. Its words are recipes.builtin.words."""

from recipes.builtin.world.draw import draw
from recipes.builtin.world.sets import character_set, pixel_art, style_set, write_folder

__all__ = ["character_set", "draw", "pixel_art", "style_set", "write_folder"]
