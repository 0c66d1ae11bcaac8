"""Cityscapes, and sets in its layout: `cityscapes:DIR`, `cityscapes:DIR,truth=instance`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from deploykit.data import images, listing
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError, unknown_name
from deploykit.tasks.cityscapes import benchmarks, distances, labels, truth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.data.sources import Benchmark
    from deploykit.tasks.cityscapes.truth import Files

Truth: TypeAlias = Literal["semantic", "instance", "objects"]
_IMAGES, _KIND = "leftImg8bit", "leftImg8bit"
_QUALITIES: Mapping[str, str] = {"fine": "gtFine", "coarse": "gtCoarse"}
_NAME = re.compile(r"(?P<core>[^_/]+_[0-9]+_[0-9]+)_(?P<kind>[^/]+)")
_EXPECTED = f"CITY_SEQUENCE_FRAME_{_KIND}.png, such as ulm_000001_000019_{_KIND}.png"
_ENDINGS = {
    "labels": "_labelIds.png",
    "instances": "_instanceIds.png",
    "polygons": "_polygons.json",
    "train": "_labelTrainIds.png",
}
"""Field of `Files` -> what a file's name has behind gtFine or gtCoarse."""
_NEEDED: Mapping[Truth, tuple[str, ...]] = {
    "semantic": ("labels", "polygons", "train", "instances"),
    "instance": ("instances", "polygons"),
    "objects": ("instances", "polygons"),
}
_OPTIONS = ("split", "quality", "truth", "distances")
_NO_TRUTH = "test"
"""A split that is published without labels."""


def _open(location: str) -> Dataset:
    """Return the images of a split with their labels."""
    root, options = listing.location("cityscapes", location, _OPTIONS)
    wanted, quality = options.get("truth", "semantic"), options.get("quality", "fine")
    for key, value, known in (("truth", wanted, get_args(Truth)), ("quality", quality, _QUALITIES)):
        if value not in known:
            raise unknown_name(f"{key} of cityscapes", value, known)
    split = options.get("split", "val")
    pictures = _pictures(_split(root / _IMAGES, split))
    known_truth = _truths(root, _QUALITIES[quality], split)
    kind = next(each for each in get_args(Truth) if each == wanted)
    if known_truth is not None:
        _check_complete(pictures, known_truth, _NEEDED[kind], root / _QUALITIES[quality] / split)
        known_truth = _with_distances(known_truth, options.get("distances"))
    samples = [
        Sample(
            core,
            partial(images.decode, path),
            None if known_truth is None else partial(_READ[kind], number, known_truth[core]),
        )
        for number, (core, path) in enumerate(sorted(pictures.items()), start=1)
    ]
    classes = labels.CLASSES if kind == "semantic" else labels.THINGS
    return Dataset(f"cityscapes:{location}", samples, classes, benchmark=_BENCHMARKS[kind])


def _split(folder: Path, split: str) -> Path:
    """Return the folder of a split. Raises: DataError, OptionError naming those that are there."""
    if not folder.is_dir():
        raise DataError(
            f"{folder.parent} has no {folder.name}",
            expected=f"Cityscapes' folders: {_IMAGES}/SPLIT/CITY and gtFine/SPLIT/CITY",
            fix=f"name the folder that holds {_IMAGES}",
        )
    found = sorted(path.name for path in folder.iterdir() if path.is_dir())
    if split not in found:
        raise unknown_name(f"split of {folder}", split, found)
    return folder / split


def _pictures(folder: Path) -> dict[str, Path]:
    """Return the image of each scene, by city, sequence and frame. Raises: DataError."""
    found: dict[str, Path] = {}
    for name in listing.below(folder):
        path = folder / name
        match = _NAME.fullmatch(path.stem)
        if match is None or match["kind"] != _KIND:
            raise DataError(
                f"{path} is not named as Cityscapes names images",
                expected=_EXPECTED,
                fix=_twice(path) or "rename the file, or take it out of the folder",
            )
        if match["core"] in found:
            raise DataError(
                f"{path} and {found[match['core']]} are one scene", fix="take one of them out"
            )
        found[match["core"]] = path
    return found


def _twice(path: Path) -> str:
    """Return what to do where a file's ending stands twice, as a wrong pattern makes it."""
    right = Path(path.stem)
    return f"rename it to {right}" if right.suffix and right.suffix == path.suffix else ""


def _truths(root: Path, quality: str, split: str) -> dict[str, Files] | None:
    """Return the files that say what each scene shows; None for a test split without any.

    Raises: DataError, OptionError.
    """
    if split == _NO_TRUTH and not (root / quality / split).is_dir():
        return None
    folder = _split(root / quality, split)
    found: dict[str, dict[str, Any]] = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if _twice(path):
                raise DataError(
                    f"{path} has its ending twice",
                    expected=f"CITY_SEQUENCE_FRAME_{quality}{_ENDINGS['labels']}",
                    fix=_twice(path),
                )
            match = _NAME.fullmatch(name)
            for field, ending in _ENDINGS.items():
                if match is not None and match["kind"] == quality + ending:
                    found.setdefault(match["core"], {})[field] = path
    return {core: truth.Files(**paths) for core, paths in found.items()}


def _with_distances(known: dict[str, Files], file: str | None) -> dict[str, Files]:
    """Return the files of each scene with the distances of its objects, where a file has them.

    Raises: DataError where it lacks a scene.
    """
    if file is None:
        return known
    told = distances.read(images.home(file))
    missing = sorted(known.keys() - told.keys())
    if missing:
        raise DataError(
            f"{file} has no distances for {len(missing)} of {len(known)} scenes, the first one "
            f"{missing[0]}",
            expected="the objects of each scene",
        )
    return {core: replace(files, distances=told[core]) for core, files in known.items()}


def _check_complete(
    pictures: Mapping[str, Path],
    known: Mapping[str, Files],
    needed: Sequence[str],
    folder: Path,
) -> None:
    """Check that each image has a truth, and each truth an image. Raises: DataError."""
    names = " or ".join(f"*{_ENDINGS[field]}" for field in needed)
    told = {core for core, files in known.items() if any(getattr(files, f) for f in needed)}
    without = sorted(pictures.keys() - told)
    if without:
        raise DataError(
            f"{len(without)} of {len(pictures)} images have no {names} in {folder}, the first one "
            f"{without[0]}",
            expected=f"a file for each image, such as {without[0]}_{folder.parent.name}"
            f"{_ENDINGS[needed[0]]}",
        )
    alone = sorted(known.keys() - pictures.keys())
    if alone:
        raise DataError(
            f"{len(alone)} label maps in {folder} have no image in {_IMAGES}, the first one "
            f"{alone[0]}",
            expected="the images of the whole split: scores of a part are others",
            fix="fetch the missing images, or take these label maps out",
        )


def _pixels(number: int, files: Files) -> truth.StreetTruth:
    del number
    return truth.read(files)


def _instances(number: int, files: Files) -> truth.StreetTruth:
    del number
    return truth.read(replace(files, labels=None, train=None))


def _objects(number: int, files: Files) -> object:
    return truth.coco_objects(number, _instances(number, files))


_READ: Mapping[Truth, Callable[[int, Files], object]] = {
    "semantic": _pixels,
    "instance": _instances,
    "objects": _objects,
}
_BENCHMARKS: Mapping[Truth, Benchmark | None] = {
    "semantic": benchmarks.PixelBenchmark(),
    "instance": benchmarks.ObjectBenchmark(),
    "objects": None,
}

source = Source("cityscapes", "street scenes in Cityscapes' layout", _open)
