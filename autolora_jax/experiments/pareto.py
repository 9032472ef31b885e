"""Two figures that pull against each other, such as diversity and adherence: the best points, and what they reach.

A point is (x, y), both the better the higher. Points that are not known do not count.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    x: float
    y: float


def known(points: Sequence[Point]) -> list[Point]:
    """Those that have both figures."""
    return [point for point in points if not math.isnan(point.x + point.y)]


def efficient(points: Sequence[Point]) -> list[Point]:
    """Those that no other one beats in one figure without losing in the other, from the highest y to the highest x."""
    found: list[Point] = []
    for point in sorted(known(points), reverse=True):  # from the highest x down: the next has to be higher
        if not found or point.y > found[-1].y or point == found[-1]:
            found.append(point)
    return found[::-1]


def dominated_area(points: Sequence[Point]) -> float:
    """Of all (x, y) above (0, 0) that some point is at least as good as in both: exact, the area under a staircase.

    Nothing is interpolated: between two points it goes down at once, for nothing was drawn there.
    Source: E. Zitzler, L. Thiele, Multiobjective Optimization Using Evolutionary Algorithms: A Comparative Case Study
    (1998), "size of the space covered".
    """
    area, top = 0.0, 0.0
    for x, y in sorted(known(points), reverse=True):
        if y > top:
            area, top = area + max(x, 0.0) * (y - top), y
    return area


def reach(curve: Sequence[Point], level: float) -> float:
    """The greatest x with y no less than the level; NaN where there is none.

    curve: points in their order along an axis. What lies between neighbours is taken to be on the line between them.
    """
    points = known(curve)
    found = [point.x for point in points if point.y >= level]
    for one, other in itertools.pairwise(points):
        if min(one.y, other.y) < level < max(one.y, other.y):
            found.append(one.x + (level - one.y) / (other.y - one.y) * (other.x - one.x))
    return max(found, default=math.nan)


def levels(curves: Sequence[Sequence[Point]], at_most: int = 10) -> list[float]:
    """Round values of y, evenly spaced above 0, that some curve reaches."""
    top = max((point.y for curve in curves for point in known(curve)), default=0.0)
    if not 0 < top < math.inf:
        return []
    size = 10.0 ** math.floor(math.log10(top / at_most))
    step = next(size * part for part in (1, 2, 2.5, 5, 10) if top / (size * part) < at_most + 1)
    return [round(i * step, 12) for i in range(1, math.floor(top / step * (1 + 1e-9)) + 1)]
