"""The things: drawn upright around x = 0 with their feet at y = 0, about one unit high; y points upwards."""

from collections.abc import Callable

import numpy as np

from recipes.builtin.world.body import BEAK, LEMON, ROSE, STEEL
from recipes.builtin.world.pen import INK, WHITE, Colour, Pen, arc, bright, mix, shade

Rng = np.random.Generator
GLASS: Colour = (190, 228, 246)
WOOD: Colour = (154, 100, 62)


def house(pen: Pen, colour: Colour, rng: Rng) -> None:
    """A gabled house with a door, two windows and a chimney that may smoke."""
    roof = ((104, 88, 112), (150, 84, 74), (84, 104, 122))[rng.integers(3)]
    if rng.random() < 0.6:
        for x, y, r in ((0.29, 1.04, 0.05), (0.34, 1.13, 0.065), (0.42, 1.22, 0.08)):
            pen.oval(x, y, r, r, (236, 234, 242))
    pen.block(0.2, 0.6, 0.34, 0.97, (186, 112, 92), 0.01)
    pen.box(0.19, 0.93, 0.35, 0.98, (150, 84, 74))
    pen.block(-0.42, 0, 0.42, 0.56, colour, 0.01)
    for y in (0.12, 0.27, 0.42):  # boards
        pen.stroke(((-0.4, y), (0.38, y)), 0.009, shade(shade(colour)))
    pen.shape(((-0.42, 0.52), (0, 0.92), (0.42, 0.52)), colour)
    pen.shape(((-0.54, 0.48), (0, 1.0), (0.54, 0.48), (0.45, 0.4), (0, 0.83), (-0.45, 0.4)), roof, outline=True)
    pen.shape(((0, 0.96), (0.5, 0.48), (0.45, 0.43), (0, 0.87)), shade(roof))
    pen.ball(0, 0.63, 0.08, 0.08, GLASS)
    pen.stroke(((-0.08, 0.63), (0.08, 0.63)), 0.02, WHITE)
    pen.block(-0.1, 0, 0.1, 0.34, WOOD, 0.05)
    pen.box(-0.055, 0.19, 0.045, 0.29, mix(WOOD, LEMON, 0.5), 0.02)
    pen.oval(0.055, 0.13, 0.02, 0.02, (252, 214, 96))
    for x in (-0.27, 0.26):
        pen.block(x - 0.1, 0.19, x + 0.1, 0.41, WHITE, 0.01)
        pen.box(x - 0.075, 0.215, x + 0.075, 0.385, GLASS)
        pen.box(x - 0.075, 0.215, x + 0.0, 0.385, mix(GLASS, WHITE, 0.45))
        for a, b in (((x, 0.215), (x, 0.385)), ((x - 0.075, 0.3), (x + 0.075, 0.3))):
            pen.stroke((a, b), 0.018, WHITE)
    if rng.random() < 0.5:
        for x in (-0.27, 0.26):
            pen.block(x - 0.11, 0.13, x + 0.11, 0.18, WOOD, 0.01)
            for i, petal in enumerate(((248, 108, 128), LEMON, (250, 246, 255))):
                pen.oval(x + 0.07 * (i - 1), 0.195, 0.033, 0.033, petal)


