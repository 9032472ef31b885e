"""The body that all creatures have, and its poses; head, limbs and tail are each creature's own, see creatures.py.

A creature stands upright around x = 0 with its feet at y = 0 and is about one unit high; y points upwards.
"""

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from recipes.builtin.world.pen import INK, WHITE, Colour, Pen, Point, arc, bright, dark, mix, shade

Rng = np.random.Generator
ROSE: Colour = (246, 142, 152)
BEAK: Colour = (250, 166, 50)
STEEL: Colour = (160, 170, 188)
TEAL: Colour = (26, 184, 176)
LEMON: Colour = (255, 222, 64)
MAGENTA: Colour = (226, 44, 150)


class Pose(NamedTuple):
    """Where the parts of a body are; arms and feet: the right one's, mirrored for the left unless `other` says."""

    body: tuple[float, float, float, float]  # middle and radii
    head: tuple[float, float, float]  # middle, and how far it is turned, degrees
    arm: tuple[Point, ...]
    foot: Point
    other: tuple[Point, ...] | None = None  # the left arm
    hip: Point | None = None  # where a leg begins; None: the feet lie before the body
    tail: tuple[float, float, float] = (0.16, 0.22, 0.0)  # its root, and how far it is turned
    lift: float = 0.0  # above the ground
    asleep: bool = False
    cheering: bool = False


POSES: dict[str, Pose] = {
    "": Pose(
        (0, 0.33, 0.19, 0.2),
        (0, 0.7, 0),
        ((0.15, 0.43), (0.24, 0.34), (0.25, 0.24)),
        (0.12, 0.045),
        hip=(0.105, 0.2),
    ),
    "waving": Pose(
        (0, 0.33, 0.19, 0.2),
        (0, 0.7, 4),
        ((0.15, 0.43), (0.33, 0.44), (0.42, 0.63)),
        (0.12, 0.045),
        other=((-0.15, 0.43), (-0.25, 0.36), (-0.17, 0.27)),
        hip=(0.105, 0.2),
        cheering=True,
    ),
    "sitting": Pose(
        (0, 0.25, 0.25, 0.235),
        (0, 0.64, 0),
        ((0.17, 0.36), (0.2, 0.24), (0.085, 0.17)),
        (0.23, 0.065),
        tail=(0.22, 0.1, -30),
    ),
    "jumping": Pose(
        (0, 0.34, 0.19, 0.2),
        (0, 0.71, 0),
        ((0.15, 0.44), (0.3, 0.5), (0.37, 0.66)),
        (0.29, 0.1),
        hip=(0.11, 0.24),
        lift=0.2,
        cheering=True,
    ),
    "sleeping": Pose(
        (0.15, 0.2, 0.36, 0.2),
        (-0.25, 0.3, 12),
        ((0.0, 0.18), (-0.1, 0.08), (-0.26, 0.05)),
        (0.36, 0.055),
        other=(),
        tail=(0.44, 0.14, -18),
        asleep=True,
    ),
}


class Look(NamedTuple):
    """What a part's painter is told."""

    colour: Colour
    coat: str
    pose: Pose
    rng: Rng

    @property
    def pale(self) -> Colour:
        """Of bellies and muzzles."""
        return mix(self.colour, (255, 248, 240), 0.66)

    @property
    def mark(self) -> Colour:
        """Of stripes and spots."""
        return mix(shade(shade(self.colour)), dark(self.colour), 0.45)


Painter = Callable[[Pen, Look], None]


class Creature(NamedTuple):
    """How a creature differs from others; the painters' frames: the head's middle, the tail's root, the body's."""

    ears: Painter
    face: Painter
    tail: Painter | None = None
    back: Painter | None = None  # behind the body, in its frame
    front: Painter | None = None  # on the belly, in its frame
    head: tuple[float, float] = (0.3, 0.235)
    limbs: tuple[float, float] = (0.105, 0.095)  # width of arms at the shoulder and at the hand
    hands: Colour | None = None
    feet: Colour | None = None
    boxes: bool = False  # body and head are boxes


