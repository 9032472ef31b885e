"""From a Scene to a picture: sky, place, the subject with its shadow, and what falls in front."""

import colorsys
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from autolora_jax.demo.world import Scene
from recipes.builtin.world.pen import Colour, Pen
from recipes.builtin.world.places import PLACE_PAINTERS
from recipes.builtin.world.skies import MOODS, SKY_PAINTERS, WEATHER_PAINTERS, gradient
from recipes.builtin.world.subjects import SUBJECT_PAINTERS

SUPERSAMPLING = 3
OUTLINE = 0.012  # in picture sides: just over a pixel at 96
SWATCHES: dict[str, Colour] = {
    "red": (220, 40, 42),
    "orange": (248, 128, 24),
    "yellow": (253, 226, 50),
    "green": (66, 172, 66),
    "blue": (48, 106, 226),
    "purple": (138, 66, 190),
    "pink": (252, 146, 196),
    "white": (246, 246, 248),
}
HEIGHTS = {"small": 0.35, "": 0.52, "big": 0.72}
FEET = {"small": 0.8, "": 0.86, "big": 0.93}  # nearer things stand lower
CENTRES = {"left": 0.28, "": 0.5, "right": 0.72}
WEATHER = (6, 3)  # drops or flakes per side behind the subject and, few, in front of its face
FLOATING = {"balloon": 0.1}  # how far above the ground, in picture sides


@dataclass(frozen=True)
class Pose:
    """Where a subject stands: the middle of its feet and its height, in picture sides."""

    x: float
    y: float
    height: float
    mirrored: bool


def sample_pose(scene: Scene, rng: np.random.Generator, jitter: float = 1.0) -> Pose:
    """The pose that size and side ask for; jitter 1 is the world's usual freedom, 0 none (and no mirroring)."""
    x, y, grow, turn = rng.uniform(-1, 1, 4)
    centre = 0.5 + (CENTRES[scene.side] - 0.5) * (0.7 if scene.size == "big" else 1.0)
    return Pose(
        centre + 0.025 * jitter * x,
        FEET[scene.size] + 0.02 * jitter * y,
        HEIGHTS[scene.size] * (1 + 0.05 * jitter * grow),
        bool(turn < 0 and jitter == 1),
    )


def jittered(colour: str, rng: np.random.Generator) -> Colour:
    """The named colour, its hue moved by up to 4 degrees and its saturation and brightness by up to 5 %."""
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in SWATCHES[colour]))
    dh, ds, dv = rng.uniform(-1, 1, 3)
    r, g, b = colorsys.hsv_to_rgb((h + dh * 4 / 360) % 1, min(1, s * (1 + 0.05 * ds)), min(1, v * (1 + 0.05 * dv)))
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
    place = Pen(canvas, side, light=(mood.light, mood.on_place))
    PLACE_PAINTERS[scene.place](place, rng, rng.uniform(0.5, 0.58), mood)
    fall = WEATHER_PAINTERS.get(scene.sky, lambda *_: None)
    fall(air, rng, weather[0])
    pose, colour = sample_pose(scene, rng, jitter), jittered(scene.colour, rng)
    air.glow(pose.x, pose.y, 0.4 * pose.height, 0.06 * pose.height, (24, 22, 48), 0.32)
    subject = Pen(
        canvas,
        side,
        origin=(pose.x, pose.y - FLOATING.get(scene.subject, 0.0)),
        scale=(-pose.height if pose.mirrored else pose.height, -pose.height),
        light=(mood.light, mood.on_subject),
        line=line,
    )
    SUBJECT_PAINTERS[scene.subject](subject, colour)
    fall(air, rng, weather[1])
    return picture


def draw(scene: Scene, rng: np.random.Generator, size: int = 96, jitter: float = 1.0) -> Image.Image:
    """The scene as an RGB picture of size x size pixels; the same rng state gives the same picture at any size."""
    return render(scene, rng, SUPERSAMPLING * size, jitter).reduce(SUPERSAMPLING)
