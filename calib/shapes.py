"""Generated images with known objects: six kinds of shape pasted on real photographs.

No download: the photographs and textures come with the scikit-image package. Every image follows
from (split, seed, index) alone, so a data set is a range of indices, as long as one likes.
`train` and `val` share neither random streams nor photographs, and use two halves of each texture.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from deploykit.data import drawing, listing, photographs
from deploykit.data.drawing import Materials, Shape
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import OptionError, unknown_name
from deploykit.tasks.annotations import ImageAnnotations

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.data.drawing import Mask, Points, Region
    from deploykit.data.preprocess import Pixels
    from deploykit.values import Json

Split: TypeAlias = Literal["train", "val"]
Truth: TypeAlias = Literal["objects", "things", "map", "class"]
"""What is known of an image: its objects, these all of one class, the class of each pixel, or of
its only shape."""

CLASSES = ("circle", "square", "triangle", "star", "cross", "ring")
_BAR = "bar"
"""A long strip that covers other shapes and is itself no object."""

_PHOTOS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("astronaut.png", "coffee.png", "motorcycle_left.png", "ihc.png"),
        *("retina.jpg", "camera.png", "moon.png"),
    ),
    "val": ("chelsea.png", "rocket.jpg", "hubble_deep_field.jpg"),
}
_TEXTURES = ("brick.png", "grass.png", "gravel.png")
_LONGEST_PHOTO = 768
"""Pixels to which larger photographs are shrunk."""

_REFERENCE_SIZE = 320
"""At this size the shapes' sides lie within _SIDES, in pixels; they grow with it."""
_SIDES: dict[Truth, tuple[float, float]] = {
    **dict.fromkeys(("objects", "things", "map"), (22.0, 160.0)),
    "class": (150.0, 290.0),
}
_SQUEEZE = 0.75
_MOST_SHAPES = 8
_PLACES: dict[Truth, tuple[float, float]] = {
    **dict.fromkeys(("objects", "things", "map"), (0.05, 0.95)),
    "class": (0.4, 0.6),
}
"""Where shapes have their centres, in shares of the image."""
_LEANING = 0.35
"""Share of shapes placed on or beside an earlier one."""
_BARRED = 0.3
"""Share of images with a bar."""
_LEAST_VISIBLE, _LEAST_PIXELS = 0.25, 60
"""Share of the whole shape, and pixels: what shows less is painted but not in the truth."""


@dataclass(frozen=True)
class Spec:
    """What `shapes:` may be told; `shapes:seed=1,count=500,size=320,split=val` is the default."""

    seed: int = 1
    count: int = 500
    size: int = _REFERENCE_SIZE
    split: Split = "val"
    truth: Truth = "objects"

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        said = [f for f in fields(self) if f.name != "truth" or self.truth != "objects"]
        return ",".join(f"{field.name}={getattr(self, field.name)}" for field in said)


_LIMITS = {"seed": (0, 2**31 - 1), "count": (1, 1_000_000), "size": (64, 2048)}


@dataclass(frozen=True)
class Instance:
    """One object: its class, the box of its visible part, and which pixels of the box it owns."""

    category: int
    """Index into CLASSES."""
    box: Region
    """x1, y1, x2, y2 in pixels; x2 and y2 are exclusive."""
    mask: Mask
    """bool[y2 - y1, x2 - x1]."""


@dataclass(frozen=True)
class _Scene:
    """What lies where in one image, the rearmost first."""

    height: int
    width: int
    kinds: list[str]
    shapes: list[Shape]

    def instances(self) -> list[Instance]:
        """Return the objects of which enough can be seen."""
        found = []
        masks = drawing.visible(self.shapes, self.height, self.width)
        for kind, shape, mask in zip(self.kinds, self.shapes, masks, strict=True):
            least = max(_LEAST_PIXELS, _LEAST_VISIBLE * shape.area)
            if kind in CLASSES and mask.sum() >= least:
                box, inside = drawing.tight(shape.region, mask)
                found.append(Instance(CLASSES.index(kind), box, inside))
        return found

    def label_map(self) -> NDArray[np.uint8]:
        """Return the class of each pixel, from 1; 0 where no shape but a bar is on top."""
        labels = np.zeros((self.height, self.width), np.uint8)
        masks = drawing.visible(self.shapes, self.height, self.width)
        for kind, shape, mask in zip(self.kinds, self.shapes, masks, strict=True):
            x1, y1, x2, y2 = shape.region
            number = 1 + CLASSES.index(kind) if kind in CLASSES else 0
            labels[y1:y2, x1:x2][mask] = number
        return labels


def parse(text: str) -> Spec:
    """Return the spec that `text` (`key=value,...`) describes. Raises: OptionError."""
    values = listing.options("shapes", text, [*_CHOICES, *_LIMITS])
    for key, known in _CHOICES.items():
        if key in values and values[key] not in known:
            raise unknown_name(f"{key} of shapes", values[key], known)
    made: dict[str, Any] = {
        key: value if key in _CHOICES else _number(key, value) for key, value in values.items()
    }
    return Spec(**made)


_CHOICES: dict[str, tuple[str, ...]] = {"split": get_args(Split), "truth": get_args(Truth)}


def _number(key: str, value: str) -> int:
    low, high = _LIMITS[key]
    number = int(value) if re.fullmatch(r"[0-9]{1,12}", value) else -1
    if not low <= number <= high:
        raise OptionError(f"shapes: {key}={value!r}", expected=f"an integer from {low} to {high}")
    return number


