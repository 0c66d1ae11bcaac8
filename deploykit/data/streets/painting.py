"""Made-up streets as pictures: each pixel from the part that covers it, by tables of the parts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Pixels
    from deploykit.data.streets.parts import Scene

SIDE = 256
"""Pixels of a texture, which repeats."""
_SMOOTH = (0.35, 0.8)
"""Pixels: how far a camera blurs."""
_NOISE = 7.0


@dataclass(frozen=True)
class Textures:
    """Grey pictures of surfaces."""

    names: Mapping[str, tuple[int, ...]]
    """What a part asks for -> those that serve, as places in `tiles`."""
    tiles: NDArray[np.float32]
    """float32[N, SIDE, SIDE], -0.5 to 0.5."""


def paint(rng: np.random.Generator, scene: Scene, textures: Textures) -> Pixels:
    """Return the picture of a scene, uint8[height, width, 3], RGB."""
    owners = _owners(scene)
    colours, shades, grains = _tables(rng, scene)
    light = _light(rng, scene)[owners, np.arange(scene.height)[:, None]]
    light += grains[owners] * _grain(rng, scene, textures, owners)
    left, right = rng.uniform(0.85, 1.1, 2).tolist()
    light *= np.linspace(left, right, scene.width, dtype=np.float32)
    picture = colours[owners]
    picture *= light[..., None]
    picture += shades
    noise = int(rng.uniform(1.0, _NOISE))
    picture += rng.integers(-noise, noise, picture.shape, np.int8, endpoint=True)
    pixels = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    return np.asarray(pixels.filter(ImageFilter.GaussianBlur(rng.uniform(*_SMOOTH))))


def _owners(scene: Scene) -> NDArray[np.int32]:
    """Return which part covers each pixel, int32[height, width]."""
    drawn = Image.new("I", (scene.width, scene.height), 0)
    pen = ImageDraw.Draw(drawn)
    for number, part in enumerate(scene.parts):
        pen.polygon(part.corners, fill=number)
    return np.asarray(drawn)


def _tables(rng: np.random.Generator, scene: Scene) -> tuple[Floats, Floats, Floats]:
    """Return the colour of each part, [N, 3], a tint of the whole, [3], and its grain, [N]."""
    colours = np.array([part.colour for part in scene.parts], np.float32)
    grains = np.array([part.grain for part in scene.parts], np.float32)
    return colours, rng.uniform(-12.0, 12.0, 3).astype(np.float32), grains


def _light(rng: np.random.Generator, scene: Scene) -> Floats:
    """Return how bright each part is in each row, float32[N, height]: lighter above."""
    rows = np.arange(scene.height, dtype=np.float32)
    ends = np.array([(min(ys), max(ys)) for ys in _rows(scene)], np.float32)
    share = (rows - ends[:, :1]) / np.maximum(ends[:, 1:] - ends[:, :1], 1)
    above, below = rng.uniform(0.95, 1.2, (len(ends), 1)), rng.uniform(0.75, 1.0, (len(ends), 1))
    light: Floats = (above + (below - above) * share.clip(0, 1)).astype(np.float32)
    return light


def _rows(scene: Scene) -> list[list[int]]:
    return [[y for _, y in part.corners] for part in scene.parts]


def _grain(
    rng: np.random.Generator, scene: Scene, textures: Textures, owners: NDArray[np.int32]
) -> Floats:
    """Return the texture at each pixel, float32[height, width]: each part has its own place."""
    count = len(scene.parts)
    serving = [textures.names[part.texture] for part in scene.parts]
    picks = rng.random(count)
    tiles = np.array([s[int(p * len(s))] for s, p in zip(serving, picks.tolist(), strict=True)])
    shifts = rng.integers(0, SIDE, (count, 2))
    start = (tiles * SIDE * SIDE)[owners]
    rows = (shifts[:, 0][owners] + np.arange(scene.height)[:, None]) % SIDE
    columns = (shifts[:, 1][owners] + np.arange(scene.width)) % SIDE
    found: Floats = textures.tiles.reshape(-1)[start + rows * SIDE + columns]
    return found
