"""The subjects: drawn upright around x = 0 with their feet at y = 0, about one unit high."""

from collections.abc import Callable

from recipes.builtin.world.pen import INK, WHITE, Colour, Pen, arc, mix, shade

ROSE: Colour = (244, 142, 152)
BEAK: Colour = (250, 166, 50)
STEEL: Colour = (156, 166, 182)
GLASS: Colour = (190, 228, 246)
WOOD: Colour = (150, 98, 62)
TEAL: Colour = (34, 178, 172)
LEMON: Colour = (255, 222, 64)
MAGENTA: Colour = (222, 44, 148)


def _pale(colour: Colour) -> Colour:
    """The colour of bellies and muzzles."""
    return mix(colour, (255, 248, 240), 0.62)


def cat(pen: Pen, colour: Colour) -> None:
    """Pointed ears, whiskers and a raised tail."""
    pen.stroke(((0.18, 0.1), (0.36, 0.12), (0.44, 0.26), (0.4, 0.44)), 0.1, shade(colour), outline=True)
    pen.ball(0, 0.25, 0.25, 0.25, colour)
    pen.oval(-0.02, 0.22, 0.13, 0.16, _pale(colour))
    for side in (-1, 1):
        pen.ball(side * 0.13, 0.05, 0.1, 0.06, colour)
        pen.shape(((side * 0.31, 0.64), (side * 0.29, 1.0), (side * 0.03, 0.84)), colour, outline=True)
        pen.shape(((side * 0.26, 0.74), (side * 0.255, 0.91), (side * 0.11, 0.83)), ROSE)
    pen.ball(0, 0.64, 0.33, 0.25, colour)
    pen.oval(0, 0.54, 0.15, 0.1, _pale(colour))
    pen.eyes(0.14, 0.67, 0.08)
    pen.oval(0, 0.585, 0.04, 0.028, (236, 96, 120))
    pen.smile(0, 0.525, 0.08, 0.03, 0.024)
    for side in (-1, 1):
        for y, tip in ((0.58, 0.61), (0.54, 0.5)):
            pen.stroke(((side * 0.22, y), (side * 0.42, tip)), 0.02, INK)


def rabbit(pen: Pen, colour: Colour) -> None:
    """Two long ears, front teeth and a white tail."""
    pen.ball(0.25, 0.13, 0.1, 0.1, (255, 250, 246))
    pen.ball(0, 0.21, 0.22, 0.21, colour)
    pen.oval(-0.02, 0.19, 0.12, 0.14, _pale(colour))
    for side in (-1, 1):
        pen.ball(side * 0.14, 0.04, 0.12, 0.055, colour)
        pen.ball(side * 0.13, 0.8, 0.085, 0.22, colour)
        pen.oval(side * 0.13, 0.8, 0.042, 0.16, ROSE)
    pen.ball(0, 0.5, 0.27, 0.2, colour)
    for side in (-1, 1):
        pen.oval(side * 0.065, 0.42, 0.075, 0.06, _pale(colour))
    pen.box(-0.04, 0.32, 0.04, 0.4, INK, 0.015)
    pen.box(-0.028, 0.332, 0.028, 0.4, WHITE, 0.01)
    pen.oval(0, 0.46, 0.04, 0.028, (236, 96, 120))
    pen.eyes(0.125, 0.54, 0.07)


def bear(pen: Pen, colour: Colour) -> None:
    """Round ears, a pale muzzle and a broad body."""
    for side in (-1, 1):
        pen.ball(side * 0.36, 0.3, 0.11, 0.17, shade(colour))
        pen.ball(side * 0.26, 0.89, 0.115, 0.105, colour)
        pen.oval(side * 0.26, 0.89, 0.06, 0.055, _pale(colour))
    pen.ball(0, 0.29, 0.34, 0.28, colour)
    pen.oval(-0.02, 0.27, 0.2, 0.19, _pale(colour))
    for side in (-1, 1):
        pen.ball(side * 0.2, 0.06, 0.14, 0.075, colour)
    pen.ball(0, 0.69, 0.34, 0.25, colour)
    pen.oval(0, 0.6, 0.17, 0.125, _pale(colour))
    pen.oval(0, 0.655, 0.065, 0.045, INK)
    pen.smile(0, 0.58, 0.075, 0.04, 0.026)
    pen.eyes(0.165, 0.745, 0.062)