def car(pen: Pen, colour: Colour, rng: Rng) -> None:
    """A small car from the side, longer than high; some carry a load."""
    load = rng.integers(3)
    if load == 1:
        pen.block(-0.2, 0.7, 0.1, 0.82, (196, 142, 90), 0.02)
        pen.stroke(((-0.05, 0.7), (-0.05, 0.82)), 0.025, (120, 80, 56))
    if load == 2:
        pen.limb(((-0.34, 0.74), (0.3, 0.74)), 0.06, (250, 236, 196), 0.02)
    if load:
        pen.stroke(((-0.26, 0.695), (0.2, 0.695)), 0.028, INK)
    cabin = ((-0.42, 0.38), (-0.32, 0.6), (-0.2, 0.675), (0.1, 0.675), (0.24, 0.59), (0.38, 0.38))
    pen.blob(cabin, colour)
    body = (
        (-0.62, 0.2),
        (-0.61, 0.36),
        (-0.42, 0.43),
        (0.3, 0.43),
        (0.56, 0.36),
        (0.63, 0.24),
        (0.6, 0.13),
        (-0.58, 0.13),
    )
    pen.blob(body, colour)
    pen.blob(((-0.5, 0.39), (-0.42, 0.4), (-0.1, 0.405), (-0.1, 0.385), (-0.42, 0.375)), bright(colour), False, False)
    pen.shape(((-0.31, 0.41), (-0.25, 0.555), (-0.16, 0.6), (-0.05, 0.6), (-0.05, 0.41)), GLASS, outline=True)
    pen.shape(((0.03, 0.41), (0.03, 0.6), (0.09, 0.6), (0.19, 0.54), (0.27, 0.41)), GLASS, outline=True)
    pen.shape(((-0.24, 0.41), (-0.13, 0.6), (-0.08, 0.6), (-0.19, 0.41)), mix(GLASS, WHITE, 0.55))
    pen.shape(((0.08, 0.41), (0.11, 0.575), (0.145, 0.56), (0.13, 0.41)), mix(GLASS, WHITE, 0.55))
    pen.stroke(((-0.01, 0.17), (-0.01, 0.39)), 0.016, shade(shade(colour)))
    pen.stroke(((-0.13, 0.335), (-0.05, 0.335)), 0.026, shade(shade(colour)))
    pen.ball(0.57, 0.295, 0.045, 0.05, (255, 240, 170))
    pen.oval(-0.59, 0.31, 0.025, 0.045, (236, 70, 70))
    pen.limb(((-0.6, 0.15), (0.6, 0.15)), 0.05, STEEL)
    for x in (-0.35, 0.35):
        pen.ball(x, 0.13, 0.145, 0.145, (64, 62, 80))
        pen.ball(x, 0.13, 0.075, 0.075, (220, 226, 236))
        pen.oval(x, 0.13, 0.025, 0.025, (120, 126, 144))


def rocket(pen: Pen, colour: Colour, rng: Rng) -> None:
    """A rocket on its fins, a porthole in its side."""
    trim = shade(shade(colour))
    for side in (-1, 1):
        fin = ((side * 0.14, 0.4), (side * 0.36, 0.14), (side * 0.38, 0.0), (side * 0.38, 0.0), (side * 0.12, 0.14))
        pen.blob(fin, trim)
    pen.block(-0.1, 0.04, 0.1, 0.16, STEEL, 0.02)
    hull = ((0, 1.02), (0, 1.02), (0.15, 0.82), (0.215, 0.5), (0.15, 0.14), (-0.15, 0.14), (-0.215, 0.5), (-0.15, 0.82))
    pen.blob(hull, mix(colour, WHITE, 0.12))
    pen.shape(
        [
            (-0.115, 0.855),
            *arc(0, 0.835, 0.115, 0.04, 0.5, 1.0, 8),
            (0.115, 0.855),
            (0.05, 0.97),
            (0, 1.01),
            (-0.05, 0.97),
        ],
        trim,
    )
    pen.stroke(((-0.18, 0.29), (0, 0.26), (0.18, 0.29)), 0.035, trim)
    pen.stroke(((-0.11, 0.76), (-0.155, 0.6), (-0.155, 0.46)), 0.03, bright(bright(colour)))
    pen.ball(0, 0.6, 0.125, 0.125, (236, 238, 246))
    pen.ball(0, 0.6, 0.088, 0.088, (104, 186, 232))
    pen.oval(-0.028, 0.635, 0.032, 0.026, WHITE)
    pen.blob(((-0.035, 0.3), (0.035, 0.3), (0.035, 0.02), (0.035, 0.02), (-0.035, 0.02), (-0.035, 0.02)), trim)
    if rng.random() < 0.5:
        for x in (-0.07, 0, 0.07):
            pen.oval(x, 0.405, 0.022, 0.022, LEMON)


