"""A pen with a frame of its own: outlined, softly shaded shapes in relative coordinates, tinted by the light."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from jaxtyping import Float
from PIL import ImageDraw

Colour = tuple[int, int, int]
Number = int | float
Point = tuple[Number, Number]
Points = Sequence[Point] | Float[np.ndarray, "n 2"]
INK: Colour = (38, 32, 58)
WHITE: Colour = (255, 255, 255)
_TURNS = np.linspace(0, 2 * np.pi, 36, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURNS), np.sin(_TURNS)], -1)
SMOOTH = 8  # points that a curve gets for each that it is given


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
    return mix(multiply(colour, (112, 100, 122)), INK, 0.55)


def shade(colour: Colour) -> Colour:
    """The colour on the side that looks away from the light."""
    return multiply(colour, (202, 190, 216))


def bright(colour: Colour) -> Colour:
    """The colour where the light falls straight on it."""
    return mix(colour, (255, 252, 232), 0.3)


def curve(points: Points, closed: bool = True) -> Float[np.ndarray, "m 2"]:
    """A smooth line through the points (Catmull-Rom); a point given twice is a corner."""
    given = np.asarray(points, np.float64)
    line = _basis(len(given), closed) @ given
    twice = (given == np.roll(given, -1, 0)).all(1) if closed else np.zeros(0, bool)
    if twice.any():  # between two equal points it would make a loop
        line = line.reshape(-1, SMOOTH, 2)[~twice].reshape(-1, 2)
    return line


@cache
def _basis(count: int, closed: bool) -> Float[np.ndarray, "m n"]:
    t = np.arange(SMOOTH)[:, None] / SMOOTH
    weights = 0.5 * np.concatenate(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, -(t**2) + t**3], axis=1
    )
    rows = []
    for i in range(count if closed else count - 1):
        row = np.zeros((SMOOTH, count))
        for j in range(4):
            at = i + j - 1
            row[:, at % count if closed else min(max(at, 0), count - 1)] += weights[:, j]
        rows.append(row)
    if not closed:
        rows.append(np.eye(count)[-1:])
    return np.concatenate(rows)


class Pen:
    """Draws in a frame of its own; its unit is the picture's side, unless the frame is scaled."""

    def __init__(
        self,
        canvas: ImageDraw.ImageDraw,
        side: int,
        light: tuple[Colour, Number] = (WHITE, 0.0),
        line: Number = 0.0,
        origin: Point = (0.0, 0.0),
        axes: Float[np.ndarray, "2 2"] | None = None,
    ) -> None:
        """light: its colour and how much of it there is, 0..1. line: the outline's width, in picture sides.

        origin, axes: of the frame, in picture sides; a point p of the frame is at origin + axes @ p.
        """
        self.canvas, self.side, self.light, self.line = canvas, side, light, line
        self.origin = np.asarray(origin, np.float64)
        self.axes = np.eye(2) if axes is None else axes
        self.width = line * side

    def frame(self, x: Number, y: Number, sx: Number = 1.0, sy: Number | None = None, turn: Number = 0.0) -> "Pen":
        """A pen in a frame within this one: its origin at (x, y), its axes scaled, then turned by so many degrees."""
        c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
        inner = np.array([[c, -s], [s, c]]) * (sx, sx if sy is None else sy)
        origin = self.origin + self.axes @ (x, y)
        return Pen(self.canvas, self.side, self.light, self.line, (origin[0], origin[1]), self.axes @ inner)

    def at(self, points: Points) -> Float[np.ndarray, "n 2"]:
        """Points in pixels."""
        return (np.asarray(points, np.float64) @ self.axes.T + self.origin) * self.side

    def lit(self, colour: Colour) -> Colour:
        """The colour under this pen's light."""
        return mix(colour, multiply(colour, self.light[0]), self.light[1])

    def _polygon(self, pixels: Float[np.ndarray, "n 2"], fill: Colour | tuple[int, int, int, int]) -> None:
        self.canvas.polygon(pixels.ravel().tolist(), fill)

    def shape(self, points: Points, fill: Colour, outline: bool = False) -> None:
        """A flat polygon."""
        pixels = self.at(points)
        if outline:
            self._polygon(_grown(pixels, self.width), self.lit(dark(fill)))
        self._polygon(pixels, self.lit(fill))

    def blob(self, points: Points, fill: Colour, outline: bool = True, shaded: bool = True) -> None:
        """A smooth closed shape, its lower right in the shade."""
        self._solid(self.at(curve(points)), fill, outline, shaded)

    def _solid(self, pixels: Float[np.ndarray, "n 2"], fill: Colour, outline: bool, shaded: bool) -> None:
        if outline:
            self._polygon(_grown(pixels, self.width), self.lit(dark(fill)))
        self._polygon(pixels, self.lit(shade(fill) if shaded else fill))
        if shaded:
            low, high = pixels.min(0), pixels.max(0)
            middle = (low + high) / 2 - np.array((0.055, 0.05)) * (high - low)
            self._polygon(middle + (0.88, 0.89) * (pixels - (low + high) / 2), self.lit(fill))

    def oval(self, x: Number, y: Number, rx: Number, ry: Number, fill: Colour, turn: Number = 0.0) -> None:
        """A flat ellipse without outline, turned by so many degrees."""
        self._polygon(self._ellipse(x, y, rx, ry, turn), self.lit(fill))

    def _ellipse(self, x: Number, y: Number, rx: Number, ry: Number, turn: Number) -> Float[np.ndarray, "n 2"]:
        points = _CIRCLE * (rx, ry)
        if turn:
            c, s = math.cos(math.radians(turn)), math.sin(math.radians(turn))
            points = points @ np.array([[c, s], [-s, c]])
        return self.at(points + np.array((x, y)))

    def ball(self, x: Number, y: Number, rx: Number, ry: Number, fill: Colour, turn: Number = 0.0) -> None:
        """An outlined ellipse, its lower right in the shade, even when mirrored."""
        self._solid(self._ellipse(x, y, rx, ry, turn), fill, True, True)

    def glow(self, x: Number, y: Number, rx: Number, ry: Number, fill: Colour, alpha: Number) -> None:
        """A translucent ellipse, not tinted; alpha 0..1."""
        self._polygon(self._ellipse(x, y, rx, ry, 0), (*fill, round(255 * alpha)))

    def veil(self, points: Points, fill: Colour, alpha: Number) -> None:
        """A translucent polygon, not tinted; alpha 0..1."""
        self._polygon(self.at(points), (*fill, round(255 * alpha)))

    def box(self, x0: Number, y0: Number, x1: Number, y1: Number, fill: Colour, corner: Number = 0.0) -> None:
        """A flat rectangle, its corners rounded by a radius."""
        self._polygon(self.at(_rectangle(x0, y0, x1, y1, corner)), self.lit(fill))

    def block(self, x0: Number, y0: Number, x1: Number, y1: Number, fill: Colour, corner: Number = 0.03) -> None:
        """An outlined rectangle with shade along its right and lower edges."""
        self._solid(self.at(_rectangle(x0, y0, x1, y1, max(corner, 0.004))), fill, True, True)

    def limb(
        self, points: Points, width: Number, fill: Colour, end: Number | None = None, outline: bool = True
    ) -> None:
        """A smooth line through the points with round ends; width, and its width at the end, in the pen's units."""
        end = width if end is None else end
        pixels, scale = self.at(curve(points, closed=False)), self.side * math.sqrt(abs(np.linalg.det(self.axes)))
        layers = [(0.0, self.lit(fill))]
        if outline:
            layers.insert(0, (self.width, self.lit(dark(fill))))
        for grow, colour in layers:
            self._polygon(_tube(pixels, width * scale / 2 + grow, end * scale / 2 + grow), colour)

    def stroke(self, points: Points, width: Number, fill: Colour) -> None:
        """A flat smooth line."""
        self.limb(points, width, fill, outline=False)

    def smile(self, x: Number, y: Number, rx: Number, depth: Number, width: Number = 0.026) -> None:
        """A mouth: an ink curve whose middle lies depth below its ends."""
        self.stroke([(x + rx * t, y - depth * (1 - t * t)) for t in (-1, -0.5, 0, 0.5, 1)], width, INK)


