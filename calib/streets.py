"""Street scenes that are made up, in the labels of Cityscapes: `streets:count=500,size=512x256`.

No download: the textures come with the scikit-image package. A scene follows from split, seed, size
and index alone; `train` and `val` share neither random streams nor parts of textures. The same
scenes as a tree in Cityscapes' layout, images, maps of ids and polygons:

    python calib/streets.py split=train,count=500 DIR
"""

from __future__ import annotations

import functools
import json
import re
import sys
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from deploykit.data import listing, photographs
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.data.streets import painting, scenes
from deploykit.data.streets.outlines import PAINTED
from deploykit.data.streets.painting import SIDE, Textures
from deploykit.errors import OptionError, unknown_name
from deploykit.files import artifacts
from deploykit.tasks.cityscapes import benchmarks, labels, truth
from deploykit.tasks.cityscapes.polygons import Polygons
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Pixels
    from deploykit.data.sources import Benchmark
    from deploykit.data.streets.parts import Scene
    from deploykit.values import Progress

Split: TypeAlias = Literal["train", "val"]
Truth: TypeAlias = Literal["semantic", "instance", "objects"]

CITY = "streets"
_TEXTURES: Mapping[str, str] = {"brick": "brick.png", "grass": "grass.png", "gravel": "gravel.png"}
_PHOTOS = ("coffee.png", "camera.png", "rocket.jpg", "chelsea.png")
_SOFT = ("moon.png",)
_LIMITS = {"seed": (0, 2**31 - 1), "count": (1, 1_000_000)}
_CHOICES: dict[str, tuple[str, ...]] = {"split": get_args(Split), "truth": get_args(Truth)}
_LEAST, _MOST = 32, 4096
"""Pixels of a side."""


@dataclass(frozen=True)
class Spec:
    """What `streets:` may be told; `seed=1,count=500,size=512x256,split=val` is the default."""

    seed: int = 1
    count: int = 500
    size: tuple[int, int] = (512, 256)
    """Width and height."""
    split: Split = "val"
    truth: Truth = "semantic"

    def __str__(self) -> str:
        """Return the text that `parse` reads."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        said["size"] = "{}x{}".format(*self.size)
        return ",".join(f"{key}={value}" for key, value in said.items())


def parse(text: str) -> Spec:
    """Return the spec that `text` (`key=value,...`) describes. Raises: OptionError."""
    made: dict[str, Any] = dict(
        listing.options("streets", text, [field.name for field in fields(Spec)])
    )
    for key, known in _CHOICES.items():
        if key in made and made[key] not in known:
            raise unknown_name(f"{key} of streets", made[key], known)
    for key, (low, high) in _LIMITS.items():
        if key in made:
            number = int(made[key]) if re.fullmatch(r"[0-9]{1,12}", made[key]) else -1
            if not low <= number <= high:
                raise OptionError(
                    f"streets: {key}={made[key]!r}", expected=f"an integer from {low} to {high}"
                )
            made[key] = number
    if "size" in made:
        made["size"] = _size(made["size"])
    return Spec(**made)


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if not all(_LEAST <= side <= _MOST for side in size):
        raise OptionError(
            f"streets: size={text!r}",
            expected=f"WIDTHxHEIGHT, such as 512x256, each from {_LEAST} to {_MOST}",
        )
    return size


def scene(spec: Spec, index: int) -> Scene:
    """Return what stands where in scene `index`, which may exceed the spec's count."""
    width, height = spec.size
    return scenes.compose(_generator(spec, index, purpose=0), height, width)


def render(spec: Spec, index: int) -> Pixels:
    """Return image `index`, uint8[H, W, 3], RGB. Raises: DataError without scikit-image."""
    rng = _generator(spec, index, purpose=1)
    return painting.paint(rng, scene(spec, index), _textures(spec.split))


def outlines(spec: Spec, index: int) -> Polygons:
    """Return the polygons of scene `index`, as Cityscapes' files have them."""
    made = scene(spec, index)
    objects = [(part.label, part.corners) for part in made.parts if part.label != PAINTED]
    return Polygons(made.height, made.width, objects)


