"""Outlines of what stands in a street, in units of its own height.

x to the right of its middle, y up from the ground. What has a label covers what is behind it in the
truth; details are only painted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

Outline = tuple[tuple[float, float], ...]
"""x and y of each corner."""
PAINTED = ""
"""Label of what is painted alone."""


class Detail(NamedTuple):
    """A part that lies on a thing, such as a window."""

    colour: str
    """Which colour: a key of `COLOURS`, or `own`, of the thing again."""
    outline: Outline
    label: str = PAINTED


class Thing(NamedTuple):
    """What one kind of thing looks like."""

    label: str
    metres: tuple[float, float]
    """Its least and largest height."""
    outline: Outline
    details: tuple[Detail, ...] = ()


COLOURS: Mapping[str, tuple[float, float, float]] = {
    "dark": (38.0, 40.0, 46.0),
    "black": (22.0, 22.0, 24.0),
    "skin": (205.0, 160.0, 130.0),
    "red": (200.0, 45.0, 40.0),
    "amber": (225.0, 165.0, 40.0),
    "green": (50.0, 180.0, 90.0),
    "white": (225.0, 225.0, 220.0),
}


def box(left: float, low: float, right: float, high: float) -> Outline:
    """Return the four corners of a rectangle."""
    return ((left, low), (right, low), (right, high), (left, high))


def _windows(left: float, right: float, count: int, low: float, high: float) -> tuple[Detail, ...]:
    step = (right - left) / count
    return tuple(
        Detail("dark", box(left + step * (i + 0.12), low, left + step * (i + 0.88), high))
        for i in range(count)
    )


def _wheels(*places: float, size: float = 0.16) -> tuple[Detail, ...]:
    return tuple(Detail("black", box(x - size, 0.0, x + size, 1.7 * size)) for x in places)


_REAR = (
    *((-0.55, 0.0), (-0.38, 0.0), (-0.38, 0.08), (0.38, 0.08), (0.38, 0.0), (0.55, 0.0)),
    *((0.6, 0.3), (0.6, 0.55), (0.5, 0.62), (0.42, 0.95), (0.3, 1.0)),
    *((-0.3, 1.0), (-0.42, 0.95), (-0.5, 0.62), (-0.6, 0.55), (-0.6, 0.3)),
)
_SIDE = (
    *((-1.4, 0.12), (-1.1, 0.12), (-1.05, 0.0), (-0.75, 0.0), (-0.7, 0.12), (0.7, 0.12)),
    *((0.75, 0.0), (1.05, 0.0), (1.1, 0.12), (1.4, 0.12), (1.42, 0.5), (0.9, 0.6)),
    *((0.5, 1.0), (-0.6, 1.0), (-1.0, 0.6), (-1.4, 0.55)),
)
_BODY = (
    *((-0.14, 0.0), (-0.02, 0.0), (0.0, 0.4), (0.02, 0.0), (0.14, 0.0), (0.13, 0.45)),
    *((0.2, 0.5), (0.17, 0.8), (0.06, 0.84), (0.07, 0.96), (0.0, 1.0), (-0.07, 0.96)),
    *((-0.06, 0.84), (-0.17, 0.8), (-0.2, 0.5), (-0.13, 0.45)),
)
_SEATED = (
    *((0.02, 0.35), (0.1, 0.08), (0.17, 0.1), (0.14, 0.45), (0.22, 0.72), (0.1, 0.84)),
    *((0.1, 0.96), (0.03, 1.0), (-0.05, 0.96), (-0.06, 0.84), (-0.18, 0.7), (-0.12, 0.35)),
)
_BICYCLE = (
    *((-0.6, 0.0), (-0.35, 0.0), (-0.15, 0.25), (0.15, 0.25), (0.35, 0.0), (0.6, 0.0)),
    *((0.75, 0.3), (0.55, 0.6), (0.5, 0.95), (0.3, 1.0), (0.3, 0.75), (-0.2, 0.7)),
    *((-0.25, 0.85), (-0.4, 0.85), (-0.45, 0.6), (-0.75, 0.3)),
)
_ENGINE = (
    *((-0.7, 0.0), (-0.35, 0.0), (-0.2, 0.15), (0.2, 0.15), (0.35, 0.0), (0.7, 0.0)),
    *((0.8, 0.35), (0.55, 0.65), (0.45, 1.0), (0.25, 1.0), (0.2, 0.7), (-0.6, 0.75), (-0.8, 0.4)),
)
_PLATE = Detail("white", box(-0.12, 0.28, 0.12, 0.37), "license plate")
_LAMPS = (Detail("red", box(-0.57, 0.4, -0.42, 0.52)), Detail("red", box(0.42, 0.4, 0.57, 0.52)))
_REAR_WINDOW = Detail("dark", ((-0.42, 0.64), (0.42, 0.64), (0.34, 0.9), (-0.34, 0.9)))
_SIDE_WINDOW = Detail("dark", ((-0.85, 0.62), (0.75, 0.62), (0.42, 0.92), (-0.55, 0.92)))
_HEAD = Detail("skin", ((-0.06, 0.86), (0.06, 0.86), (0.05, 0.97), (-0.05, 0.97)))
_TROUSERS = Detail("dark", box(-0.12, 0.0, 0.12, 0.44))
_SPOKES = tuple(Detail("black", box(x - 0.2, 0.05, x + 0.2, 0.45)) for x in (-0.45, 0.45))

CAR = (
    Thing("car", (1.35, 1.8), _REAR, (_REAR_WINDOW, *_LAMPS, _PLATE)),
    Thing("car", (1.35, 1.7), _SIDE, (_SIDE_WINDOW, *_wheels(-0.9, 0.9, size=0.17))),
)
TRUCK = (
    Thing(
        "truck",
        (2.8, 3.8),
        (*box(-0.4, 0.05, 0.4, 1.0),),
        (*_wheels(-0.3, 0.3, size=0.07), *_LAMPS[:0]),
    ),
    Thing(
        "truck",
        (2.6, 3.6),
        ((-1.3, 0.08), (1.2, 0.08), (1.2, 0.5), (1.05, 0.8), (0.75, 0.8), (0.75, 1.0), (-1.3, 1.0)),
        (
            *_wheels(-0.9, 0.9, size=0.1),
            Detail("dark", ((0.85, 0.5), (1.12, 0.5), (1.02, 0.72), (0.85, 0.72))),
        ),
    ),
)
BUS = (
    Thing(
        "bus",
        (2.9, 3.4),
        box(-0.42, 0.05, 0.42, 1.0),
        (Detail("dark", box(-0.36, 0.42, 0.36, 0.88)), *_wheels(-0.32, 0.32, size=0.05)),
    ),
    Thing(
        "bus",
        (2.9, 3.4),
        box(-1.8, 0.08, 1.8, 1.0),
        (*_windows(-1.7, 1.7, 6, 0.48, 0.86), *_wheels(-1.2, 1.2, size=0.11)),
    ),
)
TRAIN = (
    Thing("train", (3.2, 3.8), box(-3.4, 0.06, 3.4, 1.0), _windows(-3.2, 3.2, 10, 0.45, 0.85)),
)
CARAVAN = (
    Thing(
        "caravan",
        (2.3, 2.7),
        ((-0.8, 0.15), (0.8, 0.15), (0.9, 0.6), (0.8, 1.0), (-0.8, 1.0), (-0.9, 0.6)),
        (Detail("dark", box(-0.4, 0.5, 0.4, 0.8)), *_wheels(0.0, size=0.12)),
    ),
)
TRAILER = (Thing("trailer", (1.2, 2.0), box(-0.9, 0.15, 0.9, 1.0), _wheels(0.0, size=0.14)),)
PERSON = (Thing("person", (1.3, 1.95), _BODY, (_HEAD, _TROUSERS)),)
RIDER = (Thing("rider", (1.55, 1.85), _SEATED, (_HEAD,)),)
BICYCLE = (Thing("bicycle", (1.0, 1.15), _BICYCLE, _SPOKES),)
MOTORCYCLE = (Thing("motorcycle", (1.1, 1.4), _ENGINE, _SPOKES),)
LIGHT = Thing(
    "traffic light",
    (0.8, 1.0),
    box(-0.2, 0.0, 0.2, 1.0),
    tuple(
        Detail(name, box(-0.12, y, 0.12, y + 0.24))
        for name, y in (("green", 0.06), ("amber", 0.38), ("red", 0.7))
    ),
)
SIGNS = (
    Thing(
        "traffic sign",
        (0.6, 0.9),
        box(-0.5, 0.0, 0.5, 1.0),
        (Detail("white", box(-0.3, 0.2, 0.3, 0.8)),),
    ),
    Thing(
        "traffic sign",
        (0.6, 0.9),
        ((-0.55, 0.0), (0.55, 0.0), (0.0, 1.0)),
        (Detail("white", ((-0.3, 0.14), (0.3, 0.14), (0.0, 0.7))),),
    ),
    Thing(
        "traffic sign",
        (0.6, 0.9),
        (
            (-0.2, 0.0),
            (0.2, 0.0),
            (0.5, 0.3),
            (0.5, 0.7),
            (0.2, 1.0),
            (-0.2, 1.0),
            (-0.5, 0.7),
            (-0.5, 0.3),
        ),
        (Detail("white", box(-0.34, 0.4, 0.34, 0.6)),),
    ),
)
BIN = (
    Thing(
        "static", (0.9, 1.4), box(-0.3, 0.0, 0.3, 1.0), (Detail("dark", box(-0.3, 0.8, 0.3, 1.0)),)
    ),
)
DOG = (
    Thing(
        "dynamic",
        (0.5, 0.8),
        ((-0.6, 0.0), (-0.45, 0.4), (0.35, 0.4), (0.5, 0.0), (0.6, 0.6), (0.8, 1.0), (-0.6, 0.7)),
    ),
)
