"""Images with COCO annotations: `coco:DIR`, or `coco:IMAGES,annotations=FILE`."""

from __future__ import annotations

import math
import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from deploykit.data import images
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError, InputError, OptionError, unknown_name
from deploykit.files import artifacts

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.values import Json

_PREFIX = "instances_"
_ROBOFLOW = "_annotations.coco.json"
"""Roboflow's exports keep this file among the images."""
_SHOWN = 80
"""Characters of a wrong value that a message shows."""
_LAYOUTS = ("{split}", "images/{split}", "images", ".")
"""Where below DIR the images of annotations/instances_{split}.json may lie."""


def _open(location: str) -> Dataset:
    """Return the images that the annotation file lists, in its order."""
    root, named = _parsed(location)
    annotations = named or _only_annotations(root)
    names = [str(image["file_name"]) for image in _read(annotations)["images"]]
    folder = root if named else _image_folder(root, annotations, names[0])
    _require_files(folder, names)
    samples = [Sample(name, partial(images.decode, folder / name)) for name in names]
    # The annotations are read again when they are wanted: they can be much larger than the names.
    return Dataset(f"coco:{location}", samples, truth=partial(_read, annotations))


def _parsed(location: str) -> tuple[Path, Path | None]:
    """Return the folder and, where it is given, the annotation file."""
    text, comma, option = location.partition(",")
    root = images.folder(text)
    if not comma:
        return root, None
    key, _, file = option.partition("=")
    if key.strip() != "annotations":
        raise unknown_name("option of coco", key.strip(), ["annotations"])
    return root, Path(file.strip()).expanduser()


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


def _require_files(folder: Path, names: list[str]) -> None:
    known = {
        os.path.relpath(os.path.join(parent, name), folder)  # noqa: PTH118 - many files, in a hurry
        for parent, _, files in os.walk(folder, followlinks=True)
        for name in files
    }
    missing = [name for name in names if os.path.normpath(name) not in known]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} listed images are not in {folder}, "
            f"the first one {missing[0]}",
            fix="fetch the missing files, or remove their entries from the annotation file",
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def _is_box(value: object) -> bool:
    """Tell whether `value` is [x, y, width, height]; x and y may lie outside the image."""
    return (
        isinstance(value, list)
        and len(value) == 4
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
        and min(value[2:]) >= 0
    )


def _is_segmentation(value: object) -> bool:
    """Tell whether `value` is polygons (x, y, x, y, ...) or run lengths."""
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        if not isinstance(size, list) or len(size) != 2 or not all(map(_is_whole, size)):
            return False
        if isinstance(counts, list):
            return all(map(_is_whole, counts)) and sum(counts) == size[0] * size[1]
        return isinstance(counts, str)
    return isinstance(value, list) and all(
        isinstance(polygon, list)
        and len(polygon) >= 6
        and len(polygon) % 2 == 0
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in polygon)
        for polygon in value
    )


def _are_keypoints(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) % 3 == 0
        and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
    )


_Check: TypeAlias = "tuple[Callable[[object], bool], str]"
_WHOLE: _Check = (_is_whole, "an integer")
_TEXT: _Check = (_is_text, "a text")
_FIELDS: dict[str, dict[str, _Check]] = {
    "images": {"id": _WHOLE, "file_name": _TEXT},
    "annotations": {
        "image_id": _WHOLE,
        "category_id": _WHOLE,
        "bbox": (_is_box, "[x, y, width, height]"),
        "area": (_is_size, "a number of pixels"),
        "iscrowd": (_is_whole, "0 or 1"),
    },
    "categories": {"id": _WHOLE, "name": _TEXT},
}
_OPTIONAL: dict[str, dict[str, _Check]] = {
    "images": {"height": _WHOLE, "width": _WHOLE},
    "annotations": {
        "segmentation": (_is_segmentation, "polygons [[x, y, ...]] or run lengths of the image"),
        "keypoints": (_are_keypoints, "[x, y, visibility, ...]"),
        "num_keypoints": _WHOLE,
    },
    "categories": {},
}
_LINKS = {"image_id": "images", "category_id": "categories"}
"""Field of an annotation -> the list whose ids it refers to."""


def _read(path: Path) -> Json:
    """Return the checked COCO object in `path`; an absent area is the box's, iscrowd 0."""
    try:
        truth = artifacts.read_json(path)
    except InputError as error:
        raise DataError(error.found, expected=error.expected) from error
    for key in _FIELDS:
        if not isinstance(truth.get(key), list) or not all(isinstance(e, dict) for e in truth[key]):
            raise _bad(path, f"no list of {key}", "a COCO instances file")
    if not truth["images"]:
        raise _bad(path, "an empty list of images", "at least one image")
    for annotation in truth["annotations"]:
        annotation.setdefault("iscrowd", 0)
        if _is_box(annotation.get("bbox")):
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    for key, fields in _FIELDS.items():
        _check_fields(path, key, truth[key], fields)
    for key, field in (("images", "id"), ("images", "file_name"), ("categories", "id")):
        _check_unique(path, f"{field} in {key}", [entry[field] for entry in truth[key]])
    for field, key in _LINKS.items():
        _check_link(path, truth, field, key)
    return truth


def _bad(path: Path, found: str, expected: str) -> DataError:
    return DataError(f"{path}: {found}", expected=expected)


def _check_fields(path: Path, key: str, entries: list[Json], fields: dict[str, _Check]) -> None:
    for number, entry in enumerate(entries):
        absent = next((field for field in fields if field not in entry), None)
        if absent is not None:
            raise _bad(path, f"{key}[{number}] has no {absent!r}", fields[absent][1])
        for field, (is_good, expected) in {**fields, **_OPTIONAL[key]}.items():
            if field in entry and not is_good(entry[field]):
                found = repr(entry[field])[:_SHOWN]
                raise _bad(path, f"{key}[{number}] has {field} {found}", expected)


def _check_unique(path: Path, what: str, values: list[object]) -> None:
    if len(set(values)) != len(values):
        value, times = Counter(values).most_common(1)[0]
        raise _bad(path, f"{what}: {value!r} stands {times} times", "each one once")


def _check_link(path: Path, truth: Json, field: str, key: str) -> None:
    known = {entry["id"] for entry in truth[key]}
    unknown = [a[field] for a in truth["annotations"] if a[field] not in known]
    if unknown:
        raise _bad(
            path,
            f"{len(unknown)} annotations have a {field} that is not in {key}, e.g. {unknown[0]}",
            f"the {field} of an annotation to be the id of one of the {key}",
        )


source = Source("coco", "images with a COCO instances file", _open)
