"""Place names beside their points so that none covers another.

Each label tries places around its point, near ones first, and takes the first where it covers no label, no
marker and no error bar and stays inside the axes; from farther places a thin line leads back. Important
points choose first. The order and the places are fixed, so the same points give the same picture. Where
there is no such place, a line may cross error bars, and shorter forms of the name are tried. A label that
finds no place even so is left out and counted: its name is still in the point's title and in the record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ggplan.charts.drawing import Box

_RINGS = (7.0, 12.0, 19.0, 28.0, 40.0, 54.0, 72.0, 92.0)
_FAR_RINGS = (*_RINGS, 115.0, 140.0, 170.0)
_ANGLES = (
    25,
    155,
    -25,
    -155,
    90,
    -90,
    0,
    180,
    55,
    125,
    -55,
    -125,
    12,
    168,
    -12,
    -168,
    40,
    140,
    -40,
    -140,
    72,
    108,
    -72,
    -108,
)
_PADDING = 1.5
_NEAR = 13.0


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a label stands: its lower left corner, and whether a line must lead to its point.

    `form` is the form of the label that is placed there: 0 the whole one, 1 the first of the shorter ones.
    """

    x: float
    y: float
    leader: bool
    form: int = 0


def place_labels(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    obstacles: Sequence[Box],
    frame: Box,
    lines: Sequence[Box] = (),
    *,
    bars: Sequence[Box] = (),
    shorter: Sequence[Sequence[tuple[float, float]]] = (),
) -> list[Placed | None]:
    """A place for each label, or None; the first points choose first.

    Parameters
    ----------
    points
        Centres of the markers, pixels.
    sizes
        Width and height of each label, pixels.
    obstacles
        What no label may cover and no leader cross: markers, error bars, lines' names.
    frame
        The axes.
    lines
        What no label may cover, but a leader may cross: other lines.
    bars
        What no label may cover, and a leader may cross only where there is no other place: error bars.
    shorter
        For each label the sizes of its shorter forms, the longest first.
    """
    taken = list(obstacles)
    leaders: list[tuple[float, float, float, float]] = []
    placed: list[Placed | None] = []
    for number, ((x, y), whole) in enumerate(zip(points, sizes, strict=True)):
        place = None
        for form, (width, height) in enumerate((whole, *(shorter[number] if shorter else ()))):
            place = _place(x, y, width, height, [*taken, *bars], leaders, lines, frame, _RINGS) or _place(
                x, y, width, height, taken, leaders, [*lines, *bars], frame, _FAR_RINGS
            )
            if place is not None:
                place = replace(place, form=form)
                break
        placed.append(place)
        if place is not None:
            taken.append((place.x, place.y, place.x + width, place.y + height))
            if place.leader:
                leaders.append((x, y, *_nearest_on(place, width, height, x, y)))
    return placed


def leader_end(place: Placed, size: tuple[float, float], point: tuple[float, float]) -> tuple[float, float]:
    """Where the leader of a label ends: the nearest point of its box."""
    return _nearest_on(place, *size, *point)


def _place(
    x: float, y: float, width: float, height: float, taken: Sequence[Box],
    leaders: Sequence[tuple[float, float, float, float]], lines: Sequence[Box], frame: Box,
    rings: Sequence[float],
) -> Placed | None:  # fmt: skip
    for ring in rings:
        for angle in _ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            # The side of the label that faces the point lies on the ring.
            left = x + ring * dx - (0 if dx > 0.3 else width if dx < -0.3 else width / 2)
            low = y + ring * dy - (0 if dy > 0.8 else height if dy < -0.8 else height / 2)
            box = (left, low, left + width, low + height)
            if not is_inside(box, frame) or any(overlap(box, other) for other in (*taken, *lines)):
                continue
            if any(_crosses(box, leader) for leader in leaders):
                continue
            place = Placed(left, low, leader=ring > _NEAR)
            if place.leader:
                end = _nearest_on(place, width, height, x, y)
                if any(_blocks(other, (x, y, *end)) for other in taken):
                    continue
            return place
    return None


def _nearest_on(place: Placed, width: float, height: float, x: float, y: float) -> tuple[float, float]:
    return min(max(x, place.x), place.x + width), min(max(y, place.y), place.y + height)


def is_inside(box: Box, frame: Box) -> bool:
    """Whether a box is inside another."""
    return box[0] >= frame[0] and box[1] >= frame[1] and box[2] <= frame[2] and box[3] <= frame[3]


def overlap(a: Box, b: Box) -> bool:
    """Whether two boxes overlap, or nearly touch."""
    return (
        a[0] - _PADDING < b[2]
        and b[0] < a[2] + _PADDING
        and a[1] - _PADDING < b[3]
        and b[1] < a[3] + _PADDING
    )


def _crosses(box: Box, line: tuple[float, float, float, float]) -> bool:
    """Whether a line passes through a box, by sampling it every two pixels."""
    x0, y0, x1, y1 = line
    steps = max(1, int(math.hypot(x1 - x0, y1 - y0) / 2))
    return any(
        box[0] < x0 + (x1 - x0) * i / steps < box[2] and box[1] < y0 + (y1 - y0) * i / steps < box[3]
        for i in range(steps + 1)
    )


def _blocks(box: Box, line: tuple[float, float, float, float]) -> bool:
    """Whether a leader would run through a box that is not at its own beginning."""
    return not (box[0] <= line[0] <= box[2] and box[1] <= line[1] <= box[3]) and _crosses(box, line)
