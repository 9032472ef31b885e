"""The animals: drawn upright around x = 0 with their feet at y = 0, about one unit high."""

from autolora_jax.demo.world.pen import INK, WHITE, Colour, Pen, mix, shade

ROSE: Colour = (244, 142, 152)
BEAK: Colour = (250, 166, 50)


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
