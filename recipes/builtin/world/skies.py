"""Skies and weather: what is above the horizon, what falls, and the light that it throws on the rest."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from recipes.builtin.world.pen import WHITE, Colour, Pen, mix

HORIZON = 0.62  # where the sky's gradient ends, in picture heights


@dataclass(frozen=True)
class Mood:
    """A sky's gradient from top to horizon and its light on things.

    light: its colour; on_place, on_subject: how much of it there is, 0..1. snow: how white the ground is, 0..1.
    """

    gradient: tuple[Colour, ...]
    light: Colour
    on_place: float
    on_subject: float
    haze: float = 0.35
    snow: float = 0.0
    windows_lit: bool = False

    def far(self, colour: Colour, distance: float) -> Colour:
        """A colour seen through the air; distance 0 (here) .. 1 (horizon)."""
        return mix(colour, self.gradient[-1], self.haze * distance)

    def ground(self, colour: Colour) -> Colour:
        """A ground's colour under the snow that lies on it."""
        return mix(colour, (238, 244, 252), self.snow)


MOODS = {
    "sunny": Mood(((72, 158, 236), (132, 196, 248), (204, 234, 252)), WHITE, 0.0, 0.0),
    "sunset": Mood(
        ((122, 76, 158), (228, 106, 128), (255, 162, 88), (255, 220, 134)), (255, 172, 140), 0.62, 0.07, haze=0.45
    ),
    "night": Mood(((14, 20, 62), (30, 42, 102), (62, 78, 146)), (66, 82, 156), 0.76, 0.15, 0.3, windows_lit=True),
    "rain": Mood(((98, 110, 128), (132, 144, 160), (168, 178, 190)), (150, 162, 184), 0.62, 0.16, 0.45),
    "snow": Mood(((176, 190, 212), (206, 216, 230), (232, 238, 246)), (226, 232, 246), 0.5, 0.05, 0.5, snow=0.62),
}


def gradient(mood: Mood, side: int) -> Image.Image:
    """The empty sky as an RGB picture of side x side pixels."""
    stops = np.asarray(mood.gradient, np.float32)
    down = np.minimum((np.arange(side) + 0.5) / side / HORIZON, 1.0)
    knots = np.linspace(0, 1, len(stops))
    column = np.stack([np.interp(down, knots, stops[:, c]) for c in range(3)], -1).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(column[:, None], (side, side, 3))))


def _cloud(pen: Pen, x: float, y: float, r: float, colour: Colour, below: Colour) -> None:
    """A flat-bottomed cloud about 4 r wide."""
    puffs = ((-1.15, 0.12, 0.62), (-0.35, -0.28, 0.9), (0.6, -0.08, 0.75), (1.25, 0.18, 0.52))
    for fill, drop in ((below, 0.16 * r), (colour, 0.0)):
        for dx, dy, size in puffs:
            pen.oval(x + dx * r, y + dy * r + drop, size * r, size * r * 0.8, fill)
        pen.box(x - 1.3 * r, y + 0.1 * r + drop, x + 1.4 * r, y + 0.6 * r + drop, fill, 0.3 * r)


def _clouds(pen: Pen, rng: np.random.Generator, count: int, r: float, colour: Colour, below: Colour) -> None:
    """Clouds spread over the sky's width."""
    for i in range(count):
        x, y = (i + rng.uniform(0.15, 0.85)) / count, rng.uniform(0.07, 0.27)
        _cloud(pen, x, y, r * rng.uniform(0.75, 1.25), colour, below)


def _sunny(pen: Pen, rng: np.random.Generator) -> None:
    x, y = rng.uniform(0.12, 0.88), rng.uniform(0.12, 0.2)
    pen.glow(x, y, 0.15, 0.15, (255, 246, 190), 0.4)
    pen.oval(x, y, 0.095, 0.095, (255, 222, 84))
    _clouds(pen, rng, int(rng.integers(2, 4)), 0.065, WHITE, (222, 236, 248))


def _sunset(pen: Pen, rng: np.random.Generator) -> None:
    x, y = rng.uniform(0.15, 0.85), rng.uniform(0.36, 0.46)
    pen.glow(x, y, 0.25, 0.25, (255, 226, 140), 0.3)
    pen.glow(x, y, 0.18, 0.18, (255, 236, 160), 0.45)
    pen.oval(x, y, 0.12, 0.12, (255, 242, 178))
    for _ in range(int(rng.integers(2, 4))):
        x, y, wide = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.3), rng.uniform(0.12, 0.24)
        pen.box(x - wide, y, x + wide, y + 0.035, (250, 150, 142), 0.018)
        pen.box(x - 0.5 * wide, y - 0.03, x + 0.6 * wide, y + 0.02, (250, 150, 142), 0.018)


def _night(pen: Pen, rng: np.random.Generator) -> None:
    moon_x, moon_y = rng.uniform(0.14, 0.86), rng.uniform(0.13, 0.2)
    for _ in range(int(rng.integers(14, 20))):
        x, y, r = rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.5), rng.uniform(0.007, 0.012)
        if math.hypot(x - moon_x, y - moon_y) > 0.16:
            pen.oval(x, y, r, r, (255, 246, 206))
    pen.glow(moon_x, moon_y, 0.14, 0.14, (190, 204, 255), 0.2)
    pen.oval(moon_x, moon_y, 0.085, 0.085, (255, 244, 204))
    turn = 1 if rng.random() < 0.5 else -1
    pen.oval(moon_x + turn * 0.04, moon_y - 0.015, 0.07, 0.07, (52, 64, 122))


def _scattered(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """count x count points on a loose grid, so that they cover the picture evenly."""
    return [((i + rng.uniform()) / count, (j + rng.uniform()) / count) for i in range(count) for j in range(count)]


def _drops(pen: Pen, rng: np.random.Generator, count: int) -> None:
    for x, y in _scattered(rng, count):
        pen.stroke(((x, y), (x - 0.028, y + 0.095)), 0.011, (206, 222, 244))


def _flakes(pen: Pen, rng: np.random.Generator, count: int) -> None:
    for x, y in _scattered(rng, count):
        r = rng.uniform(0.009, 0.017)
        pen.oval(x, y, r, r, WHITE)


# Sun, moon, stars and clouds; the pen: untinted, over the whole picture.
SKY_PAINTERS: dict[str, Callable[[Pen, np.random.Generator], None]] = {
    "sunny": _sunny,
    "sunset": _sunset,
    "night": _night,
    "rain": lambda pen, rng: _clouds(pen, rng, 3, 0.105, (104, 114, 132), (86, 96, 114)),
    "snow": lambda pen, rng: _clouds(pen, rng, 2, 0.085, (240, 244, 250), (214, 222, 234)),
}
# What falls, if anything: count x count drops or flakes.
WEATHER_PAINTERS: dict[str, Callable[[Pen, np.random.Generator, int], None]] = {"rain": _drops, "snow": _flakes}
