"""ADE20K's scene parsing set, and sets in its layout: `ade:DIR`, `ade:DIR,zero=class,...`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from deploykit.data import class_maps, images, label_images, listing, palettes
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError, OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.data.palettes import Palette

_LAYOUTS = (("images", "annotations"), ("img_dir", "ann_dir"), ("images", "labels"))
"""Folders of the images and of the label maps, each with a folder per split."""
_HELD_OUT = ("validation", "val", "valid")
_OBJECTS = "objectInfo150.txt"
_IGNORED = 255
_ZERO = ("ignore", "class")


def _open(location: str) -> Dataset:
    """Return the images of a split with their label maps."""
    root, options = listing.location("ade", location, ["split", "classes", "zero", "colours"])
    zero = options.get("zero", "ignore")
    if zero not in _ZERO:
        raise OptionError(f"ade: zero={zero!r}", expected=" or ".join(_ZERO))
    pictures, labels = _folders(root, options.get("split"))
    found = listing.stems(labels)
    names = listing.below(pictures)
    missing = [name for name in names if listing.stem(name) not in found]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} images have no label map in {labels}, the first one "
            f"{missing[0]}",
            expected="a PNG of the same name for each image",
        )
    palette, first = None, int(zero == "ignore")
    if "colours" in options:
        palette = palettes.read(images.home(options["colours"]), first)
    read = _unlabelled_zero if first else partial(label_images.decode, always=True)
    samples = [
        Sample(
            name,
            partial(images.decode, pictures / name),
            partial(read, labels / found[listing.stem(name)], palette),
        )
        for name in names
    ]
    drawn = palette is not None and "classes" not in options
    classes = palette.names if drawn and palette else _names(root, options.get("classes"))
    return Dataset(f"ade:{location}", samples, dict(enumerate(classes, start=first)))


def _folders(root: Path, split: str | None) -> tuple[Path, Path]:
    """Return the folders of images and of label maps of a split. Raises: DataError."""
    splits = (split,) if split else _HELD_OUT
    known = [
        (root / pictures / name, root / labels / name)
        for pictures, labels in _LAYOUTS
        for name in splits
    ]
    found = next((pair for pair in known if pair[0].is_dir() and pair[1].is_dir()), None)
    if found is None:
        there = sorted(p.name for top, _ in _LAYOUTS for p in (root / top).glob("*") if p.is_dir())
        raise DataError(
            f"{root} has no images and label maps of the split {' or '.join(splits)}",
            expected=" or ".join(f"{a}/SPLIT with {b}/SPLIT" for a, b in _LAYOUTS),
            fix="choose one: split=" + " or ".join(dict.fromkeys(there)) if there else "",
        )
    return found


def _unlabelled_zero(path: Path, palette: Palette | None = None) -> NDArray[np.int32]:
    """Return the ids of a label map in which 0 means that a pixel has none."""
    ids = label_images.decode(path, palette, always=True).astype(np.int32)
    ids[ids == 0] = _IGNORED
    return ids


def _names(root: Path, file: str | None) -> Sequence[str]:
    """Return the names of the classes: of the file given, else of ADE20K's own table.

    Raises: DataError where there is neither.
    """
    if file is not None:
        lines = class_maps.text(images.home(file), "class names, one per line").splitlines()
        return [line.strip() for line in lines if line.strip()]
    table = root / _OBJECTS
    if not table.is_file():
        raise DataError(
            f"{root} has no {_OBJECTS}, and the classes are not known",
            expected=f"ADE20K's {_OBJECTS}, or class names in a file of your own, one per line",
            fix=f"ade:{root},classes=FILE; zero=class where 0 is a class and not 'no label'",
        )
    rows = [line.split("\t") for line in class_maps.text(table, "ADE20K's table").splitlines()]
    return [row[-1].partition(",")[0].strip() for row in rows if row[0].strip().isdecimal()]


source = Source("ade", "images with label maps in ADE20K's layout", _open)
