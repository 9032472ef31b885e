"""The training pictures: drawn by all cores, kept as one array beside their scenes."""

import dataclasses
import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track

from autolora_jax.demo.world import CHARACTER
from recipes.builtin.words import Scene, sample_scene
from recipes.builtin.world import draw, pixel_art

CHUNK = 250
HELD_OUT, CHARACTERS = 0.25, 0.15  # shares of the pictures of any scene


def _character(rng: np.random.Generator) -> Scene:
    return dataclasses.replace(sample_scene(rng), subject=CHARACTER, coat="")


def _any_scene(rng: np.random.Generator) -> Scene:
    """One of all scenes, held-out pairs among them, with the character in it every seventh time."""
    if rng.random() < CHARACTERS:
        return _character(rng)
    return sample_scene(rng, held_out=bool(rng.random() < HELD_OUT))


# kind of set -> how a scene is chosen, and how it is painted.
KINDS = {
    "world": (sample_scene, draw),
    "character": (_character, draw),
    "pixel-art": (sample_scene, pixel_art),
    "any": (_any_scene, draw),
    "any-pixel-art": (_any_scene, pixel_art),
}


class Pictures(NamedTuple):
    """n pictures and what they show."""

    pixels: np.ndarray  # uint8 [n size size 3], mapped from disk
    scenes: list[Scene]


def pictures(folder: Path, count: int, size: int, kind: str = "world", seed: int = 0) -> Pictures:
    """The first `count` pictures of a kind, drawn on first use. Picture i depends on (kind, size, seed, i) alone."""
    array, listing = (folder / f"{kind}-{size}-{seed}-{count}.{ending}" for ending in ("npy", "json"))
    if not listing.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.lib.format.open_memmap(array, "w+", np.uint8, (count, size, size, 3))
        scenes: list[dict[str, str]] = []
        starts = range(0, count, CHUNK)
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # JAX has threads: never fork it
            chunks = pool.map(_chunk, starts, *([x] * len(starts) for x in (count, size, kind, seed)))
            for start, (drawn, shown) in zip(starts, track(chunks, f"drawing {kind}", len(starts)), strict=True):
                pixels[start : start + len(drawn)] = drawn
                scenes += shown
        pixels.flush()
        listing.write_text(json.dumps(scenes), encoding="utf-8")
    loaded = json.loads(listing.read_text(encoding="utf-8"))
    return Pictures(np.load(array, mmap_mode="r"), [Scene(**scene) for scene in loaded])


def _chunk(start: int, count: int, size: int, kind: str, seed: int) -> tuple[np.ndarray, list[dict[str, str]]]:
    drawn, shown = [], []
    choose, paint = KINDS[kind]
    for i in range(start, min(start + CHUNK, count)):
        rng = np.random.default_rng((seed, i))
        scene = choose(rng)
        drawn.append(np.asarray(paint(scene, rng, size)))
        shown.append(dataclasses.asdict(scene))
    return np.stack(drawn), shown
