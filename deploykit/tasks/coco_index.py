"""What a COCO file lists: images and categories, and where each annotation stands in it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deploykit.errors import DataError
from deploykit.files import elements, paths, schema
from deploykit.tasks.annotation_checks import COCO, PANOPTIC
from deploykit.tasks.annotations import ImageAnnotations
from deploykit.tasks.panoptic import Segment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.files.elements import Element
    from deploykit.files.schema import Check
    from deploykit.values import Json


class Kind(NamedTuple):
    """A kind of file."""

    prefix: str
    """What its name begins with."""
    what: str
    checks: Mapping[str, Check]
    """List -> what its entries must be."""


INSTANCES = Kind("instances_", "a COCO instances file", COCO)
SEGMENTS = Kind("panoptic_", "a COCO panoptic file", PANOPTIC)


class Listed(NamedTuple):
    """One entry of the list of images."""

    number: int
    name: str
    size: tuple[int, int] | None


class _Category(NamedTuple):
    number: int
    name: str
    thing: bool


@dataclass(frozen=True)
class Index:
    """Where in the file the annotations of each image stand: they are read one image at a time."""

    path: Path
    images: list[Listed]
    categories: dict[int, str]
    owners: NDArray[np.int64]
    """int64[N]: of each annotation its image's id, in rising order."""
    spans: NDArray[np.int64]
    """int64[N, 2]: its first byte, and the byte behind it."""
    used: frozenset[int]
    """Ids of the categories that annotations of objects have."""
    things: frozenset[int] = frozenset()
    """Ids of the categories that are things, as far as the file says so."""
    maps: Mapping[int, str] = field(default_factory=dict)
    """Id of an image -> the file with its segments."""

    def objects(self, image: Listed) -> ImageAnnotations:
        """Return what the file says about an image. Raises: DataError where it has changed."""
        try:
            annotations = tuple(map(_completed, self._found(image)))
        except _CHANGED as error:
            raise self._changed(image, error) from error
        return ImageAnnotations(image.number, annotations, image.size)

    def segments(self, image: Listed) -> list[Segment]:
        """Return the segments of an image. Raises: DataError where the file has changed."""
        try:
            (entry,) = self._found(image)
            return [
                Segment(each["id"], each["category_id"], bool(each.get("iscrowd", 0)))
                for each in entry["segments_info"]
            ]
        except _CHANGED as error:
            raise self._changed(image, error) from error

    def _found(self, image: Listed) -> list[Any]:
        low, high = np.searchsorted(self.owners, [image.number, image.number + 1]).tolist()
        return elements.parse(self.path, self.spans[low:high].tolist())

    def _changed(self, image: Listed, error: Exception) -> DataError:
        return DataError(
            f"cannot read the annotations of {image.name} in {self.path}: {error}",
            fix="leave the file as it is while it is in use",
        )


_CHANGED = (OSError, ValueError, TypeError, AttributeError, KeyError)
"""What comes of reading a file that is another one by now."""


def _completed(annotation: Json) -> Json:
    """Return an annotation with what it may leave out: no crowd, and the area of its box."""
    annotation.setdefault("iscrowd", 0)
    annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return annotation


_LINKS = {"image_id": "images", "category_id": "categories"}
"""Field of an annotation -> the list whose ids it refers to."""


def read(path: Path, kind: Kind = INSTANCES) -> Index:
    """Return the checked content of a file, without the annotations themselves.

    Raises: DataError.
    """
    found: dict[str, list[Any]] = {}
    paths.require_file(path, kind.what, DataError)
    try:
        for element in elements.elements(path):
            entries = found.setdefault(element.key, [])
            if element.key in kind.checks and element.end > element.start:
                entries.append(_entry(path, kind, element, len(entries)))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}", expected=kind.what) from error
    for key in kind.checks:
        if key not in found:
            raise _bad(path, f"no list of {key}", kind.what)
    pictures: list[Listed] = found["images"]
    if not pictures:
        raise _bad(path, "an empty list of images", "at least one image")
    categories: list[_Category] = found["categories"]
    annotations: list[tuple[Any, ...]] = found["annotations"]
    _check_unique(path, "id in images", [image.number for image in pictures])
    _check_unique(path, "file_name in images", [image.name for image in pictures])
    _check_unique(path, "id in categories", [each.number for each in categories])
    maps = {each[0]: each[4] for each in annotations} if kind is SEGMENTS else {}
    rows = [each[:4] for each in annotations] if maps else annotations
    places = np.array(rows, np.int64).reshape(-1, 4)
    _check_link(path, "image_id", places[:, 0], [image.number for image in pictures])
    used: frozenset[int] = frozenset()
    if kind is INSTANCES:
        _check_link(path, "category_id", places[:, 1], [each.number for each in categories])
        used = frozenset(np.unique(places[:, 1]).tolist())
    else:
        _check_unique(path, "image_id in annotations", places[:, 0].tolist())
    order = np.argsort(places[:, 0], kind="stable")
    return Index(
        path,
        pictures,
        {each.number: each.name for each in categories},
        places[order, 0],
        places[order, 2:],
        used,
        frozenset(each.number for each in categories if each.thing),
        maps,
    )


def _entry(path: Path, kind: Kind, element: Element, number: int) -> tuple[Any, ...]:
    """Return what is kept of an entry; of an annotation only where it stands."""
    key = element.key
    if not isinstance(element.value, dict):
        raise _bad(path, f"no list of {key}: {key}[{number}] is no object", kind.what)
    value = element.value
    if not all(text.isascii() for text in value.values() if isinstance(text, str)):
        (value,) = elements.parse(path, [(element.start, element.end)])
    _check(path, f"{key}[{number}]", value, kind.checks[key])
    if key == "annotations":
        place = element.start, element.end
        if kind is SEGMENTS:
            return value["image_id"], 0, *place, value["file_name"]
        return value["image_id"], value["category_id"], *place
    if key == "categories":
        return _Category(value["id"], value["name"], bool(value.get("isthing", 0)))
    size = (value["height"], value["width"]) if {"height", "width"} <= value.keys() else None
    return Listed(value["id"], value["file_name"], size)


def _bad(path: Path, found: str, expected: str) -> DataError:
    return DataError(f"{path}: {found}", expected=expected)


def _check(path: Path, where: str, entry: Json, check: Check) -> None:
    try:
        check(entry)
    except schema.MisfitError as misfit:
        raise _bad(path, f"{where}: {misfit}", misfit.expected) from misfit


def _check_unique(path: Path, what: str, values: Sequence[object]) -> None:
    if len(set(values)) != len(values):
        value, times = Counter(values).most_common(1)[0]
        raise _bad(path, f"{what}: {value!r} stands {times} times", "each one once")


def _check_link(path: Path, field: str, given: NDArray[np.int64], known: Sequence[int]) -> None:
    unknown = given[~np.isin(given, known)]
    if len(unknown):
        raise _bad(
            path,
            f"{len(unknown)} annotations have a {field} that is not in {_LINKS[field]}, "
            f"e.g. {unknown[0]}",
            f"the {field} of an annotation to be the id of one of the {_LINKS[field]}",
        )