def _rectangle(x0: Number, y0: Number, x1: Number, y1: Number, corner: Number) -> Float[np.ndarray, "n 2"]:
    (x0, x1), (y0, y1) = sorted((x0, x1)), sorted((y0, y1))
    if not corner:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    r = min(corner, (x1 - x0) / 2, (y1 - y0) / 2)
    centres = np.array([(x1 - r, y1 - r), (x0 + r, y1 - r), (x0 + r, y0 + r), (x1 - r, y0 + r)])
    quarters = _QUARTERS * r
    return (centres[:, None] + quarters).reshape(-1, 2)


_ANGLES = np.linspace(0, np.pi / 2, 6) + np.pi / 2 * np.arange(4)[:, None]
_QUARTERS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], -1)


def _grown(pixels: Float[np.ndarray, "n 2"], width: Number) -> Float[np.ndarray, "n 2"]:
    """The polygon, every point moved outwards by about `width`."""
    along = np.roll(pixels, -1, 0) - np.roll(pixels, 1, 0)
    length = np.hypot(along[:, 0], along[:, 1])
    normal = np.stack([along[:, 1], -along[:, 0]], -1) / np.maximum(length, 1e-9)[:, None]
    area = np.sum(pixels[:, 0] * np.roll(pixels[:, 1], -1) - np.roll(pixels[:, 0], -1) * pixels[:, 1])
    return pixels + math.copysign(width, area) * normal


def _tube(pixels: Float[np.ndarray, "n 2"], start: Number, end: Number) -> Float[np.ndarray, "m 2"]:
    """The outline of a line of changing width with round ends."""
    along = np.gradient(pixels, axis=0)
    along /= np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-9)[:, None]
    normal = np.stack([-along[:, 1], along[:, 0]], -1)
    radius = np.linspace(start, end, len(pixels))[:, None]
    angles = np.linspace(np.pi / 2, -np.pi / 2, 8)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    tip = pixels[-1] + end * (cos * along[-1] + sin * normal[-1])
    root = pixels[0] - start * (cos * along[0] + sin * normal[0])
    return np.concatenate([pixels + radius * normal, tip, (pixels - radius * normal)[::-1], root])


def arc(
    x: Number, y: Number, rx: Number, ry: Number, start: Number, stop: Number, count: int = 16
) -> list[tuple[float, float]]:
    """Points of an ellipse from one angle to another, in turns, counted from +x towards +y."""
    turns = [2 * math.pi * (start + (stop - start) * i / (count - 1)) for i in range(count)]
    return [(x + rx * math.cos(t), y + ry * math.sin(t)) for t in turns]
