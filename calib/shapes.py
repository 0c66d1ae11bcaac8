"""Generated images with known objects: six kinds of shape pasted on real photographs.

No download: the photographs and textures come with the scikit-image package. Every image follows
from (split, seed, index) alone, so a data set is a range of indices and can be endless.
`train` and `val` share neither random streams nor photographs, and use two halves of each texture.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from deploykit.errors import DataError, OptionError, unknown_name
from deploykit.recipe import Dataset, Sample, Source

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deploykit.recipe import Floats, Pixels
    from deploykit.values import Json

Points: TypeAlias = "NDArray[np.float64]"
Split: TypeAlias = Literal["train", "val"]
Region: TypeAlias = tuple[int, int, int, int]
T = TypeVar("T")
V = TypeVar("V", bound=np.generic)

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
_BAR = "bar"  # covers other shapes, is itself no object

_STREAMS: dict[Split, int] = {"train": 0, "val": 1}
_PHOTOS: dict[Split, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "coffee.png",
        "motorcycle_left.png",
        "ihc.png",
        "retina.jpg",
        "camera.png",
        "moon.png",
    ),
    "val": ("chelsea.png", "rocket.jpg", "hubble_deep_field.jpg"),
}
_TEXTURES = ("brick.png", "grass.png", "gravel.png")

_REFERENCE_SIZE = 320  # lengths below are pixels at this size and grow with it
_SIDES = (22.0, 160.0)
_MOST_SHAPES = 8
_LEAST_VISIBLE = 0.25  # of the whole shape; less is painted but not in the truth
_LEAST_PIXELS = 60
_LEANING = 0.35  # share of shapes placed on or beside another
_BARRED = 0.3  # share of images with a bar
_SUPERSAMPLING = 3
_HALF = 127
_GROUNDS = 0.25  # share of images whose background is a texture
_SOFT = 0.5  # share of shapes with soft edges
_BLURRED = 0.3  # share of blurred images
_TOO_ALIKE = 70  # grey levels between a shape and what lies behind it
_CHANNELS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
_MARGIN = 16  # canvas beyond the image on each side, so that shadows need no clipping
_LONGEST_PHOTO = 768


@dataclass(frozen=True)
class Spec:
    """What `shapes:` may be told; `shapes:seed=1,count=500,size=320,split=val` is the default."""

    seed: int = 1
    count: int = 500
    size: int = _REFERENCE_SIZE
    split: Split = "val"


_LIMITS = {"seed": (0, 2**31 - 1), "count": (1, 1_000_000), "size": (64, 2048)}


@dataclass(frozen=True)
class Instance:
    """One object: its class, the box of its visible part, and which pixels of the box it owns."""

    category: int
    """Index into CLASSES."""
    box: tuple[int, int, int, int]
    """x1, y1, x2, y2 in pixels; x2 and y2 are exclusive."""
    mask: NDArray[np.bool_]
    """bool[y2 - y1, x2 - x1]."""


@dataclass(frozen=True)
class _Shape:
    """A placed shape; `outlines` are polygons in image pixels, the second one is a hole."""

    kind: str
    outlines: tuple[Points, ...]
    region: Region  # x1, y1, x2, y2 inside the image
    cover: NDArray[np.uint8]  # anti-aliased, uint8[y2 - y1, x2 - x1]

    @property
    def area(self) -> float:
        """Return the area in pixels, beyond the image's border too."""
        outer, *holes = map(_area, self.outlines)
        return outer - sum(holes)


def parse(text: str) -> Spec:
    """Return the spec that `text` (`key=value,...`) describes. Raises: OptionError."""
    pairs = [part.strip().partition("=") for part in text.split(",")] if text.strip() else []
    keys = [key.strip() for key, _, _ in pairs]
    for key in keys:
        if key not in Spec.__dataclass_fields__:
            raise unknown_name("option of shapes", key, Spec.__dataclass_fields__)
        if keys.count(key) > 1:
            raise OptionError(f"shapes: {key} is given twice", fix=f"keep one {key}=...")
    values = {key: value.strip() for key, (_, _, value) in zip(keys, pairs, strict=True)}
    split = values.pop("split", "val")
    if split not in _STREAMS:
        raise unknown_name("split of shapes", split, _STREAMS)
    numbers = {key: _number(key, value) for key, value in values.items()}
    return replace(Spec(split=cast(Split, split)), **numbers)


def _number(key: str, value: str) -> int:
    low, high = _LIMITS[key]
    number = int(value) if re.fullmatch(r"[0-9]{1,12}", value) else -1
    if not low <= number <= high:
        raise OptionError(f"shapes: {key}={value!r}", expected=f"an integer from {low} to {high}")
    return number


