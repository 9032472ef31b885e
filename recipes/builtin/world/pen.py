"""A pen with a frame of its own: outlined, softly shaded shapes in relative coordinates, tinted by the light."""

import math
from collections.abc import Sequence

from PIL import ImageDraw

Colour = tuple[int, int, int]
Number = int | float
Point = tuple[Number, Number]
INK: Colour = (38, 32, 58)
WHITE: Colour = (255, 255, 255)


def mix(a: Colour, b: Colour, share: Number) -> Colour:
    """a, moved towards b by share in [0, 1]."""
    return (
        round(a[0] + (b[0] - a[0]) * share),
        round(a[1] + (b[1] - a[1]) * share),
        round(a[2] + (b[2] - a[2]) * share),
    )


def multiply(colour: Colour, light: Colour) -> Colour:
    """The colour as it looks under coloured light."""
    return colour[0] * light[0] // 255, colour[1] * light[1] // 255, colour[2] * light[2] // 255


def dark(colour: Colour) -> Colour:
    """The outline's colour around a shape."""
    return mix(multiply(colour, (120, 110, 125)), INK, 0.45)


def shade(colour: Colour) -> Colour:
    """The colour on the side that looks away from the light."""
    return multiply(colour, (205, 196, 215))


class Pen:
    """Draws at origin + scale * (x, y), all in units of the picture's side; a negative scale mirrors an axis."""

    def __init__(
        self,
        canvas: ImageDraw.ImageDraw,
        side: int,
        origin: Point = (0.0, 0.0),
        scale: Point = (1.0, 1.0),
        light: tuple[Colour, Number] = (WHITE, 0.0),
        line: Number = 0.0,
    ):
        """light: its colour and how much of it there is, 0..1. line: the outline's width, in picture sides."""
        self.canvas, self.light, self.width = canvas, light, line * side
        self.x0, self.y0 = origin[0] * side, origin[1] * side
        self.sx, self.sy = scale[0] * side, scale[1] * side

    def at(self, x: Number, y: Number) -> Point:
        """The pixel of a point."""
        return self.x0 + self.sx * x, self.y0 + self.sy * y

    def lit(self, colour: Colour) -> Colour:
        """The colour under this pen's light."""
        return mix(colour, multiply(colour, self.light[0]), self.light[1])

    def _oval(self, x: Number, y: Number, rx: Number, ry: Number, fill: Colour | tuple[int, int, int, int]) -> None:
        self.canvas.ellipse((x - rx, y - ry, x + rx, y + ry), fill=fill)

    def oval(self, x: Number, y: Number, rx: Number, ry: Number, fill: Colour) -> None:
        """A flat ellipse without outline."""
        self._oval(*self.at(x, y), abs(rx * self.sx), abs(ry * self.sy), self.lit(fill))

    def glow(self, x: Number, y: Number, rx: Number, ry: Number, fill: Colour, alpha: Number) -> None:
        """A translucent ellipse, not tinted; alpha 0..1."""
        self._oval(*self.at(x, y), abs(rx * self.sx), abs(ry * self.sy), (*fill, round(255 * alpha)))

    def ball(self, x: Number, y: Number, rx: Number, ry: Number, fill: Colour) -> None:
        """An outlined ellipse with a shaded crescent below, on the right in the picture even when mirrored."""
        (px, py), w, h = self.at(x, y), abs(rx * self.sx), abs(ry * self.sy)
        self._oval(px, py, w + self.width, h + self.width, self.lit(dark(fill)))
        self._oval(px, py, w, h, self.lit(shade(fill)))
        self._oval(px - 0.1 * w, py - 0.08 * h, 0.88 * w, 0.89 * h, self.lit(fill))

    def shape(self, points: Sequence[Point], fill: Colour, outline: bool = False) -> None:
        """A filled polygon."""
        pixels = [self.at(x, y) for x, y in points]
        if outline:
            ring = [*pixels, *pixels[:2]]
            self.canvas.line(ring, self.lit(dark(fill)), max(1, round(2 * self.width)), joint="curve")
        self.canvas.polygon(pixels, self.lit(fill))

    def box(self, x0: Number, y0: Number, x1: Number, y1: Number, fill: Colour, corner: Number = 0.0) -> None:
        """A flat rectangle, its corners rounded by a radius."""
        self._box(*self._corners(x0, y0, x1, y1), 0.0, corner, fill)

    def block(self, x0: Number, y0: Number, x1: Number, y1: Number, fill: Colour, corner: Number = 0.03) -> None:
        """An outlined rectangle with shade along its right and lower edges."""
        left, top, right, bottom = self._corners(x0, y0, x1, y1)
        self._box(left, top, right, bottom, self.width, corner, dark(fill))
        self._box(left, top, right, bottom, 0.0, corner, shade(fill))
        self._box(left, top, right - 0.12 * (right - left), bottom - 0.1 * (bottom - top), 0.0, corner, fill)

    def _corners(self, x0: Number, y0: Number, x1: Number, y1: Number) -> tuple[Number, Number, Number, Number]:
        """Left, top, right and bottom, in pixels."""
        (ax, ay), (bx, by) = self.at(x0, y0), self.at(x1, y1)
        return min(ax, bx), min(ay, by), max(ax, bx), max(ay, by)

    def _box(
        self, left: Number, top: Number, right: Number, bottom: Number, grow: Number, corner: Number, fill: Colour
    ) -> None:
        corners = (left - grow, top - grow, right + grow, bottom + grow)
        if corner:
            self.canvas.rounded_rectangle(corners, corner * abs(self.sx) + grow, fill=self.lit(fill))
        else:
            self.canvas.rectangle(corners, fill=self.lit(fill))

    def stroke(self, points: Sequence[Point], width: Number, fill: Colour, outline: bool = False) -> None:
        """A line with round ends; width in the pen's own units."""
        pixels, thick = [self.at(x, y) for x, y in points], abs(width * self.sx)
        layers = [(thick, fill)]
        if outline:
            layers.insert(0, (thick + 2 * self.width, dark(fill)))
        for wide, colour in layers:
            lit, wide = self.lit(colour), max(1.0, wide)
            self.canvas.line(pixels, lit, round(wide), joint="curve")
            for px, py in (pixels[0], pixels[-1]):
                self._oval(px, py, wide / 2 - 0.5, wide / 2 - 0.5, lit)

    def smile(self, x: Number, y: Number, rx: Number, depth: Number, width: Number = 0.03) -> None:
        """A mouth: an ink curve whose middle lies depth below its ends."""
        points = [(x + rx * t, y - depth * (1 - t * t)) for t in (-1, -0.6, -0.2, 0.2, 0.6, 1)]
        self.stroke(points, width, INK)

    def eyes(self, gap: Number, y: Number, r: Number, x: Number = 0.0) -> None:
        """Two round eyes with a highlight, gap left and right of x."""
        for at in (x - gap, x + gap):
            self.oval(at, y, r * 1.18, r * 1.18, INK)
            self.oval(at, y, r, r, WHITE)
            self.oval(at + 0.1 * r, y - 0.08 * r, 0.68 * r, 0.72 * r, INK)
            self.oval(at - 0.12 * r, y + 0.22 * r, 0.25 * r, 0.25 * r, WHITE)


def arc(x: Number, y: Number, rx: Number, ry: Number, start: Number, stop: Number, count: int = 16) -> list[Point]:
    """Points of an ellipse from one angle to another, in turns, counted from +x towards +y."""
    turns = [2 * math.pi * (start + (stop - start) * i / (count - 1)) for i in range(count)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]