def creature(kind: Creature, pen: Pen, colour: Colour, coat: str, pose: str, rng: Rng) -> None:
    """Paints one."""
    p = POSES[pose]
    look = Look(colour, coat, p, rng)
    pen = pen.frame(0, p.lift)
    bx, by, rx, ry = p.body
    body, head = pen.frame(bx, by), pen.frame(p.head[0], p.head[1], turn=p.head[2] + rng.uniform(-4, 4))
    left = p.other if p.other is not None else tuple((-x, y) for x, y in p.arm)
    if kind.tail:
        kind.tail(pen.frame(*p.tail[:2], turn=p.tail[2]), look)
    if kind.back:
        kind.back(body, look)
    if p.hip:
        _legs(pen, kind, look)
    _solid(body, kind.boxes, rx, ry, colour)
    if not kind.boxes:
        body.oval(-0.02, -0.02 if p.hip else -0.03, 0.66 * rx, 0.74 * ry, look.pale)
    _coat(body, look, rx, ry, kind.boxes)
    if kind.front:
        kind.front(body, look)
    if not p.hip:
        _feet(pen, kind, look)
    late = [arm for arm in (left, p.arm) if arm and arm[-1][1] > 0.6]  # raised ones are before the head
    for arm in (left, p.arm):
        if arm and arm not in late:
            _arm(pen, arm, kind, look)
    _garment(pen.frame(p.head[0] * 0.86 + bx * 0.14, p.head[1]), rng, kind.head, "neck")
    kind.ears(head, look)
    _solid(head, kind.boxes, *kind.head, colour)
    _brow(head, look, *kind.head, kind.boxes)
    kind.face(head, look)
    for arm in late:
        _arm(pen, arm, kind, look)
    if p.asleep:
        _snore(pen, p.head[0], p.head[1] + 0.26)


def _solid(pen: Pen, boxes: bool, rx: float, ry: float, colour: Colour) -> None:
    """A body or a head, and the light on it."""
    if boxes:
        pen.block(-rx, -ry, rx, ry, colour, 0.07)
        pen.box(-0.8 * rx, 0.62 * ry, 0.1 * rx, 0.78 * ry, bright(colour), 0.02)
    else:
        pen.ball(0, 0, rx, ry, colour)
        pen.oval(-0.42 * rx, 0.6 * ry, 0.26 * rx, 0.14 * ry, bright(colour), 24)


def _legs(pen: Pen, kind: Creature, look: Look) -> None:
    colour = kind.hands or look.colour
    for side in (-1, 1):
        (hx, hy), (fx, fy) = look.pose.hip or (0, 0), look.pose.foot
        pen.limb(((side * hx, hy), (side * (hx + fx) / 2 * 1.05, (hy + fy) / 2), (side * fx, fy)), 0.12, colour, 0.105)
    _feet(pen, kind, look)


def _feet(pen: Pen, kind: Creature, look: Look) -> None:
    x, y = look.pose.foot
    colour = kind.feet or kind.hands or look.colour
    for side in (-1, 1) if not look.pose.asleep else (1,):
        pen.ball(side * (x + 0.015), y, 0.1, 0.055 if look.pose.hip or look.pose.asleep else 0.075, colour)
        if not look.pose.hip and not look.pose.asleep:  # soles
            pen.oval(side * (x + 0.015), y, 0.05, 0.036, ROSE if kind.feet is None else shade(colour))


def _arm(pen: Pen, points: tuple[Point, ...], kind: Creature, look: Look) -> None:
    colour = kind.hands or look.colour
    pen.limb(points, kind.limbs[0], colour, kind.limbs[1])
    if points[-1][1] > 0.55:
        x, y = points[-1]
        pen.oval(x, y, 0.03, 0.03, ROSE if kind.hands is None else shade(colour))


def _coat(pen: Pen, look: Look, rx: float, ry: float, boxes: bool) -> None:
    """Stripes from the sides, or spots, on the body."""
    if look.coat == "striped":
        for y in (0.5, 0.05, -0.4):
            edge = rx if boxes else rx * np.sqrt(1 - y * y)
            for side in (-1, 1):
                points = ((side * edge * 0.96, ry * (y + 0.13)), (side * edge * 0.96, ry * (y - 0.14)))
                pen.shape((*points, (side * edge * 0.3, ry * (y - 0.04))), look.mark)
    if look.coat == "spotted":
        for x, y, r in (
            (-0.62, 0.3, 0.2),
            (0.6, 0.42, 0.17),
            (-0.5, -0.45, 0.18),
            (0.66, -0.2, 0.2),
            (0.1, 0.72, 0.15),
        ):
            pen.oval(x * rx, y * ry, r * rx, r * rx, look.mark)


