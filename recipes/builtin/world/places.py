"""Places: layered backgrounds from the horizon to the ground that subjects stand on, with what grows there."""

import itertools
import math
from collections.abc import Callable

import numpy as np

from recipes.builtin.world.pen import WHITE, Colour, Pen, bright, dark, mix, shade
from recipes.builtin.world.skies import Mood

Rng = np.random.Generator
BARK: Colour = (122, 84, 60)
STONE: Colour = (158, 160, 176)
WINDOW_LIT: Colour = (255, 226, 120)


def _ridge(pen: Pen, rng: Rng, y: float, height: float, waves: float, fill: Colour) -> Callable[[float], float]:
    """A rolling line of hills filled down to the bottom edge, its rim lit; returns its height at x."""
    a, b, f, g = rng.uniform(0, 1), rng.uniform(0, 1), waves * rng.uniform(0.8, 1.2), waves * rng.uniform(1.6, 2.2)

    def at(x: float) -> float:
        return y - height * (0.7 * math.sin(2 * math.pi * (f * x + a)) + 0.3 * math.sin(2 * math.pi * (g * x + b)))

    line = [(i / 24, at(i / 24)) for i in range(25)]
    pen.shape([*line, (1.0, 1.05), (0.0, 1.05)], bright(fill))
    pen.shape([*((u, v + 0.012) for u, v in line), (1.0, 1.05), (0.0, 1.05)], fill)
    return at


def _spread(rng: Rng, count: int, low: float = 0.03, high: float = 0.97) -> list[float]:
    """count numbers in low..high, one in each of count equal parts."""
    return [low + (high - low) * (i + rng.uniform(0.1, 0.9)) / count for i in range(count)]


def _tufts(pen: Pen, rng: Rng, top: float, count: int, fill: Colour) -> None:
    """Tufts of three blades of grass."""
    for x in _spread(rng, count, 0.0, 1.0):
        y, s = rng.uniform(top, 0.99), rng.uniform(0.7, 1.2)
        for dx in (-0.012, 0.0, 0.012):
            pen.limb(((x + 0.3 * s * dx, y), (x + s * dx, y - 0.026 * s)), 0.009, fill, 0.003, outline=False)


def _stones(pen: Pen, rng: Rng, top: float, count: int, fill: Colour) -> None:
    for x in _spread(rng, count):
        y, r = rng.uniform(top, 0.96), rng.uniform(0.022, 0.042)
        rim = (
            (x - r, y),
            (x - 0.75 * r, y - 0.5 * r),
            (x + 0.1 * r, y - 0.8 * r),
            (x + 0.85 * r, y - 0.4 * r),
            (x + r, y),
        )
        pen.blob(rim, fill)


def _pine(pen: Pen, x: float, y: float, h: float, fill: Colour, snow: float, outline: bool = False) -> None:
    """A fir tree whose foot is at (x, y)."""
    pen.box(x - 0.045 * h, y - 0.15 * h, x + 0.045 * h, y, BARK)
    for base, top, wide in ((0.12, 0.56, 0.29), (0.36, 0.78, 0.235), (0.6, 1.0, 0.17)):
        foot = y - base * h
        skirt = [
            (x + wide * h * t, foot + 0.03 * h * (i % 2)) for i, t in enumerate((1, 0.66, 0.33, 0, -0.33, -0.66, -1))
        ]
        pen.shape([(x, y - top * h), *skirt], fill, outline)
        pen.shape([(x, y - top * h), *skirt[:4]], shade(fill))
        if snow:
            rim = y - (top - 0.17) * h
            pen.shape(
                ((x - 0.4 * wide * h, rim), (x, y - top * h), (x + 0.4 * wide * h, rim), (x, rim - 0.03 * h)), WHITE
            )


