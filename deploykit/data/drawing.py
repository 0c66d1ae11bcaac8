"""Draw lit, textured polygons on photographs, with exact masks of what stays visible.

Generated data sets share this module; each decides itself what is drawn where. Random numbers come
from the generator that is passed in, always in the same order.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Pixels

    Mask: TypeAlias = NDArray[np.bool_]
    Points: TypeAlias = NDArray[np.float64]

Region: TypeAlias = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels; x2 and y2 are exclusive."""
T = TypeVar("T")
V = TypeVar("V", bound=np.generic)

_SUPERSAMPLING = 3
_HALF_COVERED = 127
_RIM = 3
"""Pixels around a shape that its soft edge may reach."""
_MARGIN = 16
"""Pixels of canvas beyond the image on each side, so that shadows need no clipping."""
_GROUNDS, _SOFT, _BLURRED = 0.25, 0.5, 0.3
"""Shares: images with a texture as background, shapes with soft edges, blurred images."""
_TOO_ALIKE = 70
"""Grey levels by which a shape differs at least from what lies behind it, in one channel."""
_NOISE = 12.0
_CHANNELS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True)
class Materials:
    """Pictures to draw with."""

    photos: tuple[Image.Image, ...]
    grounds: tuple[Image.Image, ...]
    """Backgrounds of ground and walls, used more rarely."""
    textures: tuple[Floats, ...]
    """float32[H, W], 0 to 1: the grain of surfaces."""


@dataclass(frozen=True)
class Shape:
    """A polygon, perhaps with a hole, placed in an image."""

    outlines: tuple[Points, ...]
    """The outside, then the hole: float64[N, 2], x and y in pixels, also beyond the image."""
    region: Region
    """The part of the image that the shape can touch."""
    cover: NDArray[np.uint8]
    """Anti-aliased: uint8[y2 - y1, x2 - x1], 255 inside."""

    @property
    def area(self) -> float:
        """Return the area in pixels, beyond the image's border too."""
        outside, *holes = (_area(polygon) for polygon in self.outlines)
        return outside - sum(holes)


def choice(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Return one of `items`, each as likely."""
    return items[int(rng.random() * len(items))]


def rotation(angle: float) -> Points:
    """Return the matrix that turns a column vector by `angle` (radians)."""
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


def polygon(corners: int, *radii: float) -> Points:
    """Return points at equal angles, float64[corners, 2]; `radii` are their distances in turn."""
    angles = np.arange(corners) * (math.tau / corners)
    distance = np.resize(radii, corners)
    return np.stack([np.cos(angles) * distance, np.sin(angles) * distance], axis=1)


@functools.cache
def outlines() -> dict[str, tuple[Points, ...]]:
    """Return per kind the polygons (float64[N, 2], within the unit circle): outside, hole."""
    arm, long = 0.3, 0.95
    quarter = np.array([[long, arm], [arm, arm], [arm, long]])
    turns = [rotation(turn * math.pi / 2) for turn in range(4)]
    return {
        "circle": (polygon(48, 1.0),),
        "square": (polygon(4, 1.0),),
        "triangle": (polygon(3, 1.0),),
        "star": (polygon(10, 1.0, 0.42),),
        "cross": (np.concatenate([quarter @ turn.T for turn in turns]),),
        "ring": (polygon(48, 1.0), polygon(48, 0.58)),
        "bar": (np.array([[-1, -0.015], [1, -0.015], [1, 0.015], [-1, 0.015]]),),
    }


def _area(points: Points) -> float:
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def rasterised(outlines: tuple[Points, ...], height: int, width: int) -> Shape:
    """Return the shape with these outlines in an image of the given size."""
    limit = np.array([width, height])
    x1, y1 = np.clip(np.floor(outlines[0].min(0)) - _RIM, 0, limit).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(outlines[0].max(0)) + _RIM, 0, limit).astype(int).tolist()
    large = Image.new("L", ((x2 - x1) * _SUPERSAMPLING, (y2 - y1) * _SUPERSAMPLING))
    draw = ImageDraw.Draw(large)
    for points, fill in zip(outlines, (255, 0), strict=False):
        corners = (points - (x1, y1)) * _SUPERSAMPLING - 0.5  # a pixel's centre lies at .5
        draw.polygon(corners.ravel().tolist(), fill=fill)
    return Shape(outlines, (x1, y1, x2, y2), np.asarray(large.reduce(_SUPERSAMPLING)))


def visible(shapes: Sequence[Shape], height: int, width: int) -> list[Mask]:
    """Return which pixels of its region each shape owns; later shapes cover earlier ones."""
    owners = np.zeros((height, width), np.uint16)
    for number, shape in enumerate(shapes, start=1):
        _window(owners, shape.region)[shape.cover > _HALF_COVERED] = number
    return [_window(owners, s.region) == number for number, s in enumerate(shapes, start=1)]


def tight(region: Region, mask: Mask) -> tuple[Region, Mask]:
    """Return the smallest region that holds every set pixel of a mask, and the mask there."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = (int(i) for i in (rows[0], rows[-1], columns[0], columns[-1]))
    box = (region[0] + left, region[1] + top, region[0] + right + 1, region[1] + bottom + 1)
    return box, mask[top : bottom + 1, left : right + 1]


def run_lengths(region: Region, mask: Mask, height: int, width: int) -> list[int]:
    """Return COCO's uncompressed run lengths of a mask, down the image's columns."""
    x1, y1, x2, y2 = region
    columns = np.zeros((width, height), np.bool_)
    columns[x1:x2, y1:y2] = mask.T
    flat = columns.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs: list[int] = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


def paint(
    rng: np.random.Generator,
    shapes: Sequence[Shape],
    materials: Materials,
    height: int,
    width: int,
) -> Pixels:
    """Return the picture uint8[height, width, 3]: background, shapes, light, noise, blur."""
    canvas = _background(rng, materials, height + 2 * _MARGIN, width + 2 * _MARGIN)
    for shape in shapes:
        _paint_shape(rng, canvas, shape, materials)
    canvas *= _light(rng, canvas.shape[:2], 0.75, 1.2)
    picture = canvas[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    noise = int(rng.uniform(0.0, _NOISE))
    picture += rng.integers(-noise, noise, picture.shape, np.int8, endpoint=True)
    pixels: Pixels = np.clip(picture, 0, 255).astype(np.uint8)
    if rng.random() < _BLURRED:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1))
        pixels = np.asarray(Image.fromarray(pixels).filter(blur))
    return pixels