def _brow(pen: Pen, look: Look, rx: float, ry: float, boxes: bool) -> None:
    """Stripes or spots on the head."""
    if look.coat == "striped":
        for x, wide, deep in ((0, 0.07, 0.5), (-0.3, 0.06, 0.38), (0.3, 0.06, 0.38)):
            top = 0.97 * ry * (1 if boxes else np.sqrt(1 - x * x))
            points = ((rx * (x - wide), top), (rx * (x + wide), top), (rx * x * 0.8, top - deep * ry))
            pen.shape(points, look.mark)
        for side in (-1, 1):
            pen.shape(((side * rx * 0.97, -0.02), (side * rx * 0.93, -0.075), (side * rx * 0.68, -0.06)), look.mark)
    if look.coat == "spotted":
        for x, y, r in ((-0.5, 0.52, 0.17), (0.12, 0.74, 0.13), (0.66, 0.34, 0.14), (-0.84, -0.1, 0.1)):
            pen.oval(x * rx, y * ry, r * rx, r * rx, look.mark)


SCARVES: tuple[Colour, ...] = ((222, 66, 74), (60, 120, 210), (70, 168, 96), (248, 190, 60), (150, 84, 190))


def _garment(pen: Pen, rng: Rng, head: tuple[float, float], where: str) -> None:
    """A scarf or a bow tie now and then, which no caption speaks of."""
    chance, which = rng.random(), SCARVES[rng.integers(len(SCARVES))]
    y = -head[1] - 0.005
    if chance < 0.14:
        pen.limb(((-0.14, y + 0.03), (0, y - 0.02), (0.14, y + 0.03)), 0.08, which)
        pen.limb(((0.08, y), (0.12, y - 0.1), (0.1, y - 0.17)), 0.065, which, 0.075)
    elif chance < 0.26:
        for side in (-1, 1):
            pen.blob(((0, y), (side * 0.1, y + 0.055), (side * 0.12, y), (side * 0.1, y - 0.055)), which)
        pen.ball(0, y, 0.03, 0.03, shade(which))


def _snore(pen: Pen, x: float, y: float) -> None:
    """Two Z above a sleeper."""
    for dx, dy, s in ((0.17, 0.1, 0.055), (0.32, 0.23, 0.07)):
        z = [(x + dx + u * s, y + dy + v * s) for u, v in ((-1, 1), (1, 1), (-1, -1), (1, -1))]
        for width, colour in ((0.06, INK), (0.028, WHITE)):
            for a, b in itertools.pairwise(z):
                pen.stroke((a, b), width, colour)


def eyes(pen: Pen, look: Look, gap: float, y: float, r: float, x: float = 0.0) -> None:
    """Two eyes, gap left and right of x, closed in sleep."""
    for at in (x - gap, x + gap):
        if look.pose.asleep:
            pen.smile(at, y, 0.95 * r, 0.6 * r, 0.022)
        else:
            pen.oval(at, y, r * 0.86, r * 1.1, INK)
            pen.oval(at - 0.26 * r, y + 0.36 * r, 0.34 * r, 0.38 * r, WHITE)
            pen.oval(at + 0.3 * r, y - 0.42 * r, 0.17 * r, 0.17 * r, (176, 190, 226))


def mouth(pen: Pen, look: Look, y: float, wide: float) -> None:
    """A smile, open where there is something to cheer at."""
    if look.pose.cheering:
        pen.shape([*arc(0, y, wide, 0.075, 0.5, 1.0, 12)], (126, 36, 58), outline=True)
        pen.oval(0, y - 0.055, 0.55 * wide, 0.018, (244, 112, 124))
    else:
        for side in (-1, 1):
            pen.smile(side * wide / 2, y, wide / 2, 0.026, 0.02)


def cheeks(pen: Pen, x: float, y: float) -> None:
    """A blush."""
    for side in (-1, 1):
        pen.oval(side * x, y, 0.042, 0.026, ROSE)