def known(spec: Spec, index: int) -> object:
    """Return the truth about scene `index`: of each pixel, or its objects as COCO has them."""
    found = truth.of_polygons(outlines(spec, index))
    return truth.coco_objects(index + 1, found) if spec.truth == "objects" else found


def name(spec: Spec, index: int) -> str:
    """Return what scene `index` is called: city, sequence and frame."""
    return f"{CITY}_{spec.seed:06d}_{index:06d}"


def write(spec: Spec, root: Path, progress: Progress = silent) -> None:
    """Write the scenes of a spec as a tree in Cityscapes' layout. Raises: DataError, OutputError.

    A scene has its image, `labelIds`, `instanceIds` and `polygons`.
    """
    kinds = ("leftImg8bit", "gtFine")
    folders = [artifacts.made(root / kind / spec.split / CITY) for kind in kinds]
    for index in progress(range(spec.count), "scenes", spec.count):
        core, drawn = name(spec, index), outlines(spec, index)
        maps = truth.of_polygons(drawn)
        assert maps.instances is not None  # polygons have them
        _save(folders[0] / f"{core}_leftImg8bit.png", render(spec, index))
        _save(folders[1] / f"{core}_gtFine_labelIds.png", maps.labels)
        _save(folders[1] / f"{core}_gtFine_instanceIds.png", maps.instances.astype(np.uint16))
        text = json.dumps(drawn.to_json(), sort_keys=True) + "\n"
        artifacts.write_text(folders[1] / f"{core}_gtFine_polygons.json", text)


def _save(path: Path, array: NDArray[Any]) -> None:
    with artifacts.replacing(path) as temporary:
        Image.fromarray(array).save(temporary, "PNG")


def _generator(spec: Spec, index: int, *, purpose: int) -> np.random.Generator:
    entropy = [spec.seed, _CHOICES["split"].index(spec.split), index, purpose, *spec.size]
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(entropy)))


@functools.cache
def _textures(split: Split) -> Textures:
    """Return half of each picture that scikit-image ships. Raises: DataError."""
    kinds = {**{kind: (file,) for kind, file in _TEXTURES.items()}, "photo": _PHOTOS, "soft": _SOFT}
    files = [file for group in kinds.values() for file in group]
    names = {kind: tuple(files.index(file) for file in group) for kind, group in kinds.items()}
    return Textures(names, np.stack([_tile(file, split) for file in files]))


def _tile(file: str, split: Split) -> NDArray[np.float32]:
    """Return the left half of a picture for `train`, else the right one: -0.5 to 0.5."""
    grey = photographs.shipped(file).convert("L")
    side = min(grey.width // 2, grey.height)
    left = 0 if split == "train" else grey.width - side
    half = grey.crop((left, 0, left + side, side)).resize((SIDE, SIDE))
    levels = np.asarray(half, np.float32)
    spread = np.maximum(np.abs(levels - levels.mean()).max(), 1.0)
    tile: NDArray[np.float32] = (levels - levels.mean()) / (2 * spread)
    return tile


def _open(location: str) -> Dataset:
    spec = parse(location)
    _textures(spec.split)
    samples = [
        Sample(name(spec, i), partial(render, spec, i), partial(known, spec, i))
        for i in range(spec.count)
    ]
    classes = labels.CLASSES if spec.truth == "semantic" else labels.THINGS
    return Dataset(f"streets:{spec}", samples, classes, benchmark=_BENCHMARKS[spec.truth])


_BENCHMARKS: Mapping[Truth, Benchmark | None] = {
    "semantic": benchmarks.PixelBenchmark(),
    "instance": benchmarks.ObjectBenchmark(),
    "objects": None,
}

source = Source("streets", "made-up street scenes in the labels of Cityscapes", _open)

if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    write(parse(sys.argv[1]), Path(sys.argv[2]))
