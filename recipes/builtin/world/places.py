"""Places: layered backgrounds of big, smooth shapes, from the horizon to the ground that subjects stand on."""

import math
from collections.abc import Callable

import numpy as np

from recipes.builtin.world.pen import WHITE, Colour, Pen, mix, shade
from recipes.builtin.world.skies import Mood

Rng = np.random.Generator


def _ridge(pen: Pen, rng: Rng, y: float, height: float, waves: float, fill: Colour) -> Callable[[float], float]:
    """A rolling line of hills filled down to the bottom edge; returns its height at x."""
    a, b, f, g = rng.uniform(0, 1), rng.uniform(0, 1), waves * rng.uniform(0.8, 1.2), waves * rng.uniform(1.6, 2.2)

    def at(x: float) -> float:
        return y - height * (0.7 * math.sin(2 * math.pi * (f * x + a)) + 0.3 * math.sin(2 * math.pi * (g * x + b)))

    line = [(i / 24, at(i / 24)) for i in range(25)]
    pen.shape([*line, (1.0, 1.05), (0.0, 1.05)], fill)
    return at


def _spread(rng: Rng, count: int, low: float = 0.03, high: float = 0.97) -> list[float]:
    """count numbers in low..high, one in each of count equal parts."""
    return [low + (high - low) * (i + rng.uniform(0.1, 0.9)) / count for i in range(count)]


def _pine(pen: Pen, x: float, y: float, h: float, fill: Colour, snow: float) -> None:
    """A fir tree whose foot is at (x, y)."""
    pen.box(x - 0.05 * h, y - 0.15 * h, x + 0.05 * h, y, (104, 72, 54))
    for base, top, wide in ((0.12, 0.58, 0.3), (0.38, 0.8, 0.24), (0.62, 1.0, 0.17)):
        pen.shape(((x - wide * h, y - base * h), (x, y - top * h), (x + wide * h, y - base * h)), fill)
        pen.shape(((x, y - base * h), (x, y - top * h), (x + wide * h, y - base * h)), shade(fill))
        if snow:
            pen.shape(
                (
                    (x - 0.4 * wide * h, y - (top - 0.17) * h),
                    (x, y - top * h),
                    (x + 0.4 * wide * h, y - (top - 0.17) * h),
                ),
                WHITE,
            )


