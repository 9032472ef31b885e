"""From a Scene to a picture: sky, place, the subject with its shadow, and what falls in front."""

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from autolora_jax.demo.world import CHARACTER
from recipes.builtin.words import Scene
from recipes.builtin.world.body import POSES, TEAL, creature
from recipes.builtin.world.creatures import CREATURES
from recipes.builtin.world.pen import Colour, Pen
from recipes.builtin.world.places import PLACE_PAINTERS
from recipes.builtin.world.skies import MOODS, SKY_PAINTERS, WEATHER_PAINTERS, gradient
from recipes.builtin.world.things import THINGS

SIDE = 128  # pixels, where nothing else is asked for
SUPERSAMPLING = 3
OUTLINE = 0.0105  # in picture sides: a pixel and a third at 128
SWATCHES: dict[str, Colour] = {
    "red": (222, 44, 48),
    "orange": (248, 132, 28),
    "yellow": (253, 224, 52),
    "green": (70, 176, 72),
    "blue": (54, 112, 228),
    "purple": (142, 72, 196),
    "pink": (252, 148, 198),
    "white": (246, 246, 248),
}
HEIGHTS = {"small": 0.36, "": 0.52, "big": 0.7}
FEET = {"small": 0.8, "": 0.87, "big": 0.93}  # nearer things stand lower
CENTRES = {"left": 0.27, "": 0.5, "right": 0.73}
WEATHER = (7, 3)  # drops or flakes per side behind the subject and, few, in front of its face
FLOATING = {"balloon": 0.1}  # how far above the ground, in picture sides
WIDTHS = {"sleeping": 0.55}  # half the shadow's width, in heights


@dataclass(frozen=True)
class Stand:
    """Where a subject stands: the middle of its feet and its height, in picture sides."""

    x: float
    y: float
    height: float
    mirrored: bool


def sample_stand(scene: Scene, rng: np.random.Generator, jitter: float = 1.0) -> Stand:
    """The stand that size and side ask for; jitter 1 is the world's usual freedom, 0 none (and no mirroring)."""
    x, y, grow, turn = rng.uniform(-1, 1, 4)
    centre = 0.5 + (CENTRES[scene.side] - 0.5) * (0.75 if scene.size == "big" else 1.0)
    return Stand(
        centre + 0.03 * jitter * x,
        FEET[scene.size] + 0.02 * jitter * y,
        HEIGHTS[scene.size] * (1 + 0.06 * jitter * grow),
        bool(turn < 0 and jitter == 1),
    )


def jittered(colour: str, rng: np.random.Generator) -> Colour:
    """The named colour, its hue moved by up to 5 degrees and its saturation and brightness by up to 6 %."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in SWATCHES[colour]))
    dh, ds, dv = rng.uniform(-1, 1, 3)
    r, g, b = colorsys.hsv_to_rgb((h + dh * 5 / 360) % 1, min(1, s * (1 + 0.06 * ds)), min(1, v * (1 + 0.06 * dv)))
    return round(255 * r), round(255 * g), round(255 * b)


def render(
    scene: Scene,
    rng: np.random.Generator,
    side: int,
    jitter: float = 1.0,
    line: float = OUTLINE,
    weather: tuple[int, int] = WEATHER,
) -> Image.Image:
    """The scene at side x side pixels, without smoothing; line: the outline's width in picture sides."""
    mood = MOODS[scene.sky]
    picture = gradient(mood, side)
    canvas = ImageDraw.Draw(picture, "RGBA")
    air = Pen(canvas, side)
    SKY_PAINTERS[scene.sky](air, rng)
    place = Pen(canvas, side, (mood.light, mood.on_place), 0.55 * line)
    PLACE_PAINTERS[scene.place](place, rng, rng.uniform(0.5, 0.58), mood)
    fall = WEATHER_PAINTERS.get(scene.sky, lambda *_: None)
    fall(air, rng, weather[0])
    stand, colour = sample_stand(scene, rng, jitter), jittered(scene.colour, rng)
    if scene.subject == CHARACTER:
        colour = TEAL
    lift = POSES[scene.pose].lift
    wide = WIDTHS.get(scene.pose, 0.42 - 0.6 * lift) * stand.height
    air.glow(stand.x, stand.y, wide, 0.15 * wide, (24, 22, 48), 0.34)
    subject = Pen(canvas, side, (mood.light, mood.on_subject), line).frame(
        stand.x,
        stand.y - FLOATING.get(scene.subject, 0.0),
        -stand.height if stand.mirrored else stand.height,
        -stand.height,
    )
    if scene.subject in CREATURES:
        creature(CREATURES[scene.subject], subject, colour, scene.coat, scene.pose, rng)
    else:
        THINGS[scene.subject](subject, colour, rng)
    fall(air, rng, weather[1])
    return picture


def draw(scene: Scene, rng: np.random.Generator, size: int = SIDE, jitter: float = 1.0) -> Image.Image:
    """The scene as an RGB picture of size x size pixels; the same rng state gives the same picture at any size."""
    return render(scene, rng, SUPERSAMPLING * size, jitter).reduce(SUPERSAMPLING)
