"""The truth about one image of Cityscapes, from whichever of its files there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.data import drawing, label_images
from deploykit.errors import DataError
from deploykit.tasks.annotations import ImageAnnotations
from deploykit.tasks.cityscapes import labels, polygons

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.values import Json


@dataclass(frozen=True)
class StreetTruth:
    """What each pixel of one image is."""

    labels: NDArray[np.uint8]
    """uint8[H, W]: official ids of labels, 0 to 33."""
    instances: NDArray[np.int32] | None = None
    """int32[H, W]: see `labels.GROUPED`; None: the set has no map of instances."""
    distances: Mapping[int, tuple[float, float]] | None = None
    """Value in the map of instances -> metres to the object, and the share of its pixels that this
    is known of; None: the set has no distances."""


@dataclass(frozen=True)
class Files:
    """Where the truth about one image may stand; None: there is no such file."""

    labels: Path | None = None
    """Official ids as grey levels."""
    instances: Path | None = None
    polygons: Path | None = None
    train: Path | None = None
    """Train ids as grey levels: 0 to 18, 255 where a pixel does not count."""
    distances: Mapping[int, tuple[float, float]] | None = None
    """As of `StreetTruth`."""


def of_polygons(outlines: polygons.Polygons) -> StreetTruth:
    """Return what polygons say of each pixel. Raises: DataError."""
    drawn = polygons.instances(outlines)
    return StreetTruth(labels.of_instances(drawn), drawn)


def read(files: Files) -> StreetTruth:
    """Return the truth: from maps of ids, else from polygons, else from train ids.

    Raises: DataError naming the file, for ids that there are not, for maps of two sizes, and where
    there is no file that says the labels.
    """
    told = None
    if files.instances is not None:
        told = _instances(files.instances)
    elif files.polygons is not None:
        told = polygons.instances(polygons.read(files.polygons))
    if files.labels is not None:
        found = _labels(files.labels)
    elif told is not None:
        return StreetTruth(labels.of_instances(told), told, files.distances)
    elif files.train is not None:
        return StreetTruth(_train(files.train))
    else:
        raise DataError("no label map", expected="labelIds, instanceIds, polygons or labelTrainIds")
    if told is not None and told.shape != found.shape:
        raise DataError(
            f"{files.instances or files.polygons} has {told.shape[1]}x{told.shape[0]} pixels, and "
            f"{files.labels.name} {found.shape[1]}x{found.shape[0]}",
            expected="one size for all files of an image",
        )
    return StreetTruth(found, told, files.distances)


def _labels(path: Path) -> NDArray[np.uint8]:
    ids = label_images.decode(path)
    _check(path, ids, int(ids.max(initial=0)) < len(labels.LABELS), "official ids, 0 to 33")
    return ids.astype(np.uint8)


def _train(path: Path) -> NDArray[np.uint8]:
    ids = label_images.decode(path)
    wrong = (ids >= len(labels.CLASSES)) & (ids != labels.IGNORED)
    _check(path, ids, not wrong.any(), "train ids, 0 to 18, or 255 for pixels that do not count")
    table = labels.from_train()
    found: NDArray[np.uint8] = table[ids]
    return found


def _instances(path: Path) -> NDArray[np.int32]:
    ids = label_images.decode(path).astype(np.int32)
    least, most = (f(labels.THINGS) * labels.GROUPED for f in (min, max))
    fits = (ids < len(labels.LABELS)) | ((ids >= least) & (ids < most + labels.GROUPED))
    _check(path, ids, bool(fits.all()) and int(ids.min(initial=0)) >= 0, _INSTANCE_IDS)
    return ids


_INSTANCE_IDS = "ids of labels, 0 to 33, or of objects, 24000 to 33999: label * 1000 + number"


def _check(path: Path, ids: NDArray[Any], fits: bool, expected: str) -> None:  # noqa: FBT001 - a finding
    """Raise DataError with the ids that a map holds, unless it `fits`."""
    if not fits:
        present = np.unique(ids).tolist()
        raise DataError(
            f"{path} holds the ids {', '.join(map(str, present[-_SHOWN:]))}",
            expected=expected,
            fix="store each kind of ids under its own name: labelIds, labelTrainIds, instanceIds",
        )


_SHOWN = 5


def coco_objects(number: int, truth: StreetTruth) -> ImageAnnotations:
    """Return the objects of the 8 classes as COCO's annotations; groups are crowds.

    Raises: DataError where the truth has no map of instances.
    """
    if truth.instances is None:
        raise DataError("no map of instances", expected="instanceIds, or polygons")
    height, width = truth.instances.shape
    found = []
    for value in np.unique(truth.instances).tolist():
        label = value // labels.GROUPED if value >= labels.GROUPED else value
        if label in labels.THINGS:
            mask = truth.instances == value
            found.append(_annotation(label, mask, is_group=value < labels.GROUPED))
    return ImageAnnotations(number, tuple(found), (height, width))


def _annotation(label: int, mask: NDArray[np.bool_], *, is_group: bool) -> Json:
    height, width = mask.shape
    box, inside = drawing.tight((0, 0, width, height), mask)
    x1, y1, x2, y2 = box
    return {
        "category_id": label,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": int(inside.sum()),
        "iscrowd": int(is_group),
        "segmentation": {
            "size": [height, width],
            "counts": drawing.run_lengths(box, inside, height, width),
        },
    }
