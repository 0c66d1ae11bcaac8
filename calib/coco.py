"""Images with COCO annotations: `coco:DIR`, or `coco:IMAGES,annotations=FILE`."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deploykit.data import images, listing
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError, OptionError
from deploykit.files import elements, paths, schema
from deploykit.tasks.annotation_checks import COCO
from deploykit.tasks.annotations import ImageAnnotations

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.files.elements import Element
    from deploykit.values import Json

_PREFIX = "instances_"
_ROBOFLOW = "_annotations.coco.json"
"""Roboflow's exports keep this file among the images."""
_LAYOUTS = ("{split}", "images/{split}", "images", ".")
"""Where below DIR the images of annotations/instances_{split}.json may lie."""


def _open(location: str) -> Dataset:
    """Return the images that the annotation file lists, in its order."""
    root, named = _parsed(location)
    file = named or _only_annotations(root)
    index = _read(file)
    names = [image.name for image in index.images]
    folder = root if named else _image_folder(root, file, names[0])
    _require_files(folder, names)
    samples = [
        Sample(image.name, partial(images.decode, folder / image.name), partial(index.truth, image))
        for image in index.images
    ]
    return Dataset(f"coco:{location}", samples, index.categories, used=index.used)


class _Image(NamedTuple):
    """One entry of the list of images."""

    number: int
    name: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class _Index:
    """Where in the file the annotations of each image stand: they are read one image at a time."""

    path: Path
    images: list[_Image]
    categories: dict[int, str]
    owners: NDArray[np.int64]
    """int64[N]: of each annotation its image's id, in rising order."""
    spans: NDArray[np.int64]
    """int64[N, 2]: its first byte, and the byte behind it."""
    used: frozenset[int]
    """Ids of the categories that annotations have."""

    def truth(self, image: _Image) -> ImageAnnotations:
        """Return what the file says about an image. Raises: DataError where it has changed."""
        low, high = np.searchsorted(self.owners, [image.number, image.number + 1]).tolist()
        try:
            found = elements.parse(self.path, self.spans[low:high].tolist())
            annotations = tuple(map(_completed, found))
        except (OSError, ValueError, TypeError, AttributeError, KeyError) as error:
            raise DataError(
                f"cannot read the annotations of {image.name} in {self.path}: {error}",
                fix="leave the file as it is while it is in use",
            ) from error
        return ImageAnnotations(image.number, annotations, image.size)


def _completed(annotation: Json) -> Json:
    """Return an annotation with what it may leave out: no crowd, and the area of its box."""
    annotation.setdefault("iscrowd", 0)
    annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return annotation


def _parsed(location: str) -> tuple[Path, Path | None]:
    """Return the folder and, where it is given, the annotation file."""
    root, options = listing.location("coco", location, ["annotations"])
    file = options.get("annotations")
    return root, None if file is None else images.home(file)


def _only_annotations(root: Path) -> Path:
    found = sorted((root / "annotations").glob(_PREFIX + "*.json")) or [
        path for path in [root / _ROBOFLOW] if path.is_file()
    ]
    held_out = [path for path in found if "val" in path.stem]
    if not found:
        raise DataError(
            f"{root} has no annotations",
            expected=f"annotations/{_PREFIX}*.json or {_ROBOFLOW} in it",
            fix="name the file: coco:IMAGES,annotations=FILE",
        )
    if len(found) > 1 and len(held_out) != 1:
        raise OptionError(
            f"{root} has several annotation files: " + ", ".join(path.name for path in found),
            fix="choose one: coco:IMAGES,annotations=FILE",
        )
    return found[0] if len(found) == 1 else held_out[0]


def _image_folder(root: Path, annotations: Path, first: str) -> Path:
    """Return the folder that holds the first listed image, by the known layouts."""
    split = annotations.stem.removeprefix(_PREFIX)
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


def _require_files(folder: Path, names: list[str]) -> None:
    known = {
        os.path.relpath(os.path.join(parent, name), folder)  # noqa: PTH118 - many files, in a hurry
        for parent, files in _folders(folder)
        for name in files
    }
    missing = [name for name in names if os.path.normpath(name) not in known]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} listed images are not in {folder}, "
            f"the first one {missing[0]}",
            fix="fetch the missing files, or remove their entries from the annotation file",
        )


_LINKS = {"image_id": "images", "category_id": "categories"}
"""Field of an annotation -> the list whose ids it refers to."""


def _read(path: Path) -> _Index:
    """Return the checked content of `path`, without the annotations themselves."""
    found: dict[str, list[Any]] = {}
    paths.require_file(path, "a COCO instances file", DataError)
    try:
        for element in elements.elements(path):
            entries = found.setdefault(element.key, [])
            if element.key in COCO and element.end > element.start:
                entries.append(_entry(path, element, len(entries)))
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}", expected="a COCO instances file") from error
    for key in COCO:
        if key not in found:
            raise _bad(path, f"no list of {key}", "a COCO instances file")
    pictures: list[_Image] = found["images"]
    if not pictures:
        raise _bad(path, "an empty list of images", "at least one image")
    categories: list[tuple[int, str]] = found["categories"]
    _check_unique(path, "id in images", [image.number for image in pictures])
    _check_unique(path, "file_name in images", [image.name for image in pictures])
    _check_unique(path, "id in categories", [number for number, _ in categories])
    places = np.array(found["annotations"], np.int64).reshape(-1, 4)
    _check_link(path, "image_id", places[:, 0], [image.number for image in pictures])
    _check_link(path, "category_id", places[:, 1], [number for number, _ in categories])
    order = np.argsort(places[:, 0], kind="stable")
    used = frozenset(np.unique(places[:, 1]).tolist())
    return _Index(path, pictures, dict(categories), places[order, 0], places[order, 2:], used)


def _entry(path: Path, element: Element, number: int) -> Any:  # noqa: ANN401 - one form per list
    """Return what is kept of an entry; of an annotation only where it stands."""
    key = element.key
    if not isinstance(element.value, dict):
        raise _bad(path, f"no list of {key}: {key}[{number}] is no object", "a COCO instances file")
    value = element.value
    if not all(text.isascii() for text in value.values() if isinstance(text, str)):
        (value,) = elements.parse(path, [(element.start, element.end)])
    _check(path, f"{key}[{number}]", value, key)
    if key == "annotations":
        return value["image_id"], value["category_id"], element.start, element.end
    if key == "categories":
        return value["id"], value["name"]
    size = (value["height"], value["width"]) if {"height", "width"} <= value.keys() else None
    return _Image(value["id"], value["file_name"], size)


def _bad(path: Path, found: str, expected: str) -> DataError:
    return DataError(f"{path}: {found}", expected=expected)


def _check(path: Path, where: str, entry: Json, key: str) -> None:
    try:
        COCO[key](entry)
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


source = Source("coco", "images with a COCO instances file", _open)