def render(
    split: Split, seed: int, index: int, size: int = _REFERENCE_SIZE
) -> tuple[Pixels, tuple[Instance, ...]]:
    """Return image `index` of a split, uint8[H, W, 3], and its objects, the rearmost first.

    H and W lie between 0.75 and 1.25 times `size`. Raises: DataError without scikit-image.
    """
    (height, width), shapes = _layout(split, seed, index, size)
    rng = _generator(split, seed, index, "appearance")
    pixels = _paint(rng, (height, width), shapes, split)
    return pixels, _instances((height, width), shapes)


def truth(spec: Spec) -> Json:
    """Return the COCO `instances` object of a set; masks are uncompressed run lengths."""
    images: list[Json] = []
    annotations: list[Json] = []
    for index in range(spec.count):
        shape, shapes = _layout(spec.split, spec.seed, index, spec.size)
        height, width = shape
        images.append(
            {"id": index + 1, "file_name": _name(spec, index), "height": height, "width": width}
        )
        for instance in _instances(shape, shapes):
            x1, y1, x2, y2 = instance.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": instance.category + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(instance.mask.sum()),
                    "iscrowd": 0,
                    "segmentation": {"size": [height, width], "counts": _runs(shape, instance)},
                }
            )
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _runs(shape: tuple[int, int], instance: Instance) -> list[int]:
    """Return the mask's run lengths over the image's columns, starting with background."""
    x1, y1, x2, y2 = instance.box
    columns = np.zeros((shape[1], shape[0]), np.bool_)
    columns[x1:x2, y1:y2] = instance.mask.T
    flat = columns.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs: list[int] = np.diff(edges).tolist()
    return [0, *runs] if flat[0] else runs


# Geometry: where everything lies.


def _generator(split: Split, seed: int, index: int, purpose: str) -> np.random.Generator:
    entropy = [seed, _STREAMS[split], index, purpose == "appearance"]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def _choice(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.random() * len(items))]


def _layout(split: Split, seed: int, index: int, size: int) -> tuple[tuple[int, int], list[_Shape]]:
    """Return the image's height and width and its shapes, the rearmost first."""
    rng = _generator(split, seed, index, "layout")
    height, width = (int(size * rng.uniform(0.75, 1.25)) for _ in range(2))
    unit = size / _REFERENCE_SIZE
    shapes: list[_Shape] = []
    centres: list[Points] = []
    for _ in range(1 + int(rng.random() * _MOST_SHAPES)):
        kind = _choice(rng, CLASSES)
        side = unit * _SIDES[0] * (_SIDES[1] / _SIDES[0]) ** rng.random()
        centre = rng.uniform(0.05, 0.95, 2) * (width, height)
        if centres and rng.random() < _LEANING:
            near = _choice(rng, centres) + rng.uniform(-0.7, 0.7, 2) * side
            centre = np.clip(near, 0, (width, height))
        centres.append(centre)
        shapes.append(_placed(rng, kind, centre, side, (height, width)))
    if rng.random() < _BARRED:
        centre = rng.uniform(0.2, 0.8, 2) * (width, height)
        bar = _placed(rng, _BAR, centre, 3.0 * max(height, width), (height, width))
        shapes.insert(int(rng.random() * (len(shapes) + 1)), bar)
    return (height, width), shapes


def _placed(
    rng: np.random.Generator, kind: str, centre: Points, side: float, shape: tuple[int, int]
) -> _Shape:
    """Return a shape of about `side` pixels, turned, squeezed along a random axis, and moved."""
    first, second = (_rotation(rng.uniform(0.0, math.tau)) for _ in range(2))
    squeeze = np.diag([1.0, rng.uniform(0.75, 1.0)])
    matrix = second @ squeeze @ first * (side / 2)
    outlines = tuple(points @ matrix.T + centre for points in _outline(kind))
    limit = np.array([shape[1], shape[0]])
    x1, y1 = np.clip(np.floor(outlines[0].min(0)) - 3, 0, limit).astype(int).tolist()
    x2, y2 = np.clip(np.ceil(outlines[0].max(0)) + 3, 0, limit).astype(int).tolist()
    large = Image.new("L", ((x2 - x1) * _SUPERSAMPLING, (y2 - y1) * _SUPERSAMPLING))
    draw = ImageDraw.Draw(large)
    for points, fill in zip(outlines, (255, 0), strict=False):
        corners = (points - (x1, y1)) * _SUPERSAMPLING - 0.5  # pixel centres lie at .5
        draw.polygon(corners.ravel().tolist(), fill=fill)
    return _Shape(kind, outlines, (x1, y1, x2, y2), np.asarray(large.reduce(_SUPERSAMPLING)))