def _tree(pen: Pen, rng: Rng, x: float, y: float, r: float, leaf: Colour) -> None:
    """A round tree whose foot is at (x, y), its crown of radius r."""
    pen.limb(((x, y), (x, y - 1.6 * r)), 0.36 * r, BARK, 0.24 * r)
    top = y - 2.0 * r
    puffs = [
        (x + r * dx, top + r * dy, r * s) for dx, dy, s in ((-0.55, 0.25, 0.62), (0.55, 0.22, 0.6), (0, -0.3, 0.8))
    ]
    for px, py, pr in puffs:
        pen.oval(px, py, pr + pen.line, pr + pen.line, dark(leaf))
    for px, py, pr in puffs:
        pen.oval(px, py, pr, pr, shade(leaf))
    for px, py, pr in puffs:
        pen.oval(px - 0.12 * r, py - 0.12 * r, 0.84 * pr, 0.84 * pr, leaf)
    fruit = (None, (238, 74, 70), (250, 190, 70), None)[rng.integers(4)]
    for dx, dy in ((-0.6, 0.2), (0.1, -0.4), (0.45, 0.3), (-0.1, 0.25), (0.5, -0.25)):
        if fruit:
            pen.oval(x + r * dx, top + r * dy, 0.12 * r, 0.12 * r, fruit)
        else:
            pen.oval(x + r * (dx - 0.1), top + r * dy, 0.14 * r, 0.08 * r, bright(leaf))


def _flowers(pen: Pen, rng: Rng, top: float, count: int) -> None:
    petals = ((250, 104, 122), (255, 214, 80), (250, 246, 255), (190, 128, 230), (255, 158, 90))
    for x in _spread(rng, count, 0.02, 0.98):
        y, petal, r = rng.uniform(top, 0.96), petals[rng.integers(len(petals))], rng.uniform(0.8, 1.15)
        pen.stroke(((x, y), (x, y + 0.04)), 0.009, (70, 138, 60))
        for i in range(5):
            turn = 2 * math.pi * i / 5
            pen.oval(x + 0.014 * r * math.sin(turn), y - 0.014 * r * math.cos(turn), 0.0095 * r, 0.0095 * r, petal)
        pen.oval(x, y, 0.0075 * r, 0.0075 * r, (255, 196, 60) if petal != petals[1] else (230, 120, 50))