def owl(pen: Pen, colour: Colour) -> None:
    """Huge eyes in pale discs, a beak, wings and feather tufts."""
    for side in (-1, 1):
        pen.ball(side * 0.13, 0.04, 0.09, 0.045, BEAK)
        pen.shape(((side * 0.33, 0.66), (side * 0.33, 1.0), (side * 0.02, 0.88)), shade(colour), outline=True)
    pen.ball(0, 0.48, 0.35, 0.43, colour)
    pen.oval(-0.01, 0.31, 0.21, 0.22, _pale(colour))
    for x, y in ((-0.09, 0.38), (0.07, 0.38), (-0.01, 0.27), (-0.09, 0.17), (0.07, 0.17)):
        pen.smile(x, y, 0.055, 0.035, 0.022)
    for side in (-1, 1):
        pen.ball(side * 0.34, 0.4, 0.095, 0.26, shade(colour))
        pen.oval(side * 0.145, 0.7, 0.165, 0.165, INK)
        pen.oval(side * 0.145, 0.7, 0.145, 0.145, (255, 250, 236))
        pen.oval(side * 0.135, 0.7, 0.09, 0.09, INK)
        pen.oval(side * 0.135 - 0.025, 0.735, 0.032, 0.032, WHITE)
    pen.shape(((-0.06, 0.63), (0.06, 0.63), (0, 0.5)), BEAK, outline=True)


def frog(pen: Pen, colour: Colour) -> None:
    """Eyes on top of a wide head, a wide mouth and folded legs; broader than high."""
    for side in (-1, 1):
        pen.ball(side * 0.38, 0.18, 0.17, 0.17, shade(colour))
        pen.ball(side * 0.43, 0.04, 0.15, 0.045, colour)
        pen.ball(side * 0.22, 0.7, 0.135, 0.13, colour)
    pen.ball(0, 0.25, 0.34, 0.25, colour)
    pen.oval(-0.01, 0.2, 0.22, 0.17, _pale(colour))
    for side in (-1, 1):
        pen.ball(side * 0.15, 0.04, 0.12, 0.045, colour)
    pen.ball(0, 0.5, 0.42, 0.22, colour)
    pen.eyes(0.22, 0.71, 0.095)
    pen.smile(0, 0.5, 0.27, 0.1, 0.035)
    for side in (-1, 1):
        pen.oval(side * 0.32, 0.5, 0.055, 0.035, ROSE)


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


def zib(pen: Pen, _: Colour) -> None:
    """The character that the base model doesn't know, in its own colours: a round teal creature.

    One huge eye, two antennae with yellow balls, a striped belly and magenta boots.
    """
    for side in (-1, 1):
        pen.stroke(((side * 0.1, 0.76), (side * 0.17, 0.87), (side * 0.25, 0.93)), 0.045, LEMON, outline=True)
        pen.ball(side * 0.27, 0.94, 0.075, 0.07, LEMON)
        pen.stroke(((side * 0.17, 0.2), (side * 0.17, 0.08)), 0.11, TEAL, outline=True)
        pen.ball(side * 0.19, 0.06, 0.145, 0.07, MAGENTA)
        pen.stroke(((side * 0.34, 0.42), (side * 0.46, 0.48), (side * 0.5, 0.58)), 0.085, TEAL, outline=True)
    pen.ball(0, 0.47, 0.4, 0.34, TEAL)
    pen.oval(-0.01, 0.25, 0.25, 0.11, LEMON)
    for y, wide in ((0.29, 0.2), (0.21, 0.2)):
        pen.stroke(((-wide + 0.02, y), (wide - 0.04, y)), 0.038, MAGENTA)
    pen.oval(0, 0.62, 0.2, 0.18, INK)
    pen.oval(0, 0.62, 0.175, 0.155, WHITE)
    pen.oval(0.01, 0.615, 0.105, 0.105, MAGENTA)
    pen.oval(0.01, 0.615, 0.062, 0.062, INK)
    pen.oval(-0.025, 0.655, 0.035, 0.035, WHITE)
    pen.smile(0, 0.42, 0.13, 0.035, 0.032)


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
    "zib": zib,
}