def mushroom(pen: Pen, colour: Colour, rng: Rng) -> None:
    """A dotted cap on a pale stem with a face; some have a little one beside."""
    if rng.random() < 0.5:
        _mushroom(pen.frame(0.4 if rng.random() < 0.5 else -0.4, 0, 0.42), colour, False)
    _mushroom(pen, colour, True)


def _mushroom(pen: Pen, colour: Colour, face: bool) -> None:
    stem = (252, 236, 212)
    pen.blob(((-0.15, 0.45), (-0.2, 0.15), (-0.18, 0.01), (0.18, 0.01), (0.2, 0.15), (0.15, 0.45)), stem)
    cap = [*arc(0, 0.47, 0.5, 0.5, 0.0, 0.5, 9), (-0.48, 0.4), (-0.25, 0.35), (0.25, 0.35), (0.48, 0.4)]
    pen.blob(cap, colour)
    pen.blob(((-0.3, 0.39), (0, 0.42), (0.3, 0.39), (0, 0.365)), (255, 244, 226), outline=False, shaded=False)
    dot = mix(colour, WHITE, 0.92) if sum(colour) < 690 else (214, 206, 216)
    for x, y, rx, ry, turn in (
        (-0.27, 0.62, 0.09, 0.08, 40),
        (0.03, 0.8, 0.11, 0.08, 0),
        (0.29, 0.6, 0.08, 0.075, -40),
        (-0.06, 0.56, 0.055, 0.05, 0),
    ):
        pen.oval(x, y, rx, ry, dot, turn)
    if face:
        for side in (-1, 1):
            pen.oval(side * 0.08, 0.23, 0.034, 0.046, INK)
            pen.oval(side * 0.08 - 0.01, 0.25, 0.012, 0.014, WHITE)
            pen.oval(side * 0.135, 0.17, 0.034, 0.022, ROSE)
        pen.smile(0, 0.18, 0.045, 0.03, 0.022)


def balloon(pen: Pen, colour: Colour, rng: Rng) -> None:
    """A hot-air balloon: a striped envelope, ropes and a basket."""
    for x in (-0.085, 0, 0.085):
        pen.stroke(((x, 0.27), (0.85 * x, 0.14)), 0.016, INK)
    envelope = [*arc(0, 0.63, 0.41, 0.38, -0.06, 0.56, 11), (-0.1, 0.235), (0.1, 0.235)]
    pen.blob(envelope, colour)
    if rng.random() < 0.7:
        for side, fill in ((-1, mix(colour, WHITE, 0.55)), (1, mix(shade(colour), WHITE, 0.42))):
            outer = [
                (side * x, y) for x, y in ((0.12, 0.975), (0.25, 0.84), (0.275, 0.64), (0.19, 0.42), (0.075, 0.25))
            ]
            inner = [(side * x, y) for x, y in ((0.03, 0.25), (0.09, 0.42), (0.13, 0.64), (0.12, 0.84), (0.04, 0.995))]
            pen.shape([*outer, *inner], fill)
    else:
        for i in range(5):
            x = 0.27 * (i - 2) / 2
            r = 0.06 - 0.012 * abs(i - 2)
            pen.oval(x, 0.6 - 0.05 * (1 - abs(i - 2) / 2), r, 1.2 * r, LEMON)
    pen.blob(((-0.2, 0.85), (-0.28, 0.7), (-0.24, 0.69), (-0.15, 0.83)), bright(bright(colour)), False, False)
    pen.limb(((-0.1, 0.235), (0, 0.225), (0.1, 0.235)), 0.035, shade(shade(colour)))
    pen.block(-0.11, 0, 0.11, 0.15, WOOD, 0.03)
    for y in (0.045, 0.085):
        pen.stroke(((-0.09, y), (0.085, y)), 0.012, shade(shade(WOOD)))
    pen.limb(((-0.11, 0.14), (0.11, 0.14)), 0.035, mix(WOOD, BEAK, 0.45))


THINGS: dict[str, Callable[[Pen, Colour, Rng], None]] = {
    "house": house,
    "car": car,
    "rocket": rocket,
    "mushroom": mushroom,
    "balloon": balloon,
}
