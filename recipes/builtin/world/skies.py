"""Skies and weather: what is above the horizon, what falls, and the light that it throws on the rest."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from recipes.builtin.world.pen import WHITE, Colour, Pen, arc, mix

HORIZON = 0.62  # where the sky's gradient ends, in picture heights
Rng = np.random.Generator


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
        return mix(colour, (240, 245, 253), self.snow)


MOODS = {
    "sunny": Mood(((66, 152, 236), (126, 194, 250), (208, 236, 252)), WHITE, 0.0, 0.0),
    "sunset": Mood(
        ((108, 70, 158), (226, 100, 132), (255, 158, 92), (255, 222, 140)), (255, 176, 146), 0.58, 0.07, haze=0.45
    ),
    "night": Mood(((12, 18, 58), (28, 40, 100), (64, 80, 150)), (74, 92, 170), 0.72, 0.14, 0.3, windows_lit=True),
    "rain": Mood(((98, 112, 134), (134, 148, 166), (172, 184, 196)), (154, 168, 190), 0.58, 0.14, 0.45),
    "snow": Mood(((170, 188, 216), (204, 216, 234), (234, 240, 248)), (228, 234, 248), 0.5, 0.04, 0.5, snow=0.68),
    "rainbow": Mood(((104, 176, 236), (168, 212, 246), (238, 240, 236)), (250, 252, 244), 0.2, 0.0),
    "storm": Mood(((44, 38, 74), (80, 66, 112), (132, 112, 146)), (136, 124, 176), 0.66, 0.15, 0.4, windows_lit=True),
}


def gradient(mood: Mood, side: int) -> Image.Image:
    """The empty sky as an RGB picture of side x side pixels."""
    stops = np.asarray(mood.gradient, np.float32)
    down = np.minimum((np.arange(side) + 0.5) / side / HORIZON, 1.0)
    knots = np.linspace(0, 1, len(stops))
    column = np.stack([np.interp(down, knots, stops[:, c]) for c in range(3)], -1).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(column[:, None], (side, side, 3))))


def _cloud(pen: Pen, rng: Rng, x: float, y: float, r: float, colour: Colour, below: Colour) -> None:
    """A flat-bottomed cloud about 4 r wide."""
    puffs = [
        (dx + 0.1 * rng.uniform(-1, 1), dy, size * rng.uniform(0.9, 1.12))
        for dx, dy, size in ((-1.2, 0.16, 0.6), (-0.4, -0.28, 0.9), (0.55, -0.1, 0.78), (1.25, 0.2, 0.5))
    ]
    for fill, drop in ((below, 0.0), (colour, -0.15 * r)):
        for dx, dy, size in puffs:
            pen.oval(x + dx * r, y + dy * r + drop, size * r, size * r * 0.8, fill)
        pen.box(x - 1.4 * r, y + 0.1 * r + drop, x + 1.5 * r, y + 0.62 * r + drop, fill, 0.26 * r)


def _clouds(pen: Pen, rng: Rng, count: int, r: float, colour: Colour, below: Colour) -> None:
    """Clouds spread over the sky's width."""
    for i in range(count):
        x, y = (i + rng.uniform(0.15, 0.85)) / count, rng.uniform(0.07, 0.27)
        _cloud(pen, rng, x, y, r * rng.uniform(0.7, 1.25), colour, below)


def _birds(pen: Pen, rng: Rng, colour: Colour) -> None:
    """A few birds far away, or none."""
    x, y = rng.uniform(0.1, 0.8), rng.uniform(0.14, 0.34)
    for i in range(int(rng.integers(-2, 4))):
        at, up = x + 0.055 * i, y + rng.uniform(-0.025, 0.025)
        pen.stroke(((at - 0.02, up - 0.01), (at - 0.008, up - 0.012), (at, up)), 0.007, colour)
        pen.stroke(((at, up), (at + 0.008, up - 0.012), (at + 0.02, up - 0.01)), 0.007, colour)


def _sunny(pen: Pen, rng: Rng) -> None:
    x, y = rng.uniform(0.12, 0.88), rng.uniform(0.12, 0.2)
    pen.glow(x, y, 0.16, 0.16, (255, 246, 190), 0.4)
    rays = int(rng.integers(9, 13))
    for i in range(rays):
        turn = 2 * math.pi * (i + 0.3) / rays
        c, s = math.cos(turn), math.sin(turn)
        tip, a, b = (0.15, 0.0), (0.108, 0.016), (0.108, -0.016)
        pen.shape([(x + c * u - s * v, y + s * u + c * v) for u, v in (tip, a, b)], (255, 214, 84))
    pen.oval(x, y, 0.09, 0.09, (255, 222, 84))
    pen.oval(x - 0.02, y - 0.02, 0.055, 0.055, (255, 236, 134))
    _clouds(pen, rng, int(rng.integers(2, 4)), 0.06, WHITE, (212, 230, 248))
    _birds(pen, rng, (74, 104, 150))


def _sunset(pen: Pen, rng: Rng) -> None:
    x, y = rng.uniform(0.15, 0.85), rng.uniform(0.36, 0.46)
    pen.glow(x, y, 0.25, 0.25, (255, 226, 140), 0.3)
    pen.glow(x, y, 0.18, 0.18, (255, 236, 160), 0.45)
    pen.oval(x, y, 0.12, 0.12, (255, 244, 186))
    for _ in range(int(rng.integers(2, 5))):
        x, y, wide = rng.uniform(0.1, 0.9), rng.uniform(0.08, 0.32), rng.uniform(0.12, 0.24)
        pen.box(x - wide, y, x + wide, y + 0.032, (250, 146, 140), 0.016)
        pen.box(x - 0.5 * wide, y - 0.028, x + 0.6 * wide, y + 0.02, (250, 146, 140), 0.016)
        pen.box(x - 0.4 * wide, y - 0.028, x + 0.4 * wide, y - 0.012, (255, 184, 150), 0.008)
    _birds(pen, rng, (110, 56, 100))


