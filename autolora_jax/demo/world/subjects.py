"""The subjects that are no animals, and the table of all that a scene can show."""

from collections.abc import Callable

from autolora_jax.demo.world.animals import BEAK, ROSE, bear, cat, frog, owl, rabbit
from autolora_jax.demo.world.pen import INK, WHITE, Colour, Pen, arc, mix, shade
from autolora_jax.demo.world.zib import zib

STEEL: Colour = (156, 166, 182)
GLASS: Colour = (190, 228, 246)
WOOD: Colour = (150, 98, 62)


def robot(pen: Pen, colour: Colour) -> None:
    """A square head with an antenna, lamp eyes and steel limbs."""
    pen.stroke(((0, 0.88), (0, 0.97)), 0.04, STEEL, outline=True)
    pen.ball(0, 0.975, 0.055, 0.05, (250, 92, 84))
    for side in (-1, 1):
        pen.stroke(((side * 0.15, 0.18), (side * 0.15, 0.06)), 0.1, STEEL, outline=True)
        pen.block(side * 0.15 - 0.12, 0, side * 0.15 + 0.12, 0.075, shade(STEEL))
        pen.stroke(((side * 0.3, 0.47), (side * 0.42, 0.4), (side * 0.41, 0.27)), 0.085, STEEL, outline=True)
        pen.ball(side * 0.41, 0.24, 0.075, 0.07, shade(STEEL))
        pen.block(side * 0.35 - 0.05, 0.64, side * 0.35 + 0.05, 0.78, STEEL)
    pen.block(-0.29, 0.14, 0.29, 0.55, colour, 0.06)
    pen.box(-0.19, 0.24, 0.15, 0.46, mix(colour, WHITE, 0.7), 0.03)
    for x, light in ((-0.11, (250, 92, 84)), (-0.02, (252, 206, 72)), (0.07, (96, 206, 120))):
        pen.oval(x, 0.38, 0.038, 0.038, light)
    pen.stroke(((-0.12, 0.3), (0.08, 0.3)), 0.028, INK)
    pen.block(-0.34, 0.57, 0.34, 0.91, colour, 0.08)
    for side in (-1, 1):
        pen.oval(side * 0.15 - 0.02, 0.76, 0.105, 0.105, INK)
        pen.oval(side * 0.15 - 0.02, 0.76, 0.08, 0.08, (176, 246, 255))
        pen.oval(side * 0.15 - 0.02, 0.76, 0.035, 0.035, INK)
    pen.box(-0.15, 0.61, 0.11, 0.655, INK, 0.02)


def house(pen: Pen, colour: Colour) -> None:
    """A gabled house with a door, two windows and a chimney."""
    roof, pane = (98, 84, 106), GLASS
    pen.block(0.2, 0.62, 0.33, 0.95, (178, 104, 88), 0.01)
    pen.block(-0.4, 0, 0.4, 0.58, colour, 0.01)
    pen.shape(((-0.4, 0.55), (0, 0.9), (0.4, 0.55)), colour)
    pen.shape(((-0.52, 0.5), (0, 0.98), (0.52, 0.5), (0.44, 0.43), (0, 0.83), (-0.44, 0.43)), roof, outline=True)
    pen.ball(0, 0.63, 0.075, 0.075, pane)
    pen.block(-0.1, 0, 0.1, 0.33, WOOD, 0.03)
    pen.oval(0.05, 0.16, 0.022, 0.022, (252, 214, 96))
    for x in (-0.26, 0.24):
        pen.block(x - 0.095, 0.2, x + 0.095, 0.4, WHITE, 0.01)
        pen.box(x - 0.07, 0.225, x + 0.07, 0.375, pane)
        pen.stroke(((x, 0.225), (x, 0.375)), 0.022, WHITE)