def _background(rng: np.random.Generator, materials: Materials, height: int, width: int) -> Floats:
    """Return a random crop of a picture, recoloured: float32[height, width, 3], 0 to 280."""
    use_ground = rng.random() < _GROUNDS
    photo = choice(rng, materials.grounds if use_ground else materials.photos)
    fit = min(photo.width / width, photo.height / height) * rng.uniform(0.35, 1.0)
    w, h = width * fit, height * fit
    x, y = rng.uniform() * (photo.width - w), rng.uniform() * (photo.height - h)
    crop = photo.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    pixels = np.asarray(crop)[:, :: choice(rng, (1, -1))]
    tint = rng.uniform(0.75, 1.1, 3).astype(np.float32)
    recoloured: Floats = pixels[..., list(choice(rng, _CHANNELS))] * tint
    return recoloured


def _paint_shape(
    rng: np.random.Generator, canvas: Floats, shape: Shape, materials: Materials
) -> None:
    """Darken the shape's shadow on the canvas, then blend the shape in."""
    cover = shape.cover
    if rng.random() < _SOFT:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.5, 1.2))
        cover = np.asarray(Image.fromarray(cover).filter(blur))
    alpha = cover.astype(np.float32)[..., None] / 255
    shift_x, shift_y = (int(rng.uniform(-0.6, 1.0) * _MARGIN * 0.6) for _ in range(2))
    x1, y1, x2, y2 = shape.region
    shadow = (x1 + shift_x, y1 + shift_y, x2 + shift_x, y2 + shift_y)
    _window(canvas, shadow, _MARGIN)[:] *= 1 - alpha * np.float32(rng.uniform(0.0, 0.5))
    target = _window(canvas, shape.region, _MARGIN)
    target += (_surface(rng, target, materials.textures) - target) * alpha


def _surface(rng: np.random.Generator, target: Floats, textures: Sequence[Floats]) -> Floats:
    """Return a lit, textured surface, float32 of the shape of `target`, that differs from it."""
    height, width = target.shape[:2]
    first, second = rng.uniform(0.0, 255.0, (2, 3)).astype(np.float32)
    if np.abs(first - target.mean((0, 1))).max() < _TOO_ALIKE:
        first = 255 - first
    texture = choice(rng, textures)
    rows = (np.arange(height) + int(rng.random() * 512)) % texture.shape[0]
    columns = (np.arange(width) + int(rng.random() * 512)) % texture.shape[1]
    grain = texture[np.ix_(rows, columns)][..., None] * np.float32(rng.uniform(0.1, 1.0))
    surface: Floats = (first + (second - first) * grain) * _light(rng, (height, width), 0.65, 1.25)
    return surface


def _light(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Floats:
    """Return a linear ramp of brightness in a random direction, float32[height, width, 1]."""
    height, width = shape
    left, right, top, bottom = np.sqrt(rng.uniform(low, high, 4)).astype(np.float32)
    across = np.linspace(left, right, width, dtype=np.float32)
    light: Floats = (np.linspace(top, bottom, height, dtype=np.float32)[:, None] * across)[
        ..., None
    ]
    return light


def _window(array: NDArray[V], region: Region, offset: int = 0) -> NDArray[V]:
    x1, y1, x2, y2 = region
    return array[y1 + offset : y2 + offset, x1 + offset : x2 + offset]