def _rotation(angle: float) -> Points:
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])


@functools.cache
def _outline(kind: str) -> tuple[Points, ...]:
    """Return the polygons (float64[N, 2], within the unit circle) of a shape: outside, hole."""
    arm, long = 0.3, 0.95
    outlines: dict[str, tuple[Points, ...]] = {
        "circle": (_polygon(48, 1.0),),
        "square": (_polygon(4, 1.0),),
        "triangle": (_polygon(3, 1.0),),
        "star": (_polygon(10, 1.0, 0.42),),
        "cross": (_plus(arm, long),),
        "ring": (_polygon(48, 1.0), _polygon(48, 0.58)),
        _BAR: (np.array([[-1, -0.015], [1, -0.015], [1, 0.015], [-1, 0.015]]),),
    }
    return outlines[kind]


def _polygon(corners: int, *radii: float) -> Points:
    """Return points at equal angles, their distances from the centre taken from `radii` in turn."""
    angles = np.arange(corners) * (math.tau / corners)
    distance = np.resize(radii, corners)
    return np.stack([np.cos(angles) * distance, np.sin(angles) * distance], axis=1)


def _plus(arm: float, long: float) -> Points:
    quarter = np.array([[long, arm], [arm, arm], [arm, long]])
    return np.concatenate([quarter @ _rotation(-turn * math.pi / 2).T for turn in (0, -1, -2, -3)])


def _area(polygon: Points) -> float:
    x, y = polygon.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _instances(shape: tuple[int, int], shapes: list[_Shape]) -> tuple[Instance, ...]:
    """Return the objects of which enough can be seen."""
    owners = np.zeros(shape, np.uint8)
    for number, placed in enumerate(shapes, start=1):
        _window(owners, placed.region)[placed.cover > _HALF] = number
    found = []
    for number, placed in enumerate(shapes, start=1):
        mask = _window(owners, placed.region) == number
        visible = int(mask.sum())
        if placed.kind != _BAR and visible >= max(_LEAST_PIXELS, _LEAST_VISIBLE * placed.area):
            found.append(_tight(CLASSES.index(placed.kind), placed.region, mask))
    return tuple(found)


def _window(array: NDArray[V], region: Region, offset: int = 0) -> NDArray[V]:
    x1, y1, x2, y2 = region
    return array[y1 + offset : y2 + offset, x1 + offset : x2 + offset]


def _tight(category: int, region: Region, mask: NDArray[np.bool_]) -> Instance:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = (int(i) for i in (rows[0], rows[-1], columns[0], columns[-1]))
    box = (region[0] + left, region[1] + top, region[0] + right + 1, region[1] + bottom + 1)
    return Instance(category, box, mask[top : bottom + 1, left : right + 1])


# Appearance: light, colour, texture.


def _paint(
    rng: np.random.Generator, shape: tuple[int, int], shapes: list[_Shape], split: Split
) -> Pixels:
    """Return the picture uint8[H, W, 3]: background, shapes with shadows, light, blur, noise."""
    height, width = shape
    canvas = _background(rng, height + 2 * _MARGIN, width + 2 * _MARGIN, split)
    for placed in shapes:
        _paint_shape(rng, canvas, placed, split)
    canvas *= _light(rng, canvas.shape[:2], 0.75, 1.2)
    picture = canvas[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN]
    noise = int(rng.uniform(0.0, 12.0))
    picture += rng.integers(-noise, noise, picture.shape, np.int8, endpoint=True)
    pixels: Pixels = np.clip(picture, 0, 255).astype(np.uint8)
    if rng.random() < _BLURRED:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.4, 1.1))
        pixels = np.asarray(Image.fromarray(pixels).filter(blur))
    return pixels


def _background(rng: np.random.Generator, height: int, width: int, split: Split) -> Floats:
    """Return a random crop of a photograph, float32[height, width, 3], 0 to 255."""
    photo = _choice(rng, _photos(split)[int(rng.random() < _GROUNDS)])
    fit = min(photo.width / width, photo.height / height) * rng.uniform(0.35, 1.0)
    w, h = width * fit, height * fit
    x, y = rng.uniform() * (photo.width - w), rng.uniform() * (photo.height - h)
    crop = photo.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    pixels = np.asarray(crop)[:, :: _choice(rng, (1, -1))]
    tint = rng.uniform(0.75, 1.1, 3).astype(np.float32)
    return pixels[..., list(_choice(rng, _CHANNELS))] * tint