def _meadow(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    _ridge(pen, rng, y - 0.04, 0.05, 1.0, mood.far(mood.ground((118, 186, 136)), 1.0))
    hill = _ridge(pen, rng, y + 0.04, 0.04, 0.8, mood.far(mood.ground((114, 190, 96)), 0.5))
    for x in _spread(rng, int(rng.integers(2, 4))):
        r, leaf = rng.uniform(0.05, 0.078), mix((74, 154, 74), WHITE, 0.5 * mood.snow)
        _tree(pen, rng, x, hill(x) + 0.02, r, leaf)
    _ridge(pen, rng, y + 0.15, 0.025, 0.7, mood.ground((138, 208, 88)))
    _ridge(pen, rng, y + 0.27, 0.02, 0.6, mood.ground((114, 190, 78)))
    _tufts(pen, rng, y + 0.2, 12, mood.ground((78, 152, 62)))
    _flowers(pen, rng, y + 0.2, 9)


def _palm(pen: Pen, x: float, y: float, h: float, lean: float) -> None:
    """A palm whose foot is at (x, y), its crown lean to the side."""
    trunk = [(x + lean * t * t, y - h * t) for t in (0, 0.25, 0.5, 0.75, 1.0)]
    pen.limb(trunk, 0.042, (166, 118, 76), 0.028)
    for (ax, ay), (bx, by) in itertools.pairwise(trunk):
        for t in (0.2, 0.7):
            cx, cy = ax + (bx - ax) * t, ay + (by - ay) * t
            pen.stroke(((cx - 0.014, cy), (cx + 0.012, cy + 0.006)), 0.007, (120, 82, 56))
    cx, cy = trunk[-1]
    for i, (dx, dy) in enumerate(
        ((-0.15, 0.07), (0.15, 0.07), (-0.17, -0.03), (0.17, -0.03), (-0.07, -0.11), (0.08, -0.11))
    ):
        leaf = (66, 166, 88) if i % 2 else (52, 144, 80)
        middle = (cx + 0.6 * dx, cy + dy - 0.06)
        tip = (cx + dx, cy + dy + 0.01)
        pen.blob(((cx, cy - 0.015), middle, tip, tip, (cx + 0.55 * dx, cy + dy - 0.012), (cx, cy + 0.015)), leaf)
    for dx in (-0.02, 0.02):
        pen.ball(cx + dx, cy + 0.02, 0.016, 0.017, (132, 86, 60))


def _boat(pen: Pen, x: float, y: float) -> None:
    """A sailing boat far out."""
    pen.shape(((x, y - 0.14), (x, y - 0.015), (x + 0.075, y - 0.015)), WHITE)
    pen.shape(((x - 0.008, y - 0.12), (x - 0.008, y - 0.015), (x - 0.045, y - 0.015)), (250, 214, 120))
    pen.shape(
        ((x - 0.055, y - 0.008), (x + 0.075, y - 0.008), (x + 0.048, y + 0.028), (x - 0.032, y + 0.028)), (206, 84, 72)
    )


def _beach(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    sea = (44, 150, 206)
    pen.box(0, y - 0.03, 1, 1, mix(sea, mood.gradient[-1], 0.4))
    pen.box(0, y + 0.03, 1, 1, mix(sea, mood.gradient[-1], 0.15))
    pen.box(0, y + 0.09, 1, 1, (64, 182, 210))
    for x in _spread(rng, 7, 0.0, 1.0):
        at = rng.uniform(y, y + 0.12)
        pen.stroke(((x - 0.03, at), (x, at - 0.008), (x + 0.03, at)), 0.006, (196, 232, 244))
    if rng.random() < 0.6:
        _boat(pen, rng.uniform(0.1, 0.9), y)
    state = rng.uniform(0, 1, 2)
    for lift, fill in ((0.0, WHITE), (0.028, mood.ground((218, 186, 128))), (0.06, mood.ground((248, 220, 158)))):
        shore = [
            (i / 24, y + 0.14 + lift + 0.016 * math.sin(2 * math.pi * (1.3 * i / 24 + state[0]))) for i in range(25)
        ]
        pen.shape([*shore, (1.0, 1.05), (0.0, 1.05)], fill)
    for x in _spread(rng, 8, 0.0, 1.0):
        at = rng.uniform(y + 0.26, 0.98)
        pen.oval(x, at, rng.uniform(0.005, 0.012), 0.005, mood.ground((222, 186, 124)))
    x, right = rng.uniform(0.05, 0.2), state[1] < 0.5
    _palm(pen, 1 - x if right else x, rng.uniform(0.74, 0.82), rng.uniform(0.42, 0.52), 0.05 if right else -0.05)
    x = rng.uniform(0.1, 0.9)
    star = [
        (x + r * math.sin(math.pi * i / 5), 0.93 - 0.8 * r * math.cos(math.pi * i / 5))
        for i, r in enumerate((0.05, 0.022) * 5)
    ]
    pen.shape(star, (244, 112, 104), outline=True)
    x = rng.uniform(0.1, 0.9)
    shell = [(x + 0.034 * math.cos(math.pi * t / 6), 0.9 - 0.034 * math.sin(math.pi * t / 6)) for t in range(7)]
    pen.shape([*shell, (x, 0.915)], (255, 226, 214), outline=True)
    for t in (-0.5, 0, 0.5):
        pen.stroke(((x, 0.91), (x + 0.024 * t, 0.875)), 0.006, (228, 160, 150))


def _cactus(pen: Pen, x: float, y: float, h: float) -> None:
    """A saguaro whose foot is at (x, y)."""
    green, w = (66, 156, 96), 0.19 * h
    pen.limb(((x, y), (x, y - h)), w, green)
    pen.limb(((x, y - 0.32 * h), (x - 0.24 * h, y - 0.36 * h), (x - 0.28 * h, y - 0.65 * h)), 0.7 * w, green)
    pen.limb(((x, y - 0.48 * h), (x + 0.23 * h, y - 0.52 * h), (x + 0.26 * h, y - 0.85 * h)), 0.7 * w, green)
    pen.stroke(((x, y), (x, y - h)), 0.86 * w, green)
    for dx in (-0.25, 0.25):
        pen.stroke(((x + dx * w, y - 0.05 * h), (x + dx * w, y - 0.95 * h)), 0.006, shade(shade(green)))
    pen.oval(x, y - 1.09 * h, 0.06 * h, 0.05 * h, (250, 120, 150))


def _desert(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    rock = mood.far((206, 114, 78), 0.6)
    for x in _spread(rng, 2, 0.0, 1.0):
        wide, top = rng.uniform(0.1, 0.16), y - rng.uniform(0.1, 0.17)
        pen.shape(((x - wide - 0.04, y + 0.06), (x - wide, top), (x + wide, top), (x + wide + 0.05, y + 0.06)), rock)
        pen.shape(
            ((x + 0.4 * wide, top), (x + wide, top), (x + wide + 0.05, y + 0.06), (x + 0.5 * wide, y + 0.06)),
            shade(rock),
        )
        for down in (0.03, 0.07):
            pen.stroke(((x - wide, top + down), (x + wide + 0.01, top + down)), 0.008, shade(rock))
    _ridge(pen, rng, y + 0.03, 0.025, 0.9, mood.far(mood.ground((234, 170, 98)), 0.3))
    _ridge(pen, rng, y + 0.1, 0.03, 0.7, mood.ground((246, 192, 114)))
    for x in (rng.uniform(0.06, 0.2), rng.uniform(0.8, 0.94)):
        _cactus(pen, x, y + rng.uniform(0.14, 0.24), rng.uniform(0.18, 0.32))
    _ridge(pen, rng, y + 0.27, 0.03, 0.6, mood.ground((238, 176, 98)))
    for x in _spread(rng, 7, 0.0, 1.0):
        at, wide = rng.uniform(y + 0.2, 0.98), rng.uniform(0.03, 0.06)
        pen.stroke(((x - wide, at), (x, at - 0.01), (x + wide, at)), 0.007, mood.ground((214, 148, 84)))
    _stones(pen, rng, 0.88, 2, mood.ground((196, 134, 92)))


def _forest(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    snow = mood.snow
    pen.box(0, y - 0.06, 1, 1, mood.far((76, 132, 102), 1.0))
    for x in _spread(rng, 8, -0.05, 1.05):
        _pine(pen, x, y + 0.06, rng.uniform(0.24, 0.34), mood.far((76, 132, 102), 1.0), 0.0)
    pen.box(0, y + 0.04, 1, 1, mood.ground((76, 130, 72)))
    for x in _spread(rng, 5, -0.05, 1.05):
        _pine(pen, x, y + 0.12, rng.uniform(0.36, 0.46), mood.far((52, 120, 84), 0.35), snow)
    _ridge(pen, rng, y + 0.14, 0.02, 0.8, mood.ground((90, 140, 68)))
    for x in (rng.uniform(-0.02, 0.12), rng.uniform(0.88, 1.02)):
        _pine(pen, x, y + rng.uniform(0.18, 0.24), rng.uniform(0.56, 0.68), (40, 104, 70), snow, outline=True)
    _ridge(pen, rng, y + 0.25, 0.02, 0.6, mood.ground((74, 118, 58)))
    _tufts(pen, rng, y + 0.24, 9, mood.ground((48, 90, 46)))
    for x in _spread(rng, 4):
        at = rng.uniform(y + 0.29, 0.97)
        for dx in (-0.022, 0.0, 0.022):
            pen.limb(((x, at), (x + dx, at - 0.035)), 0.02, mood.ground((104, 160, 76)), 0.004, outline=False)


def _city(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    far = mood.far((146, 156, 190), 0.8)
    for x in _spread(rng, 7, -0.05, 1.05):
        pen.box(x - 0.07, y - rng.uniform(0.1, 0.32), x + 0.07, y + 0.2, far)
    walls = ((208, 124, 104), (106, 138, 182), (224, 188, 134), (140, 120, 164), (112, 162, 154))
    x = rng.uniform(-0.16, -0.04)
    while x < 1.0:
        wide, top = rng.uniform(0.17, 0.25), y - rng.uniform(0.06, 0.28)
        wall = walls[rng.integers(len(walls))]
        pen.shape(((x, top), (x + wide, top), (x + wide, y + 0.2), (x, y + 0.2)), wall, outline=True)
        pen.box(x + 0.84 * wide, top, x + wide, y + 0.2, shade(wall))
        _roof(pen, rng, x, top, wide, mood.ground(shade(shade(wall))))
        for row in range(int((y + 0.1 - top) / 0.085)):
            for column in (0.22, 0.5, 0.74) if wide > 0.21 else (0.28, 0.66):
                glass = WINDOW_LIT if mood.windows_lit and rng.random() < 0.7 else (196, 224, 240)
                _window(pen, x + column * wide, top + 0.035 + row * 0.085, glass, mood.windows_lit)
        x += wide + 0.012
    pen.box(0, y + 0.17, 1, 1, mood.ground((200, 198, 204)))
    for x in _spread(rng, 6, 0.0, 1.0):
        pen.stroke(((x, y + 0.175), (x - 0.01, y + 0.215)), 0.006, mood.ground((160, 158, 168)))
    pen.box(0, y + 0.215, 1, 1, mood.ground((140, 140, 152)))
    pen.box(0, y + 0.228, 1, 1, mix((106, 108, 124), WHITE, 0.5 * mood.snow))
    shift = rng.uniform(0, 0.3)
    for i in range(-1, 4):
        pen.box(i * 0.3 + shift, 0.9, i * 0.3 + shift + 0.15, 0.925, (242, 228, 156))


def _roof(pen: Pen, rng: Rng, x: float, top: float, wide: float, fill: Colour) -> None:
    """One of three tops of a building."""
    kind = rng.integers(3)
    if kind == 0:
        pen.shape(
            ((x - 0.012, top + 0.005), (x + wide / 2, top - 0.07), (x + wide + 0.012, top + 0.005)), fill, outline=True
        )
    else:
        pen.box(x - 0.008, top - 0.02, x + wide + 0.008, top + 0.006, fill)
    if kind == 1:
        pen.stroke(((x + 0.3 * wide, top - 0.01), (x + 0.3 * wide, top - 0.075)), 0.008, fill)
        pen.oval(x + 0.3 * wide, top - 0.08, 0.01, 0.01, (250, 92, 84))


def _window(pen: Pen, x: float, y: float, glass: Colour, lit: bool) -> None:
    """A window; light that comes from inside isn't dimmed by the night."""
    inside = Pen(pen.canvas, pen.side) if lit and glass == WINDOW_LIT else pen
    inside.box(x - 0.017, y, x + 0.023, y + 0.045, glass)
    pen.stroke(((x + 0.003, y), (x + 0.003, y + 0.045)), 0.005, (110, 104, 128))


def _mountains(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    for distance, count, low, high in ((1.0, 3, 0.24, 0.32), (0.35, 2, 0.3, 0.42)):
        rock = mood.far((112, 126, 160), distance)
        for x in _spread(rng, count, 0.0, 1.0):
            h = rng.uniform(low, high)
            wide, top, foot = 0.95 * h, y + 0.06 - h, y + 0.08
            pen.shape(((x - wide, foot), (x, top), (x + wide, foot)), rock, outline=distance < 1)
            pen.shape(((x, top), (x + wide, foot), (x + 0.1 * h, foot)), shade(rock))
            cap = [(x - 0.36 * wide, top + 0.36 * h), (x, top), (x + 0.36 * wide, top + 0.36 * h)]
            jag = [(x + 0.16 * wide, top + 0.27 * h), (x, top + 0.4 * h), (x - 0.17 * wide, top + 0.27 * h)]
            pen.shape([*cap, *jag], mood.far((250, 252, 255), 0.3 * distance))
            pen.shape(
                [cap[1], cap[2], jag[0], (x + 0.04 * wide, top + 0.36 * h)], mood.far((206, 220, 242), 0.3 * distance)
            )
    hill = _ridge(pen, rng, y + 0.08, 0.03, 0.9, mood.far(mood.ground((98, 146, 118)), 0.3))
    for x in _spread(rng, 5):
        _pine(pen, x, hill(x) + 0.02, rng.uniform(0.1, 0.16), (60, 116, 92), mood.snow)
    _ridge(pen, rng, y + 0.18, 0.025, 0.7, mood.ground((136, 170, 112)))
    _tufts(pen, rng, y + 0.24, 8, mood.ground((96, 132, 80)))
    _stones(pen, rng, y + 0.26, 3, mood.ground(STONE))


def _fence(pen: Pen, y: float, fill: Colour) -> None:
    for down in (-0.075, -0.035):
        pen.limb(((-0.02, y + down), (1.02, y + down)), 0.014, fill)
    for i in range(9):
        x = 0.02 + 0.12 * i
        pen.block(x - 0.013, y - 0.105, x + 0.013, y, fill, 0.006)


def _farm(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    hill = _ridge(pen, rng, y - 0.01, 0.03, 0.8, mood.far(mood.ground((150, 196, 110)), 0.7))
    right = rng.random() < 0.5
    for x in _spread(rng, 2, 0.1, 0.6) if right else _spread(rng, 2, 0.4, 0.9):
        _tree(pen, rng, x, hill(x) + 0.02, rng.uniform(0.04, 0.055), mix((86, 160, 76), WHITE, 0.5 * mood.snow))
    _ridge(pen, rng, y + 0.08, 0.012, 0.8, mood.ground((232, 200, 96)))
    for i in range(-5, 6):
        pen.stroke(((0.5 + 0.05 * i, y + 0.1), (0.5 + 0.16 * i, y + 0.3)), 0.012, mood.ground((206, 168, 74)))
    _barn(pen, (rng.uniform(0.76, 0.86) if right else rng.uniform(0.14, 0.24)), y + 0.13, rng.uniform(0.9, 1.1), mood)
    _ridge(pen, rng, y + 0.23, 0.008, 0.6, mood.ground((140, 198, 88)))
    _fence(pen, y + 0.25, mood.ground((240, 232, 220)))
    _ridge(pen, rng, y + 0.29, 0.012, 0.6, mood.ground((126, 186, 78)))
    _tufts(pen, rng, y + 0.3, 8, mood.ground((84, 146, 58)))
    x = rng.uniform(0.08, 0.92)
    pen.ball(x, 0.92, 0.045, 0.036, (246, 142, 48))
    pen.oval(x, 0.92, 0.016, 0.034, (228, 116, 36))
    pen.limb(((x, 0.885), (x + 0.012, 0.868)), 0.014, (86, 134, 60))


def _barn(pen: Pen, x: float, y: float, s: float, mood: Mood) -> None:
    pen = pen.frame(x, y, s, s)
    wall = (196, 66, 58)
    pen.shape(
        ((0.13, 0), (0.13, -0.22), (0.16, -0.27), (0.19, -0.22), (0.19, 0)), mood.ground((196, 200, 214)), outline=True
    )
    pen.shape(
        ((-0.14, 0), (-0.14, -0.14), (-0.085, -0.22), (0, -0.26), (0.085, -0.22), (0.14, -0.14), (0.14, 0)),
        wall,
        outline=True,
    )
    roof = (
        (-0.16, -0.13),
        (-0.095, -0.23),
        (0, -0.275),
        (0.095, -0.23),
        (0.16, -0.13),
        (0.14, -0.12),
        (0.085, -0.205),
        (0, -0.245),
        (-0.085, -0.205),
        (-0.14, -0.12),
    )
    pen.shape(roof, mood.ground((250, 246, 240)), outline=True)
    pen.box(-0.06, -0.11, 0.06, 0, (250, 244, 236))
    pen.box(-0.05, -0.1, 0.05, 0, shade(wall))
    for a, b in (((-0.05, -0.1), (0.05, 0)), ((0.05, -0.1), (-0.05, 0))):
        pen.stroke((a, b), 0.011, (250, 244, 236))
    pen.oval(0, -0.17, 0.026, 0.026, WINDOW_LIT if mood.windows_lit else (250, 244, 236))


def _castle(pen: Pen, rng: Rng, y: float, mood: Mood) -> None:
    _ridge(pen, rng, y - 0.01, 0.04, 0.9, mood.far(mood.ground((122, 172, 130)), 0.9))
    wall = mood.far(((196, 190, 204), (214, 196, 170), (176, 186, 206))[rng.integers(3)], 0.25)
    roof = ((206, 78, 82), (82, 112, 190), (122, 84, 166))[rng.integers(3)]
    foot = y + 0.15
    for x, wide, high in ((0.33, 0.12, 0.36), (0.67, 0.12, 0.36), (0.5, 0.15, 0.46)):
        _tower(
            pen, x + rng.uniform(-0.02, 0.02), foot, wide, high * rng.uniform(0.92, 1.08), wall, mood.ground(roof), mood
        )
    for x in (rng.uniform(0.06, 0.12), rng.uniform(0.88, 0.94)):
        _tower(pen, x, foot, 0.15, rng.uniform(0.34, 0.4), wall, mood.ground(roof), mood)
    top = foot - 0.17
    merlons = [(0.0, top)]
    for i in range(12):
        merlons += [(i / 12, top), (i / 12, top - 0.028), ((i + 0.55) / 12, top - 0.028), ((i + 0.55) / 12, top)]
    pen.shape([*merlons, (1.0, top), (1.0, foot + 0.02), (0.0, foot + 0.02)], wall, outline=True)
    for row in range(3):
        for x in _spread(rng, 6, 0.0, 1.0):
            at = top + 0.04 + 0.045 * row
            pen.box(x - 0.025, at, x + 0.02, at + 0.02, shade(wall), 0.006)
    pen.blob(
        (
            (0.42, foot + 0.02),
            (0.42, foot + 0.02),
            (0.42, foot - 0.08),
            (0.5, foot - 0.13),
            (0.58, foot - 0.08),
            (0.58, foot + 0.02),
            (0.58, foot + 0.02),
        ),
        (104, 72, 62),
    )
    for x in (0.46, 0.5, 0.54):
        pen.stroke(((x, foot - 0.1), (x, foot)), 0.007, (70, 48, 50))
    _ridge(pen, rng, foot + 0.015, 0.006, 0.6, mood.ground((124, 188, 92)))
    pen.shape(((0.43, foot + 0.02), (0.57, foot + 0.02), (0.8, 1.0), (0.2, 1.0)), mood.ground((222, 204, 172)))
    for _ in range(9):
        down = rng.uniform(0.1, 0.95)
        at, half = foot + 0.02 + (1 - foot) * down, 0.07 + 0.2 * down
        pen.oval(
            0.5 + half * rng.uniform(-0.8, 0.8),
            at,
            0.014 + 0.016 * down,
            0.008 + 0.006 * down,
            mood.ground((192, 172, 144)),
        )
    _tufts(pen, rng, foot + 0.1, 8, mood.ground((78, 146, 66)))


def _tower(pen: Pen, x: float, y: float, wide: float, high: float, wall: Colour, roof: Colour, mood: Mood) -> None:
    half, top = wide / 2, y - high
    pen.shape(((x - half, y), (x - half, top), (x + half, top), (x + half, y)), wall, outline=True)
    pen.box(x + 0.4 * half, top, x + half, y, shade(wall))
    tip = top - 1.15 * wide
    pen.stroke(((x, tip + 0.02), (x, tip - 0.06)), 0.007, (90, 80, 110))
    pen.shape(((x, tip - 0.06), (x + 0.05, tip - 0.045), (x, tip - 0.028)), (250, 204, 84))
    pen.shape(((x - 1.25 * half, top + 0.01), (x, tip), (x + 1.25 * half, top + 0.01)), roof, outline=True)
    pen.shape(((x + 0.3 * half, top + 0.01), (x, tip), (x + 1.25 * half, top + 0.01)), shade(roof))
    inside = Pen(pen.canvas, pen.side) if mood.windows_lit else pen
    inside.box(x - 0.022, top + 0.035, x + 0.016, top + 0.09, WINDOW_LIT if mood.windows_lit else (92, 92, 128), 0.019)


# The pen: in the place's light, over the whole picture; the number: where the horizon is.
PLACE_PAINTERS: dict[str, Callable[[Pen, Rng, float, Mood], None]] = {
    "meadow": _meadow,
    "beach": _beach,
    "desert": _desert,
    "forest": _forest,
    "city": _city,
    "mountains": _mountains,
    "farm": _farm,
    "castle": _castle,
}
