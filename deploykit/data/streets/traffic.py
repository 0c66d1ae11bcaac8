"""What stands and moves in a made-up street, before its houses."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from deploykit.data.drawing import choice
from deploykit.data.streets import outlines
from deploykit.data.streets.outlines import COLOURS, PAINTED
from deploykit.data.streets.parts import Part, alike, any_colour, look

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.data.streets.outlines import Thing
    from deploykit.data.streets.parts import Scene, Street

_GROUP = "group"


class _Draw(Protocol):
    """Adds something to a scene, at X and Z metres."""

    def __call__(self, rng: np.random.Generator, scene: Scene, x: float, z: float, /) -> None: ...


class Placed(NamedTuple):
    """Something at a place."""

    z: float
    x: float
    draw: _Draw


def placed(rng: np.random.Generator, street: Street) -> list[Placed]:
    """Return what stands and moves in a street, the farthest first."""
    found = [*_standing(rng, street), *_vehicles(rng, street), *_people(rng, street)]
    return sorted(found, key=lambda each: -each.z)


def _depth(rng: np.random.Generator, nearest: float = 6.0, farthest: float = 55.0) -> float:
    """Return metres ahead, as many near as far in the image."""
    return nearest * float((farthest / nearest) ** rng.random())


def _upto(rng: np.random.Generator, most: int) -> range:
    return range(int(rng.random() * (most + 1)))


def _beside(rng: np.random.Generator, street: Street, low: float = 0.1, high: float = 0.9) -> float:
    """Return a place beside the road, at a share of the sidewalk's width."""
    out = street.path * rng.uniform(low, high)
    return choice(rng, (street.left - out, street.right + out))


def _standing(rng: np.random.Generator, street: Street) -> list[Placed]:
    """Return poles, trees and things that are not scored."""
    found = [
        Placed(_depth(rng, 7.0), _beside(rng, street, 0.05, 0.3), _pole) for _ in _upto(rng, 6)
    ]
    found += [
        Placed(_depth(rng, 9.0), _beside(rng, street, 0.7, 2.5), _tree) for _ in _upto(rng, 6)
    ]
    kinds = (outlines.BIN, outlines.DOG)
    for _ in _upto(rng, 2):
        draw = partial(_thing, kinds=choice(rng, kinds))
        found.append(Placed(_depth(rng), _beside(rng, street), draw))
    return found


def _vehicles(rng: np.random.Generator, street: Street) -> list[Placed]:
    """Return parked and moving vehicles; a few of them cannot be told apart."""
    found = []
    for _ in _upto(rng, 7):
        parked = choice(rng, (street.left + 0.9, street.right - 0.9))
        x = parked if rng.random() < 0.6 else rng.uniform(street.left + 1.5, street.right - 1.5)
        found.append(Placed(_depth(rng, 7.0), x, partial(_thing, kinds=outlines.CAR)))
    for kinds, share in _RARE:
        if rng.random() < share:
            x = rng.uniform(street.left, street.right)
            found.append(Placed(_depth(rng, 13.0), x, partial(_thing, kinds=kinds)))
    if rng.random() < 0.2:
        x = choice(rng, (street.left + 1.0, street.right - 1.0))
        group = partial(_crowd, thing=outlines.CAR[0])
        found.append(Placed(_depth(rng, 30.0, 60.0), x, group))
    return found


_RARE = (
    (outlines.TRUCK, 0.3),
    (outlines.BUS, 0.25),
    (outlines.TRAIN, 0.12),
    (outlines.CARAVAN, 0.06),
    (outlines.TRAILER, 0.06),
)
"""Vehicles, and the share of scenes with one."""


def _people(rng: np.random.Generator, street: Street) -> list[Placed]:
    """Return people on foot and on two wheels, and what they parked."""
    found = []
    for _ in _upto(rng, 7):
        x = _beside(rng, street) if rng.random() < 0.8 else rng.uniform(street.left, street.right)
        found.append(Placed(_depth(rng, 5.0), x, partial(_thing, kinds=outlines.PERSON)))
    for _ in _upto(rng, 3):
        x = rng.uniform(street.left, street.right)
        found.append(Placed(_depth(rng), x, _ridden))
    for _ in _upto(rng, 2):
        draw = partial(_thing, kinds=choice(rng, (outlines.BICYCLE, outlines.MOTORCYCLE)))
        found.append(Placed(_depth(rng), _beside(rng, street), draw))
    for thing in (outlines.PERSON[0], outlines.BICYCLE[0]):
        if rng.random() < 0.15:
            draw = partial(_crowd, thing=thing)
            found.append(Placed(_depth(rng, 18.0, 40.0), _beside(rng, street), draw))
    return found


def _thing(
    rng: np.random.Generator, scene: Scene, x: float, z: float, *, kinds: Sequence[Thing]
) -> None:
    """Add one of some things, on the ground, with its shadow."""
    thing = choice(rng, kinds)
    shadow = max(abs(corner) for corner, _ in thing.outline) * thing.metres[1] * 1.05
    ground = [(x - shadow, 0.0, z + 0.9), (x + shadow, 0.0, z + 0.9), (x + shadow, 0.0, z - 0.3)]
    corners = scene.project([*ground, (x - shadow, 0.0, z - 0.3)])
    scene.parts.append(Part(PAINTED, corners, alike(rng, (52.0, 52.0, 54.0), 4.0), "gravel", 0.2))
    _upright(rng, scene, thing, (x, 0.0, z))