def render(spec: Spec, index: int) -> tuple[Pixels, list[Instance]]:
    """Return image `index` of a set, uint8[H, W, 3], and its objects, the rearmost first.

    H and W lie between 0.75 and 1.25 times the spec's size; `index` may exceed its count.

    Raises: DataError without scikit-image.
    """
    scene = _scene(spec, index)
    rng = _generator(spec, index, purpose=1)
    materials = _materials(spec.split)
    pixels = drawing.paint(rng, scene.shapes, materials, scene.height, scene.width)
    return pixels, scene.instances()


def truth(spec: Spec, index: int) -> ImageAnnotations | NDArray[np.uint8] | int:
    """Return what is known of image `index`, as the spec says.

    Its objects, with masks as uncompressed run lengths, `things` all of class 1; the id of its only
    shape's class; or that of each pixel, uint8[H, W], 0 for the background.
    """
    scene = _scene(spec, index)
    if spec.truth == "class":
        return 1 + CLASSES.index(next(kind for kind in scene.kinds if kind in CLASSES))
    if spec.truth == "map":
        return scene.label_map()
    annotations = tuple(
        _annotation(scene, instance, 1 if spec.truth == "things" else 1 + instance.category)
        for instance in scene.instances()
    )
    return ImageAnnotations(index + 1, annotations, (scene.height, scene.width))


def _annotation(scene: _Scene, instance: Instance, category: int) -> Json:
    x1, y1, x2, y2 = instance.box
    size = (scene.height, scene.width)
    return {
        "category_id": category,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(instance.mask.sum()),
        "iscrowd": 0,
        "segmentation": {
            "size": list(size),
            "counts": drawing.run_lengths(instance.box, instance.mask, *size),
        },
    }


def _generator(spec: Spec, index: int, *, purpose: int) -> np.random.Generator:
    entropy = [spec.seed, _CHOICES["split"].index(spec.split), index, purpose]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


def _scene(spec: Spec, index: int) -> _Scene:
    rng = _generator(spec, index, purpose=0)
    height, width = (int(spec.size * rng.uniform(0.75, 1.25)) for _ in range(2))
    scene = _Scene(height, width, [], [])
    unit = spec.size / _REFERENCE_SIZE
    centres: list[Points] = []
    for _ in range(1 if spec.truth == "class" else 1 + int(rng.random() * _MOST_SHAPES)):
        kind = drawing.choice(rng, CLASSES)
        least, most = _SIDES[spec.truth]
        side = unit * least * (most / least) ** rng.random()
        centre = rng.uniform(*_PLACES[spec.truth], 2) * (width, height)
        if centres and rng.random() < _LEANING:
            near = drawing.choice(rng, centres) + rng.uniform(-0.7, 0.7, 2) * side
            centre = np.clip(near, 0, (width, height))
        centres.append(centre)
        scene.kinds.append(kind)
        scene.shapes.append(_placed(rng, kind, centre, side, scene))
    if rng.random() < _BARRED:
        centre = rng.uniform(0.2, 0.8, 2) * (width, height)
        bar = _placed(rng, _BAR, centre, 3.0 * max(height, width), scene)
        position = int(rng.random() * (len(scene.shapes) + 1))
        scene.kinds.insert(position, _BAR)
        scene.shapes.insert(position, bar)
    return scene


def _placed(
    rng: np.random.Generator, kind: str, centre: Points, side: float, scene: _Scene
) -> Shape:
    """Return a shape of about `side` pixels, turned, squeezed along a random axis, and moved."""
    first, second = (drawing.rotation(rng.uniform(0.0, math.tau)) for _ in range(2))
    squeeze = np.diag([1.0, rng.uniform(_SQUEEZE, 1.0)])
    matrix = second @ squeeze @ first * (side / 2)
    outlines = tuple(points @ matrix.T + centre for points in drawing.outlines()[kind])
    return drawing.rasterised(outlines, scene.height, scene.width)


@functools.cache
def _materials(split: Split) -> Materials:
    """Return the photographs of a split and its half of each texture. Raises: DataError."""
    photos = tuple(photographs.shipped(name).convert("RGB") for name in _PHOTOS[split])
    for photo in photos:
        photo.thumbnail((_LONGEST_PHOTO, _LONGEST_PHOTO))
    halves = [_half(photographs.shipped(name), split) for name in _TEXTURES]
    return Materials(
        photos=photos,
        grounds=tuple(Image.fromarray(half).convert("RGB") for half in halves),
        textures=tuple(np.divide(half, 255, dtype=np.float32) for half in halves),
    )


def _half(texture: Image.Image, split: Split) -> NDArray[np.uint8]:
    pixels = np.asarray(texture.convert("L"))
    middle = pixels.shape[1] // 2
    return pixels[:, :middle] if split == "train" else pixels[:, middle:]


def _name(spec: Spec, index: int) -> str:
    return f"{spec.split}-{spec.seed}-{index:06d}"


def _read(spec: Spec, index: int) -> Pixels:
    return render(spec, index)[0]


def _open(location: str) -> Dataset:
    spec = parse(location)
    _materials(spec.split)
    samples = [
        Sample(_name(spec, i), partial(_read, spec, i), partial(truth, spec, i))
        for i in range(spec.count)
    ]
    known = dict(enumerate(CLASSES, start=1))
    if spec.truth == "things":
        known = {1: "object"}
    elif spec.truth == "map":
        known = {0: "background", **known}
    return Dataset(f"shapes:{spec}", samples, known)


source = Source("shapes", "generated shapes on photographs, with boxes and masks", _open)