def car(pen: Pen, colour: Colour) -> None:
    """A small car from the side, longer than high."""
    cabin = ((-0.37, 0.36), (-0.26, 0.62), (-0.2, 0.66), (0.14, 0.66), (0.2, 0.62), (0.36, 0.36))
    pen.shape(cabin, colour, outline=True)
    pen.block(-0.6, 0.13, 0.6, 0.41, colour, 0.11)
    pen.shape(cabin[:1] + cabin[1:5] + cabin[5:], colour)
    pen.shape(((-0.28, 0.38), (-0.2, 0.58), (-0.03, 0.58), (-0.03, 0.38)), GLASS)
    pen.shape(((0.04, 0.38), (0.04, 0.58), (0.13, 0.58), (0.25, 0.38)), GLASS)
    pen.box(-0.05, 0.2, 0.05, 0.225, shade(shade(colour)), 0.01)
    pen.oval(0.54, 0.32, 0.055, 0.055, (255, 240, 170))
    pen.oval(-0.56, 0.32, 0.035, 0.05, (232, 70, 70))
    for x in (-0.33, 0.33):
        pen.ball(x, 0.13, 0.145, 0.145, (66, 64, 82))
        pen.oval(x, 0.13, 0.07, 0.07, (214, 220, 230))


def mushroom(pen: Pen, colour: Colour) -> None:
    """A dotted cap on a pale stem with a face."""
    stem = (250, 234, 208)
    pen.ball(0, 0.24, 0.22, 0.24, stem)
    cap = [*arc(0, 0.47, 0.5, 0.5, 0.0, 0.5, 20), (-0.46, 0.4), (-0.25, 0.36), (0.25, 0.36), (0.46, 0.4)]
    pen.shape(cap, shade(colour), outline=True)
    pen.shape([*arc(-0.04, 0.47, 0.44, 0.46, 0.0, 0.5, 20), (-0.3, 0.42), (0.2, 0.42)], colour)
    dot = mix(colour, WHITE, 0.92) if sum(colour) < 690 else (214, 206, 216)
    for x, y, rx, ry in ((-0.24, 0.6, 0.095, 0.095), (0.06, 0.78, 0.11, 0.095), (0.3, 0.56, 0.08, 0.085)):
        pen.oval(x, y, rx, ry, dot)
    for side in (-1, 1):
        pen.oval(side * 0.085, 0.24, 0.035, 0.048, INK)
        pen.oval(side * 0.15, 0.18, 0.035, 0.025, ROSE)
    pen.smile(0, 0.19, 0.055, 0.035, 0.026)


def balloon(pen: Pen, colour: Colour) -> None:
    """A hot-air balloon: a striped envelope, ropes and a basket."""
    envelope = [*arc(0, 0.63, 0.4, 0.37, -0.06, 0.56, 24), (-0.1, 0.22), (0.1, 0.22)]
    for x in (-0.075, 0.075):
        pen.stroke(((x, 0.24), (0.9 * x, 0.14)), 0.022, INK)
    pen.shape(envelope, colour, outline=True)
    for side, fill in ((-1, mix(colour, WHITE, 0.5)), (1, mix(shade(colour), WHITE, 0.35))):
        gore = [(side * (0.115 + 0.115 * t), y) for t, y in ((0.2, 0.955), (0.8, 0.8), (1.0, 0.63), (0.75, 0.44))]
        inner = [(side * 0.12 * t, y) for t, y in ((0.7, 0.44), (1.0, 0.63), (0.85, 0.8), (0.3, 0.985))]
        pen.shape([*gore, (side * 0.065, 0.225), (side * 0.03, 0.225), *inner], fill)
    pen.shape(
        [*arc(0, 0.63, 0.4, 0.37, -0.06, 0.2, 12), *arc(0.02, 0.63, 0.3, 0.34, 0.2, -0.06, 12), (0.09, 0.23)],
        shade(colour),
    )
    pen.block(-0.105, 0, 0.105, 0.15, WOOD, 0.03)
    pen.box(-0.115, 0.115, 0.115, 0.155, mix(WOOD, BEAK, 0.4), 0.015)


SUBJECT_PAINTERS: dict[str, Callable[[Pen, Colour], None]] = {
    "cat": cat,
    "rabbit": rabbit,
    "bear": bear,
    "owl": owl,
    "frog": frog,
    "robot": robot,
    "house": house,
    "car": car,
    "mushroom": mushroom,
    "balloon": balloon,
    "zib": lambda pen, colour: zib(pen),
}