def _upright(
    rng: np.random.Generator, scene: Scene, thing: Thing, place: tuple[float, float, float]
) -> None:
    """Add a thing that stands X, Y, Z metres away, with its details."""
    x, y, z = place
    size, turned = rng.uniform(*thing.metres), choice(rng, (1, -1))
    own = any_colour(rng)
    rows = [(thing.label, thing.outline, own)]
    rows += [(d.label, d.outline, alike(rng, COLOURS[d.colour], 9.0)) for d in thing.details]
    for label, outline, colour in rows:
        points = [(x + turned * size * a, y + size * b, z) for a, b in outline]
        grain = rng.uniform(0.05, 0.35)
        scene.parts.append(Part(label, scene.project(points), colour, "photo", grain))


def _ridden(rng: np.random.Generator, scene: Scene, x: float, z: float) -> None:
    """Add a rider with what is ridden before it."""
    wheels = outlines.BICYCLE if rng.random() < 0.7 else outlines.MOTORCYCLE
    _upright(rng, scene, outlines.RIDER[0], (x, rng.uniform(0.15, 0.3), z))
    _upright(rng, scene, wheels[0], (x, 0.0, z))


def _crowd(rng: np.random.Generator, scene: Scene, x: float, z: float, *, thing: Thing) -> None:
    """Add things that cannot be told apart: one polygon around them, then each painted on it."""
    size, count = thing.metres[1], 3 + int(rng.random() * 4)
    wide = max(abs(corner) for corner, _ in thing.outline) * size
    places = [x + wide * (i - count / 2) * rng.uniform(0.9, 1.2) for i in range(count)]
    around = [(places[0] - wide, 0.0, z), (places[0] - wide, size * 0.9, z)]
    around += [(place, size * rng.uniform(0.9, 1.05), z) for place in places]
    around += [(places[-1] + wide, size * 0.9, z), (places[-1] + wide, 0.0, z)]
    label = thing.label + _GROUP
    scene.parts.append(
        Part(label, scene.project(around), alike(rng, (70.0, 70.0, 75.0)), "photo", 0.6)
    )
    for place in places:
        _upright(rng, scene, thing._replace(label=PAINTED, details=()), (place, 0.0, z))


def _pole(rng: np.random.Generator, scene: Scene, x: float, z: float) -> None:
    """Add a pole, with a sign or a light on most."""
    high, half = rng.uniform(3.0, 7.0), rng.uniform(0.05, 0.11)
    label = "pole" if rng.random() < 0.95 else "polegroup"
    feet = [(x - half, 0.0, z), (x + half, 0.0, z), (x + half, high, z), (x - half, high, z)]
    scene.parts.append(look(rng, "pole", scene.project(feet))._replace(label=label))
    kind = rng.random()
    if kind < 0.35:
        _upright(rng, scene, outlines.LIGHT, (x, min(high, 3.2) - 0.6, z - 0.05))
    elif kind < 0.8:
        _upright(rng, scene, choice(rng, outlines.SIGNS), (x, min(high, 3.0) - 0.5, z - 0.05))


def _tree(rng: np.random.Generator, scene: Scene, x: float, z: float) -> None:
    """Add a trunk and a crown; both are vegetation."""
    trunk, crown = rng.uniform(1.5, 3.0), rng.uniform(1.0, 2.6)
    feet = [(x - 0.15, 0.0, z), (x + 0.15, 0.0, z), (x + 0.15, trunk, z), (x - 0.15, trunk, z)]
    wood = Part("vegetation", scene.project(feet), alike(rng, (85.0, 68.0, 52.0)), "grass", 0.5)
    scene.parts.append(wood)
    angles = np.arange(16) * (math.tau / 16)
    radii = crown * rng.uniform(0.7, 1.15, 16)
    xs, ys = x + radii * np.cos(angles), trunk + crown + radii * np.sin(angles)
    leaves = [(a, b, z) for a, b in zip(xs.tolist(), ys.tolist(), strict=True)]
    scene.parts.append(look(rng, "vegetation", scene.project(leaves)))


def frame(rng: np.random.Generator, scene: Scene) -> None:
    """Add what belongs to the camera: the bonnet, and borders that do not count."""
    height, width = scene.height, scene.width
    if rng.random() < 0.6:
        top, low = height - round(height * rng.uniform(0.03, 0.09)), height - 1
        bonnet = ((0, low), (width // 5, top), (width - width // 5, top), (width - 1, low))
        colour = alike(rng, (60.0, 62.0, 66.0))
        scene.parts.append(Part("ego vehicle", bonnet, colour, "soft", 0.3))
    if rng.random() < 0.5:
        label = choice(rng, ("out of roi", "rectification border"))
        rim = max(1, round(width * 0.01))
        for x in (0, width - rim):
            edge = ((x, 0), (x + rim - 1, 0), (x + rim - 1, height - 1), (x, height - 1))
            scene.parts.append(Part(label, edge, COLOURS["black"], "soft", 0.1))