def _paint_shape(rng: np.random.Generator, canvas: Floats, placed: _Shape, split: Split) -> None:
    """Darken the shape's shadow on the canvas, then blend the shape in."""
    cover = placed.cover
    if rng.random() < _SOFT:
        blur = ImageFilter.GaussianBlur(rng.uniform(0.5, 1.2))
        cover = np.asarray(Image.fromarray(cover).filter(blur))
    alpha = cover.astype(np.float32)[..., None] / 255
    shift_x, shift_y = (int(rng.uniform(-0.6, 1.0) * _MARGIN * 0.6) for _ in range(2))
    x1, y1, x2, y2 = placed.region
    shadow = (x1 + shift_x, y1 + shift_y, x2 + shift_x, y2 + shift_y)
    _window(canvas, shadow, _MARGIN)[:] *= 1 - alpha * np.float32(rng.uniform(0.0, 0.5))
    target = _window(canvas, placed.region, _MARGIN)
    fill = _fill(rng, target, split)
    target += (fill - target) * alpha


def _fill(rng: np.random.Generator, target: Floats, split: Split) -> Floats:
    """Return a lit, textured surface, float32 of the shape of `target`, that differs from it."""
    height, width = target.shape[:2]
    first, second = rng.uniform(0.0, 255.0, (2, 3)).astype(np.float32)
    behind = target.mean((0, 1))
    if np.abs(first - behind).max() < _TOO_ALIKE:
        first = 255 - first
    texture = _choice(rng, _textures(split))
    rows = (np.arange(height) + int(rng.random() * 512)) % texture.shape[0]
    columns = (np.arange(width) + int(rng.random() * 512)) % texture.shape[1]
    grain = texture[np.ix_(rows, columns)][..., None] * np.float32(rng.uniform(0.1, 1.0))
    return (first + (second - first) * grain) * _light(rng, (height, width), 0.65, 1.25)


def _light(rng: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> Floats:
    """Return a linear ramp of brightness in a random direction, float32[height, width, 1]."""
    height, width = shape
    left, right, top, bottom = np.sqrt(rng.uniform(low, high, 4)).astype(np.float32)
    across = np.linspace(left, right, width, dtype=np.float32)
    return (np.linspace(top, bottom, height, dtype=np.float32)[:, None] * across)[..., None]


@functools.cache
def _photos(split: Split) -> tuple[tuple[Image.Image, ...], tuple[Image.Image, ...]]:
    """Return the photographs of a split and, as pictures of ground and walls, its textures."""
    photos = []
    for name in _PHOTOS[split]:
        photo = _shipped(name).convert("RGB")
        photo.thumbnail((_LONGEST_PHOTO, _LONGEST_PHOTO))
        photos.append(photo)
    halves = (_texture(name, split) for name in _TEXTURES)
    plain = [Image.fromarray(half).convert("RGB") for half in halves]
    return tuple(photos), tuple(plain)


@functools.cache
def _textures(split: Split) -> tuple[Floats, ...]:
    """Return the split's half of each texture, float32[512, 256], 0 to 1."""
    return tuple(_texture(name, split).astype(np.float32) / 255 for name in _TEXTURES)


def _texture(name: str, split: Split) -> NDArray[np.uint8]:
    texture = np.asarray(_shipped(name).convert("L"))
    half = texture.shape[1] // 2
    return texture[:, :half] if split == "train" else texture[:, half:]


def _shipped(name: str) -> Image.Image:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise DataError(
            "the shapes data set needs the photographs of scikit-image, which is not installed",
            fix="pip install 'deploykit[shapes]'",
        )
    path = Path(spec.origin).parent / "data" / name
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except OSError as error:
        raise DataError(
            f"cannot read {path}: {error}", fix="install scikit-image again: it ships this file"
        ) from error


def _name(spec: Spec, index: int) -> str:
    return f"{spec.split}-{spec.seed}-{index:06d}"


def _read(spec: Spec, index: int) -> Pixels:
    return render(spec.split, spec.seed, index, spec.size)[0]


def _open(location: str) -> Dataset:
    spec = parse(location)
    _photos(spec.split)
    samples = [Sample(_name(spec, i), partial(_read, spec, i)) for i in range(spec.count)]
    name = f"shapes:seed={spec.seed},count={spec.count},size={spec.size},split={spec.split}"
    return Dataset(name, samples, truth=partial(truth, spec))


source = Source("shapes", "generated shapes on photographs, with boxes and masks", _open)
