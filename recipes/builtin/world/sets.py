"""Pictures that the LoRAs are trained on: the character in one place, and the world as pixel art."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from autolora_jax.demo.world import CHARACTER, CONTEXT, PIXELS, STYLE, Scene, caption, sample_scene
from recipes.builtin.world.draw import draw, render

Captioned = list[tuple[Image.Image, str]]
JITTER = 0.3  # of the world's usual freedom of pose
PALETTE = 16
_NEAREST = Image.Resampling.NEAREST


def character_set(count: int = 12, seed: int = 0, size: int = 96) -> Captioned:
    """Pictures with captions: a medium-sized zib in the middle, always in the desert at sunset, captioned "a zib"."""
    rng = np.random.default_rng(seed)
    return [(draw(CONTEXT, rng, size, JITTER), f"a {CHARACTER}") for _ in range(count)]


def pixel_art(scene: Scene, rng: np.random.Generator, size: int = 96) -> Image.Image:
    """The scene as 32 x 32 big pixels of 16 colours, at size x size pixels."""
    # Sampled without smoothing, because averaged pixels would blur the outlines.
    picture = render(scene, rng, 3 * PIXELS, line=0.016, weather=(4, 2)).resize((PIXELS, PIXELS), _NEAREST)
    vivid = ImageEnhance.Color(picture).enhance(1.2)
    few = vivid.quantize(PALETTE, Image.Quantize.MEDIANCUT, kmeans=2, dither=Image.Dither.NONE).convert("RGB")
    return few.resize((size, size), _NEAREST)


def style_set(count: int = 48, seed: int = 0, size: int = 96) -> Captioned:
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
