"""How a zib looks: the character that the base model doesn't know."""

from autolora_jax.demo.world.pen import INK, WHITE, Colour, Pen

TEAL: Colour = (34, 178, 172)
LEMON: Colour = (255, 222, 64)
MAGENTA: Colour = (222, 44, 148)


def zib(pen: Pen) -> None:
    """A round teal creature: one huge eye, two antennae with yellow balls, a striped belly and magenta boots."""
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
