"""Images with COCO annotations: `coco:DIR`, or `coco:IMAGES,annotations=FILE`.

`truth=panoptic` takes the segments of all pixels in place of objects.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np

from deploykit.data import images, label_images, listing
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError, OptionError, unknown_name
from deploykit.tasks import coco_index
from deploykit.tasks.panoptic import Segments
from deploykit.tasks.panoptic_benchmark import PanopticBenchmark

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from deploykit.tasks.coco_index import Index, Kind, Listed

Truth: TypeAlias = Literal["instance", "panoptic"]
_KINDS = {"instance": coco_index.INSTANCES, "panoptic": coco_index.SEGMENTS}
_ROBOFLOW = "_annotations.coco.json"
"""Roboflow's exports keep this file among the images."""
_LAYOUTS = ("{split}", "images/{split}", "images", ".")
"""Where below DIR the images of annotations/instances_{split}.json may lie."""


def _open(location: str) -> Dataset:
    """Return the images that the annotation file lists, in its order."""
    root, options = listing.location("coco", location, ("annotations", "truth", "maps"))
    wanted = options.get("truth", "instance")
    if wanted not in get_args(Truth):
        raise unknown_name("truth of coco", wanted, get_args(Truth))
    kind, named = _KINDS[wanted], options.get("annotations")
    file = _only_annotations(root, kind) if named is None else images.home(named)
    index = coco_index.read(file, kind)
    names = [image.name for image in index.images]
    folder = _image_folder(root, file, kind, names[0]) if named is None else root
    _require_files(folder, names, "images")
    if kind is coco_index.SEGMENTS:
        return _panoptic(location, index, folder, options.get("maps"))
    if "maps" in options:
        raise OptionError("coco: maps are of truth=panoptic", fix="leave maps=FOLDER out")
    samples = [
        Sample(
            image.name, partial(images.decode, folder / image.name), partial(index.objects, image)
        )
        for image in index.images
    ]
    return Dataset(f"coco:{location}", samples, index.categories, used=index.used)


def _panoptic(location: str, index: Index, folder: Path, named: str | None) -> Dataset:
    """Return the images with their segments, which lie in a folder called as the file is."""
    maps = index.path.with_suffix("") if named is None else images.folder(named)
    without = [image.name for image in index.images if image.number not in index.maps]
    if without:
        raise DataError(
            f"{index.path} has no segments of {len(without)} images, the first one {without[0]}",
            expected="an annotation for each image",
        )
    if not maps.is_dir():
        raise DataError(
            f"no such folder: {maps}",
            expected="the files that say whose each pixel is",
            fix="unpack them there, or name their folder: maps=FOLDER",
        )
    _require_files(maps, list(index.maps.values()), "maps of segments")
    samples = [
        Sample(
            image.name,
            partial(images.decode, folder / image.name),
            partial(_segments, index, image, maps / index.maps[image.number]),
        )
        for image in index.images
    ]
    numbers = {image.name: image.number for image in index.images}
    benchmark = PanopticBenchmark(index.categories, index.things, numbers)
    return Dataset(f"coco:{location}", samples, index.categories, benchmark=benchmark)


def _segments(index: Index, image: Listed, path: Path) -> Segments:
    """Return the segments of an image. Raises: DataError."""
    pixels = label_images.decode(path, label_images.DIGITS, always=True)
    return Segments(pixels.astype(np.int64), index.segments(image))


def _only_annotations(root: Path, kind: Kind) -> Path:
    found = sorted((root / "annotations").glob(kind.prefix + "*.json"))
    if not found and kind is coco_index.INSTANCES:
        found = [path for path in [root / _ROBOFLOW] if path.is_file()]
    held_out = [path for path in found if "val" in path.stem]
    if not found:
        others = f" or {_ROBOFLOW}" if kind is coco_index.INSTANCES else ""
        raise DataError(
            f"{root} has no annotations",
            expected=f"annotations/{kind.prefix}*.json{others} in it",
            fix="name the file: coco:IMAGES,annotations=FILE",
        )
    if len(found) > 1 and len(held_out) != 1:
        raise OptionError(
            f"{root} has several annotation files: " + ", ".join(path.name for path in found),
            fix="choose one: coco:IMAGES,annotations=FILE",
        )
    return found[0] if len(found) == 1 else held_out[0]


def _image_folder(root: Path, annotations: Path, kind: Kind, first: str) -> Path:
    """Return the folder that holds the first listed image, by the known layouts."""
    split = annotations.stem.removeprefix(kind.prefix)
    folders = [root / layout.format(split=split) for layout in _LAYOUTS]
    for folder in folders:
        if (folder / first).is_file():
            return folder
    raise DataError(
        f"the image {first} that {annotations} lists was not found",
        expected="in one of " + ", ".join(map(str, folders)),
        fix="name the folder: coco:IMAGES,annotations=FILE",
    )


def _folders(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each folder below `root`, links followed, and the files in it; no folder twice."""
    seen: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(root, followlinks=True):
        place = os.stat(parent)  # noqa: PTH116 - many files, in a hurry
        if (place.st_dev, place.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        yield parent, files


def _require_files(folder: Path, names: list[str], what: str) -> None:
    known = {
        os.path.relpath(os.path.join(parent, name), folder)  # noqa: PTH118 - many files, in a hurry
        for parent, files in _folders(folder)
        for name in files
    }
    missing = [name for name in names if os.path.normpath(name) not in known]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} listed {what} are not in {folder}, "
            f"the first one {missing[0]}",
            fix="fetch the missing files, or remove their entries from the annotation file",
        )


source = Source("coco", "images with a COCO instances or panoptic file", _open)
