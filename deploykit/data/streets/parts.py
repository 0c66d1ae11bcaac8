"""What a made-up street consists of: polygons with a label, a colour and a texture.

A point X metres to the right of the camera, Y above the ground and Z ahead is seen at

    x = middle + focal * X / Z,   y = horizon + focal * (EYE - Y) / Z.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    Colour = tuple[float, float, float]
    Corners = tuple[tuple[int, int], ...]

EYE = 1.3
NEAREST, FARTHEST = 3.0, 90.0
"""Metres ahead: the ground begins below the image and ends at the horizon."""


class Part(NamedTuple):
    """A polygon with what it looks like."""

    label: str
    """Of Cityscapes, perhaps with `group` behind it; PAINTED: it is no part of the truth."""
    corners: Corners
    """x and y of pixels."""
    colour: Colour
    texture: str
    """A key of `street_painting.TEXTURES`."""
    grain: float
    """How much of the texture is seen, 0 to 1."""


@dataclass
class Scene:
    """A street of one size, and how it is seen."""

    height: int
    width: int
    horizon: float
    middle: float
    parts: list[Part] = field(default_factory=list)

    def project(self, points: Sequence[tuple[float, float, float]]) -> Corners:
        """Return the pixels of points X, Y, Z in metres."""
        focal = float(self.width)
        return tuple(
            (round(self.middle + focal * x / z), round(self.horizon + focal * (EYE - y) / z))
            for x, y, z in points
        )


def within(part: Part, height: int, width: int) -> Part | None:
    """Return what of a part lies in an image, its border included; None where nothing does."""
    xs, ys = zip(*part.corners, strict=True)
    if min(xs) >= 0 and min(ys) >= 0 and max(xs) < width and max(ys) < height:
        return part
    corners = [(float(x), float(y)) for x, y in part.corners]
    for axis, limit, sign in ((0, 0, 1), (0, width - 1, -1), (1, 0, 1), (1, height - 1, -1)):
        corners = _cut(corners, axis, float(limit), sign)
    kept = tuple(dict.fromkeys((round(x), round(y)) for x, y in corners))
    return part._replace(corners=kept) if len(kept) > 2 else None


def _cut(
    corners: Sequence[tuple[float, float]], axis: int, limit: float, sign: int
) -> list[tuple[float, float]]:
    """Return the part of a polygon on one side of a line along an axis.

    Source: Sutherland and Hodgman 1974.
    """
    found = []
    for last, here in zip([*corners[-1:], *corners[:-1]], corners, strict=True):
        before, behind = (sign * (point[axis] - limit) for point in (last, here))
        if (before < 0) != (behind < 0):
            share = before / (before - behind)
            x, y = (a + share * (b - a) for a, b in zip(last, here, strict=True))
            found.append((x, y))
        if behind >= 0:
            found.append(here)
    return found


class Street(NamedTuple):
    """Metres to the right of the camera at which the parts of a street begin."""

    left: float
    right: float
    """Of the road."""
    path: float
    """Width of the sidewalks."""
    setback: float
    """From the sidewalk to the houses."""


def alike(rng: np.random.Generator, colour: Colour, spread: float = 18.0) -> Colour:
    """Return a colour like another one."""
    red, green, blue = (np.array(colour) + rng.normal(0.0, spread, 3)).clip(0, 255).tolist()
    return red, green, blue


def any_colour(rng: np.random.Generator) -> Colour:
    """Return some colour."""
    red, green, blue = rng.uniform(20.0, 235.0, 3).tolist()
    return red, green, blue


LOOKS: dict[str, tuple[Colour, str, float]] = {
    "road": ((98, 98, 102), "gravel", 0.3),
    "sidewalk": ((160, 150, 150), "gravel", 0.45),
    "parking": ((125, 120, 118), "gravel", 0.4),
    "ground": ((130, 122, 112), "gravel", 0.6),
    "rail track": ((110, 95, 85), "brick", 0.5),
    "terrain": ((115, 140, 75), "grass", 0.6),
    "building": ((150, 125, 110), "brick", 0.5),
    "wall": ((140, 138, 132), "brick", 0.7),
    "fence": ((95, 85, 70), "photo", 0.6),
    "guard rail": ((175, 178, 180), "soft", 0.3),
    "bridge": ((125, 122, 118), "gravel", 0.3),
    "tunnel": ((60, 58, 56), "gravel", 0.3),
    "vegetation": ((62, 96, 45), "grass", 0.95),
    "pole": ((120, 120, 122), "soft", 0.15),
}
"""Label -> colour, texture and grain."""


def look(rng: np.random.Generator, label: str, corners: Corners) -> Part:
    """Return a part that looks as its label does in most streets."""
    colour, texture, grain = LOOKS[label]
    return Part(label, corners, alike(rng, colour), texture, grain * rng.uniform(0.6, 1.0))
