"""The whole of a made-up street: sky, ground, houses, and what stands or moves before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.data.drawing import choice
from deploykit.data.streets import traffic
from deploykit.data.streets.outlines import COLOURS, PAINTED
from deploykit.data.streets.parts import (
    FARTHEST,
    LOOKS,
    NEAREST,
    Part,
    Scene,
    Street,
    alike,
    look,
    within,
)

if TYPE_CHECKING:
    from deploykit.data.streets.parts import Corners


def compose(rng: np.random.Generator, height: int, width: int) -> Scene:
    """Return a street with houses, vehicles and people; some classes are in it, some are not."""
    scene = Scene(height, width, height * rng.uniform(0.38, 0.5), width * rng.uniform(0.4, 0.6))
    road = rng.uniform(6.0, 11.0)
    left = -rng.uniform(0.25, 0.6) * road
    street = Street(left, left + road, rng.uniform(1.5, 4.0), rng.uniform(0.0, 5.0))
    _sky(rng, scene)
    _ground(rng, scene, street)
    for side in (-1, 1):
        _houses(rng, scene, street, side)
    for z, x, draw in traffic.placed(rng, street):
        draw(rng, scene, x, z)
    traffic.frame(rng, scene)
    seen = (within(part, height, width) for part in scene.parts)
    scene.parts = [part for part in seen if part is not None]
    return scene


def _sky(rng: np.random.Generator, scene: Scene) -> None:
    width, low = scene.width, round(scene.horizon) + 2
    colour = alike(rng, choice(rng, ((150, 190, 235), (205, 210, 215), (235, 225, 205))))
    whole = ((0, 0), (width, 0), (width, low), (0, low))
    scene.parts.append(Part("sky", whole, colour, "soft", 0.25))
    far = choice(rng, ("vegetation", "building", "terrain"))
    xs = np.linspace(0, width, 13)
    tops = scene.horizon - scene.height * rng.uniform(0.01, 0.09, len(xs))
    line = [(round(x), round(y)) for x, y in zip(xs.tolist(), tops.tolist(), strict=True)]
    colour = alike(rng, LOOKS[far][0])
    texture, grain = LOOKS[far][1:]
    scene.parts.append(Part(far, (*line, (width, low), (0, low)), colour, texture, grain))


def _strip(scene: Scene, left: float, right: float) -> Corners:
    """Return the ground between two distances to the right."""
    return scene.project(
        [(left, 0, NEAREST), (right, 0, NEAREST), (right, 0, FARTHEST), (left, 0, FARTHEST)]
    )


def _ground(rng: np.random.Generator, scene: Scene, street: Street) -> None:
    beside = choice(rng, ("terrain", "terrain", "ground", "parking", "sidewalk"))
    scene.parts.append(look(rng, beside, _strip(scene, -200.0, 200.0)))
    edges = (street.left - street.path, street.right + street.path)
    scene.parts.append(look(rng, "sidewalk", _strip(scene, *edges)))
    scene.parts.append(look(rng, "road", _strip(scene, street.left, street.right)))
    if rng.random() < 0.1:
        at = rng.uniform(street.left + 0.5, street.right - 2.0)
        scene.parts.append(look(rng, "rail track", _strip(scene, at, at + 1.5)))
    middle = (street.left + street.right) / 2
    for z in range(6, 40, 6):
        mark = [(middle - 0.08, 0, z), (middle + 0.08, 0, z), (middle + 0.08, 0, z + 3)]
        corners = scene.project([*mark, (middle - 0.08, 0, z + 3)])
        scene.parts.append(Part(PAINTED, corners, COLOURS["white"], "gravel", 0.3))


def _houses(rng: np.random.Generator, scene: Scene, street: Street, side: int) -> None:
    """Add the walls along one side of the street, from far to near."""
    edge = street.left - street.path if side < 0 else street.right + street.path
    x, far = edge + side * street.setback, FARTHEST
    while far > NEAREST + 1.0:
        near = max(NEAREST, far - rng.uniform(5.0, 22.0) * (0.4 + far / FARTHEST))
        label = choice(rng, _WALLS)
        high = {"wall": 2.5, "fence": 1.6, "guard rail": 0.9}.get(label, 0.0)
        high = high * rng.uniform(0.7, 1.3) if high else rng.uniform(5.0, 18.0)
        if label == "vegetation":
            high *= 0.5
        if label != "gap":
            wall = [(x, 0.0, near), (x, high, near), (x, high, far), (x, 0.0, far)]
            scene.parts.append(look(rng, label, scene.project(wall)))
        if label == "building":
            _windows(rng, scene, (x, high), (near, far))
        far = near


_WALLS = (
    *("building",) * 6,
    "vegetation",
    "wall",
    "fence",
    "gap",
    "guard rail",
    "bridge",
    "tunnel",
)


def _windows(
    rng: np.random.Generator, scene: Scene, wall: tuple[float, float], span: tuple[float, float]
) -> None:
    """Add windows to a house."""
    x, high = wall
    rows, columns = min(4, int(high / 3)), min(4, int((span[1] - span[0]) / 3))
    colour = alike(rng, COLOURS["dark"])
    depth, storey = (span[1] - span[0]) / max(columns, 1), high / max(rows, 1)
    for row in range(rows):
        for column in range(columns):
            near, far = (span[0] + depth * (column + share) for share in (0.25, 0.75))
            low, top = (storey * (row + share) for share in (0.35, 0.8))
            corners = scene.project([(x, low, near), (x, top, near), (x, top, far), (x, low, far)])
            scene.parts.append(Part(PAINTED, corners, colour, "soft", 0.3))