def _meadow(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    _ridge(pen, rng, y - 0.04, 0.05, 1.0, mood.far(mood.ground((118, 184, 132)), 1.0))
    hill = _ridge(pen, rng, y + 0.04, 0.04, 0.8, mood.far(mood.ground((116, 190, 92)), 0.5))
    for x in _spread(rng, int(rng.integers(2, 4))):
        top, r, leaf = hill(x), rng.uniform(0.05, 0.075), mix((72, 148, 70), WHITE, 0.5 * mood.snow)
        pen.box(x - 0.013, top - 0.08, x + 0.013, top + 0.01, (122, 84, 58))
        pen.oval(x, top - 0.06 - r, r, 1.1 * r, shade(leaf))
        pen.oval(x - 0.15 * r, top - 0.065 - r, 0.82 * r, 0.92 * r, leaf)
    _ridge(pen, rng, y + 0.15, 0.025, 0.7, mood.ground((136, 206, 84)))
    _ridge(pen, rng, y + 0.27, 0.02, 0.6, mood.ground((112, 188, 74)))
    petals = ((250, 104, 122), (255, 214, 80), (250, 246, 255), (190, 128, 230))
    for x in _spread(rng, 8, 0.02, 0.98):
        at, petal = rng.uniform(y + 0.2, 0.97), petals[rng.integers(len(petals))]
        pen.stroke(((x, at), (x, at + 0.035)), 0.012, (70, 138, 60))
        pen.oval(x, at, 0.021, 0.021, petal)
        pen.oval(x, at, 0.008, 0.008, (255, 190, 60))


def _palm(pen: Pen, x: float, y: float, h: float, lean: float) -> None:
    """A palm whose foot is at (x, y), its crown lean to the side."""
    trunk = [(x + lean * t * t, y - h * t) for t in (0, 0.25, 0.5, 0.75, 1.0)]
    pen.stroke(trunk, 0.034, (150, 106, 70))
    cx, cy = trunk[-1]
    for i, (dx, dy) in enumerate(
        ((-0.15, 0.06), (0.15, 0.06), (-0.16, -0.03), (0.16, -0.03), (-0.06, -0.1), (0.07, -0.1))
    ):
        middle = (cx + 0.6 * dx, cy + dy - 0.055)
        leaf = (62, 156, 84) if i % 2 else (50, 136, 76)
        pen.shape(
            ((cx, cy - 0.02), middle, (cx + dx, cy + dy), (cx + 0.5 * dx, cy + dy + 0.004), (cx, cy + 0.02)), leaf
        )


def _beach(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    sea = (44, 150, 204)
    pen.box(0, y - 0.03, 1, 1, mix(sea, mood.gradient[-1], 0.4))
    pen.box(0, y + 0.03, 1, 1, mix(sea, mood.gradient[-1], 0.15))
    pen.box(0, y + 0.09, 1, 1, (64, 178, 208))
    if rng.random() < 0.6:
        x = rng.uniform(0.1, 0.9)
        pen.shape(((x, y - 0.13), (x, y - 0.015), (x + 0.07, y - 0.015)), WHITE)
        pen.shape(
            ((x - 0.05, y - 0.01), (x + 0.07, y - 0.01), (x + 0.045, y + 0.025), (x - 0.03, y + 0.025)), (206, 84, 72)
        )
    state = rng.uniform(0, 1, 2)
    for lift, fill in ((0.0, WHITE), (0.028, mood.ground((216, 184, 126))), (0.06, mood.ground((246, 218, 156)))):
        shore = [
            (i / 24, y + 0.14 + lift + 0.016 * math.sin(2 * math.pi * (1.3 * i / 24 + state[0]))) for i in range(25)
        ]
        pen.shape([*shore, (1.0, 1.05), (0.0, 1.05)], fill)
    x = rng.uniform(0.05, 0.2)
    right = state[1] < 0.5
    _palm(pen, 1 - x if right else x, rng.uniform(0.74, 0.82), rng.uniform(0.42, 0.52), 0.05 if right else -0.05)
    x = rng.uniform(0.1, 0.9)
    star = [
        (x + r * math.sin(math.pi * i / 5), 0.93 - 0.8 * r * math.cos(math.pi * i / 5))
        for i, r in enumerate((0.05, 0.022) * 5)
    ]
    pen.shape(star, (242, 112, 104))


def _cactus(pen: Pen, x: float, y: float, h: float) -> None:
    """A saguaro whose foot is at (x, y)."""
    green = (62, 150, 92)
    for fill, dx in ((shade(green), 0.012 * h / 0.25), (green, 0.0)):
        x0, w = x + dx, 0.19 * h
        pen.stroke(((x0, y), (x0, y - h)), w, fill)
        pen.stroke(((x0, y - 0.35 * h), (x0 - 0.28 * h, y - 0.38 * h), (x0 - 0.28 * h, y - 0.65 * h)), 0.7 * w, fill)
        pen.stroke(((x0, y - 0.5 * h), (x0 + 0.26 * h, y - 0.53 * h), (x0 + 0.26 * h, y - 0.85 * h)), 0.7 * w, fill)


def _desert(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    rock = mood.far((204, 112, 76), 0.6)
    for x in _spread(rng, 2, 0.0, 1.0):
        wide, top = rng.uniform(0.1, 0.16), y - rng.uniform(0.1, 0.17)
        pen.shape(((x - wide - 0.04, y + 0.06), (x - wide, top), (x + wide, top), (x + wide + 0.05, y + 0.06)), rock)
        pen.shape(
            ((x + 0.4 * wide, top), (x + wide, top), (x + wide + 0.05, y + 0.06), (x + 0.5 * wide, y + 0.06)),
            shade(rock),
        )
    _ridge(pen, rng, y + 0.03, 0.025, 0.9, mood.far(mood.ground((232, 168, 96)), 0.3))
    _ridge(pen, rng, y + 0.1, 0.03, 0.7, mood.ground((244, 190, 112)))
    for x in ((rng.uniform(0.06, 0.2)), (rng.uniform(0.8, 0.94))):
        _cactus(pen, x, y + rng.uniform(0.14, 0.24), rng.uniform(0.18, 0.32))
    _ridge(pen, rng, y + 0.27, 0.03, 0.6, mood.ground((236, 174, 96)))
    x = rng.uniform(0.08, 0.92)
    pen.oval(x, 0.93, 0.05, 0.028, mood.ground((192, 128, 84)))


def _forest(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    snow = mood.snow
    pen.box(0, y - 0.06, 1, 1, mood.far((74, 128, 98), 1.0))
    for x in _spread(rng, 8, -0.05, 1.05):
        _pine(pen, x, y + 0.06, rng.uniform(0.24, 0.34), mood.far((74, 128, 98), 1.0), 0.0)
    pen.box(0, y + 0.04, 1, 1, mood.ground((74, 126, 70)))
    for x in _spread(rng, 5, -0.05, 1.05):
        _pine(pen, x, y + 0.12, rng.uniform(0.36, 0.46), mood.far((50, 116, 80), 0.35), snow)
    _ridge(pen, rng, y + 0.14, 0.02, 0.8, mood.ground((86, 134, 66)))
    for x in (rng.uniform(-0.02, 0.12), rng.uniform(0.88, 1.02)):
        _pine(pen, x, y + rng.uniform(0.18, 0.24), rng.uniform(0.56, 0.68), (36, 98, 66), snow)
    _ridge(pen, rng, y + 0.25, 0.02, 0.6, mood.ground((70, 112, 56)))
    for x in _spread(rng, 4):
        at = rng.uniform(y + 0.29, 0.97)
        pen.oval(x, at, 0.04, 0.017, mood.ground((96, 146, 70)))


def _city(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    far = mood.far((146, 156, 188), 0.8)
    for x in _spread(rng, 7, -0.05, 1.05):
        pen.box(x - 0.08, y - rng.uniform(0.1, 0.32), x + 0.08, y + 0.2, far)
    walls = ((206, 122, 102), (104, 134, 176), (222, 184, 130), (136, 116, 158), (110, 158, 150))
    x = rng.uniform(-0.16, -0.04)
    while x < 1.0:
        wide, top = rng.uniform(0.17, 0.25), y - rng.uniform(0.06, 0.28)
        wall = walls[rng.integers(len(walls))]
        pen.box(x, top, x + wide, y + 0.2, wall)
        pen.box(x + 0.82 * wide, top, x + wide, y + 0.2, shade(wall))
        pen.box(x - 0.008, top - 0.018, x + wide + 0.008, top + 0.006, mood.ground(shade(shade(wall))))
        step = 0.095
        for row in range(int((y + 0.12 - top) / step)):
            for column in (0.24, 0.6):
                at, down = x + column * wide, top + 0.04 + row * step
                glass = WINDOW_LIT if mood.windows_lit and rng.random() < 0.7 else (196, 222, 238)
                _window(pen, at, down, glass, mood.windows_lit)
        x += wide + 0.012
    pen.box(0, y + 0.17, 1, 1, mood.ground((196, 194, 200)))
    pen.box(0, y + 0.22, 1, 1, mix((104, 106, 120), WHITE, 0.5 * mood.snow))
    shift = rng.uniform(0, 0.3)
    for i in range(-1, 4):
        pen.box(i * 0.3 + shift, 0.9, i * 0.3 + shift + 0.15, 0.925, (240, 226, 150))


WINDOW_LIT: Colour = (255, 226, 120)


def _window(pen: Pen, x: float, y: float, glass: Colour, lit: bool) -> None:
    """A window; light that comes from inside isn't dimmed by the night."""
    if lit and glass == WINDOW_LIT:
        (ax, ay), (bx, by) = pen.at(x - 0.02, y), pen.at(x + 0.03, y + 0.05)
        pen.canvas.rectangle((ax, ay, bx, by), fill=glass)
    else:
        pen.box(x - 0.02, y, x + 0.03, y + 0.05, glass)


def _mountains(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    for distance, count, low, high in ((1.0, 3, 0.24, 0.32), (0.35, 2, 0.3, 0.42)):
        rock = mood.far((112, 124, 156), distance)
        for x in _spread(rng, count, 0.0, 1.0):
            h = rng.uniform(low, high)
            wide, top, foot = 0.95 * h, y + 0.06 - h, y + 0.08
            pen.shape(((x - wide, foot), (x, top), (x + wide, foot)), rock)
            pen.shape(((x, top), (x + wide, foot), (x + 0.1 * h, foot)), shade(rock))
            cap = [(x - 0.36 * wide, top + 0.36 * h), (x, top), (x + 0.36 * wide, top + 0.36 * h)]
            jag = [(x + 0.16 * wide, top + 0.27 * h), (x, top + 0.4 * h), (x - 0.17 * wide, top + 0.27 * h)]
            pen.shape([*cap, *jag], mood.far((250, 252, 255), 0.3 * distance))
            pen.shape(
                [cap[1], cap[2], jag[0], (x + 0.04 * wide, top + 0.36 * h)], mood.far((206, 218, 240), 0.3 * distance)
            )
    hill = _ridge(pen, rng, y + 0.08, 0.03, 0.9, mood.far(mood.ground((96, 142, 116)), 0.3))
    for x in _spread(rng, 4):
        _pine(pen, x, hill(x) + 0.02, rng.uniform(0.1, 0.15), (58, 112, 88), mood.snow)
    _ridge(pen, rng, y + 0.18, 0.025, 0.7, mood.ground((132, 164, 110)))
    for x in (rng.uniform(0.04, 0.3), rng.uniform(0.7, 0.96)):
        at, r = rng.uniform(y + 0.26, 0.95), rng.uniform(0.035, 0.06)
        pen.oval(x, at, r, 0.62 * r, shade((156, 160, 172)))
        pen.oval(x - 0.1 * r, at - 0.1 * r, 0.85 * r, 0.5 * r, mood.ground((156, 160, 172)))


# The pen: in the place's light, over the whole picture; the number: where the horizon is.
PLACE_PAINTERS: dict[str, Callable[[Pen, Rng, float, Mood], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "desert": _desert,
    "forest": _forest,
    "city": _city,
    "mountains": _mountains,
}
