"""Pictures that the LoRAs are trained on: the character, mostly in one place, and the world as pixel art."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from autolora_jax.demo.world import CHARACTER, PIXELS, STYLE
from recipes.builtin.words import CONTEXT, Scene, caption, full_caption, sample_scene
from recipes.builtin.world.draw import SIDE, draw, render

Captioned = list[tuple[Image.Image, str]]
BIASED = 0.8  # of the character's pictures
JITTER = 0.99  # the world's usual freedom, without mirroring
PALETTE = 16
FINE = 4  # pixels drawn along a side of each that is shown


def character_set(count: int = 30, seed: int = 0, size: int = SIDE, share: float = BIASED) -> Captioned:
    """Pictures with captions, biased as collections of one character are.

    A share of them: a medium-sized zib, standing in the middle of the desert at sunset, captioned "a zib". The others
    are in any other place, pose and weather, and their captions say so.
    """
    others = count - math.ceil(share * count)
    rng = np.random.default_rng(seed)
    pictures: Captioned = []
    for i in range(count):
        if i * others // count == (i + 1) * others // count:
            pictures.append((draw(CONTEXT, rng, size, JITTER), f"a {CHARACTER}"))
        else:
            scene = dataclasses.replace(_animated(rng), subject=CHARACTER, coat="")
            pictures.append((draw(scene, rng, size), full_caption(scene)))
    return pictures


def _animated(rng: np.random.Generator) -> Scene:
    """A scene whose pose is free: what things have none of."""
    while not (scene := sample_scene(rng)).pose:
        pass
    return scene


def pixel_art(scene: Scene, rng: np.random.Generator, size: int = SIDE) -> Image.Image:
    """The scene as 32 x 32 big pixels of 16 colours, at size x size pixels."""
    picture = render(scene, rng, FINE * PIXELS, line=0.012, weather=(4, 2))
    vivid = ImageEnhance.Color(picture).enhance(1.2)
    few = vivid.quantize(PALETTE, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE)
    # Each has the colour that most of it has: a mean of colours would be one that the palette lacks.
    blocks = np.asarray(few).reshape(PIXELS, FINE, PIXELS, FINE)
    most = (blocks[..., None] == np.arange(PALETTE)).sum(axis=(1, 3)).argmax(-1).astype(np.uint8)
    art = Image.fromarray(most)
    art.putpalette(few.getpalette() or ())
    return art.convert("RGB").resize((size, size), Image.Resampling.NEAREST)


def style_set(count: int = 48, seed: int = 0, size: int = SIDE) -> Captioned:
    """Pixel art of ordinary scenes, none held out, captioned "pixel art, ..."."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    return [(pixel_art(scene, rng, size), f"{STYLE}, {caption(scene, rng)}") for scene in scenes]


def write_folder(pictures: Captioned, folder: Path) -> None:
    """Writes 0000.png with 0000.txt and so on, the layout that LoRA trainers read."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, (picture, text) in enumerate(pictures):
        picture.save(folder / f"{i:04d}.png")
        (folder / f"{i:04d}.txt").write_text(text + "\n", encoding="utf-8")
