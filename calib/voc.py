"""Pascal VOC's semantic segmentation, and sets in its layout: `voc:DIR`, `voc:DIR,split=train`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from deploykit.data import class_maps, images, label_images, listing, palettes
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError, OptionError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deploykit.data.palettes import Palette

NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
_IMAGES, _LABELS, _SPLITS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
_NAMED = "class_names.txt"
"""Of labelme's exports: one name per line, the first for pixels that do not count."""
_COLOURS = "labelmap.txt"
"""Of CVAT's exports: a name and a colour in each line."""


def _open(location: str) -> Dataset:
    """Return the images of a split that have label maps."""
    root, options = listing.location("voc", location, ["split", "labels", "classes", "colours"])
    root = _year(root)
    labels = root / options.get("labels", _LABELS)
    if not labels.is_dir():
        raise DataError(f"{root} has no {labels.name}", expected=f"{_IMAGES}, {_LABELS}, {_SPLITS}")
    names, palette, said = _classes(root, options)
    samples = []
    found = listing.stems(root / _IMAGES)
    for stem in _split(root, labels, options.get("split")):
        if stem not in found:
            raise DataError(f"{root / _IMAGES} has no image {stem}", fix="fetch the missing files")
        truth = partial(label_images.decode, labels / f"{stem}.png", palette, always=said)
        samples.append(Sample(stem, partial(images.decode, root / _IMAGES / found[stem]), truth))
    return Dataset(f"voc:{location}", samples, names)


def _year(root: Path) -> Path:
    """Return the folder with the images: DIR, or the only year in it or in its VOCdevkit.

    Raises: DataError where there is none; OptionError where there are several.
    """
    for folder in (root, root / "VOCdevkit"):
        if (folder / _IMAGES).is_dir():
            return folder
        years = sorted(path.parent for path in folder.glob(f"*/{_IMAGES}"))
        if len(years) > 1:
            raise OptionError(
                f"{folder} has several sets: " + ", ".join(path.name for path in years),
                fix=f"choose one: voc:{years[-1]}",
            )
        if years:
            return years[0]
    raise DataError(f"{root} has no {_IMAGES}", expected=f"{_IMAGES}, {_LABELS} and {_SPLITS}")


def _split(root: Path, labels: Path, wanted: str | None) -> list[str]:
    """Return the names of a split's images, `val` by default; all where there are no splits."""
    folder = root / _SPLITS
    known = {path.stem: path for path in sorted(folder.glob("*.txt"))} if folder.is_dir() else {}
    if not known and wanted is None:
        return sorted(path.stem for path in labels.glob("*.png"))
    name = wanted or "val"
    if name not in known:
        raise unknown_name(f"split of {root.name}", name, known)
    lines = class_maps.text(known[name], "the names of images, one per line").splitlines()
    return [line.strip() for line in lines if line.strip()]


def _classes(root: Path, options: Mapping[str, str]) -> tuple[dict[int, str], Palette, bool]:
    """Return id -> name, the colours of the ids, and whether these were said: CVAT writes a file.

    Raises: DataError.
    """
    file = images.home(options["colours"]) if "colours" in options else root / _COLOURS
    if "colours" not in options and not file.is_file():
        names = _names(root, options.get("classes"))
        return names, palettes.voc(len(names)), False
    palette = palettes.read(file)
    names = dict(enumerate(palette.names))
    return (_names(root, options["classes"]) if "classes" in options else names), palette, True


def _names(root: Path, file: str | None) -> dict[int, str]:
    """Return id -> name: of the file given, of labelme's own, else VOC's."""
    path = images.home(file) if file else root / _NAMED
    if file is None and not path.is_file():
        return dict(enumerate(NAMES))
    lines = class_maps.text(path, "class names, one per line").splitlines()
    names = [line.strip() for line in lines if line.strip() and line.strip() != palettes.IGNORE]
    return dict(enumerate(names))


source = Source("voc", "images with label maps in Pascal VOC's layout", _open)