def _star(pen: Pen, x: float, y: float, r: float, fill: Colour) -> None:
    points = [
        (x + k * math.sin(math.pi * i / 4), y - k * math.cos(math.pi * i / 4)) for i, k in enumerate((r, 0.32 * r) * 4)
    ]
    pen.shape(points, fill)


def _night(pen: Pen, rng: Rng) -> None:
    moon_x, moon_y = rng.uniform(0.14, 0.86), rng.uniform(0.13, 0.2)
    for _ in range(int(rng.integers(18, 26))):
        x, y, r = rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.5), rng.uniform(0.006, 0.02)
        if math.hypot(x - moon_x, y - moon_y) > 0.16:
            if r > 0.013:
                _star(pen, x, y, r, (255, 246, 206))
            else:
                pen.oval(x, y, 0.5 * r, 0.5 * r, (226, 228, 250))
    pen.glow(moon_x, moon_y, 0.15, 0.15, (190, 204, 255), 0.2)
    if rng.random() < 0.5:
        turn = 1 if rng.random() < 0.5 else -1
        outer = arc(moon_x, moon_y, 0.09, 0.09, 0.17, 0.83, 20)
        inner = arc(moon_x + 0.045, moon_y, 0.08, 0.085, 0.8, 0.2, 20)
        pen.shape([(moon_x + turn * (x - moon_x), y) for x, y in (*outer, *inner)], (255, 240, 190))
    else:
        pen.oval(moon_x, moon_y, 0.09, 0.09, (255, 244, 204))
        for dx, dy, r in ((-0.03, -0.02, 0.02), (0.035, 0.02, 0.025), (-0.015, 0.045, 0.014), (0.03, -0.045, 0.012)):
            pen.oval(moon_x + dx, moon_y + dy, r, r, (238, 222, 174))


def _rainbow(pen: Pen, rng: Rng) -> None:
    x, r = rng.uniform(0.3, 0.7), rng.uniform(0.44, 0.5)
    for i, colour in enumerate(BANDS):
        a, b = r - 0.026 * i, r - 0.026 * (i + 1)
        pen.shape([*arc(x, 0.6, a, a, 0.5, 1.0, 40), *arc(x, 0.6, b, b, 1.0, 0.5, 40)], mix(colour, WHITE, 0.18))
    _clouds(pen, rng, 2, 0.05, WHITE, (222, 234, 246))


BANDS: tuple[Colour, ...] = (
    (238, 84, 92),
    (250, 154, 70),
    (252, 220, 90),
    (108, 198, 110),
    (86, 150, 232),
    (158, 104, 208),
)


def _storm(pen: Pen, rng: Rng) -> None:
    for x in (rng.uniform(0.1, 0.42), rng.uniform(0.58, 0.9)):
        s, turn = rng.uniform(0.34, 0.44), 1 if rng.random() < 0.5 else -1
        zag = ((0.02, 0.0), (-0.2, 0.52), (-0.02, 0.48), (-0.14, 1.0), (0.22, 0.36), (0.04, 0.4), (0.2, 0.0))
        points = [(x + turn * s * u * 0.8, 0.14 + s * v) for u, v in zag]
        pen.glow(x, 0.14 + 0.5 * s, 0.12, 0.5 * s, (220, 210, 255), 0.22)
        pen.shape(points, (255, 238, 130))
        middle = np.mean(points, axis=0)
        pen.shape([tuple(middle + 0.55 * (np.array(p) - middle)) for p in points], (255, 252, 220))
    _clouds(pen, rng, 3, 0.105, (88, 78, 112), (64, 56, 90))


def _scattered(rng: Rng, count: int) -> list[tuple[float, float]]:
    """count x count points on a loose grid, so that they cover the picture evenly."""
    return [((i + rng.uniform()) / count, (j + rng.uniform()) / count) for i in range(count) for j in range(count)]


def _drops(pen: Pen, rng: Rng, count: int) -> None:
    for x, y in _scattered(rng, count):
        pen.limb(((x, y), (x - 0.022, y + 0.075)), 0.006, (212, 228, 248), 0.012, outline=False)


def _flakes(pen: Pen, rng: Rng, count: int) -> None:
    for x, y in _scattered(rng, count):
        r = rng.uniform(0.007, 0.016)
        pen.oval(x, y, r, r, WHITE)


# Sun, moon, stars and clouds; the pen: untinted, over the whole picture.
SKY_PAINTERS: dict[str, Callable[[Pen, Rng], None]] = {
    "sunny": _sunny,
    "sunset": _sunset,
    "night": _night,
    "rain": lambda pen, rng: _clouds(pen, rng, 3, 0.105, (112, 124, 144), (88, 100, 120)),
    "snow": lambda pen, rng: _clouds(pen, rng, 2, 0.085, (244, 247, 252), (208, 218, 234)),
    "rainbow": _rainbow,
    "storm": _storm,
}
# What falls, if anything: count x count drops or flakes.
WEATHER_PAINTERS: dict[str, Callable[[Pen, Rng, int], None]] = {"rain": _drops, "snow": _flakes}
