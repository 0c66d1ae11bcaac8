"""ImageNet's validation images, by the layouts and label files that people have them in.

`imagenet:DIR`, or with `labels=FILE` and `synsets=FILE` where these lie elsewhere. Classes are in
the sorted order of their synsets, n01440764 first, as models are trained; the numbers of the
development kit are in another order and are translated.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from deploykit.data import class_maps, images, listing
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError, not_installed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

CLASSES = 1000
_FOLDERS = (
    *("val", "validation", "ILSVRC2012_img_val", "ILSVRC2012_val"),
    *("ILSVRC/Data/CLS-LOC/val", "Data/CLS-LOC/val", "."),
)
"""Where below DIR the images may lie."""
_LABELS = (
    *("LOC_val_solution.csv", "val.txt", "meta/val.txt", "ILSVRC2012_val_labels.json"),
    *("imagenet_2012_validation_synset_labels.txt", "ILSVRC/ImageSets/CLS-LOC/val.txt"),
    "ILSVRC2012_validation_ground_truth.txt",
    "data/ILSVRC2012_validation_ground_truth.txt",
    "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt",
)
_KIT = "ground_truth"
"""In the name of the development kit's labels, whose numbers follow its own list."""
_SYNSETS = (
    *("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt", "imagenet_synsets.txt"),
    *("imagenet_lsvrc_2015_synsets.txt", "imagenet_class_index.json", "caffe/synset_words.txt"),
)
_KIT_SYNSETS = ("meta.mat", "map_clsloc.txt")
"""Beside the development kit's labels."""
_SYNSET = re.compile(r"n\d{8}")
_WHAT = "a label for each image: a synset such as n01440764, or its place in their sorted order"


def _open(location: str) -> Dataset:
    """Return the images, each with the place of its class among the sorted synsets."""
    root, options = listing.location("imagenet", location, ["labels", "synsets"])
    folder = _image_folder(root)
    names = listing.below(folder)
    labels = images.home(options["labels"]) if "labels" in options else _first(root, _LABELS)
    found = _labels(names, labels)
    synsets = images.home(options["synsets"]) if "synsets" in options else _first(root, _SYNSETS)
    categories = _categories(set(found.values()), synsets)
    places = {name.partition(" ")[0]: i for i, name in categories.items()}
    numbers = [places[label] if isinstance(label, str) else label for label in found.values()]
    beyond = next((number for number in numbers if number not in categories), None)
    if beyond is not None:
        raise DataError(f"a label is {beyond}, and there are {len(categories)} classes")
    samples = [
        Sample(name, partial(images.decode, folder / name), partial(int, number))
        for name, number in zip(found, numbers, strict=True)
    ]
    return Dataset(f"imagenet:{location}", samples, categories)


def _image_folder(root: Path) -> Path:
    return next(folder for name in _FOLDERS if (folder := root / name).is_dir())


def _first(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first of these files that lies in a folder or the one above it."""
    found = (folder / name for folder in (root, root.parent) for name in names)
    return next((path for path in found if path.is_file()), None)


def _labels(names: Sequence[str], file: Path | None) -> dict[str, str | int]:
    """Return the label of each image: by its folder, its own name, or what a file says.

    Raises: DataError for an image without one.
    """
    told = {name: _SYNSET.findall(name) for name in names}
    if all(told.values()):
        return {name: found[-1] for name, found in told.items()}
    if file is None:
        bare = next(name for name, found in told.items() if not found)
        raise DataError(
            f"nothing says the class of {bare}",
            expected="a folder or a name with its synset (n01440764), or one of "
            + ", ".join(_LABELS[:7]),
            fix="imagenet:DIR,labels=FILE",
        )
    known = _told(names, file)
    missing = [name for name in names if _stem(name) not in known]
    if missing:
        raise DataError(
            f"{file} has no label for {len(missing)} of {len(names)} images, the first one "
            f"{missing[0]}",
            expected=_WHAT,
        )
    return {name: known[_stem(name)] for name in names}


def _stem(name: str) -> str:
    """Return the name of an image without folders and ending."""
    return name.rpartition("/")[2].partition(".")[0]


def _told(names: Sequence[str], file: Path) -> dict[str, str | int]:
    """Return name without ending -> label, of a file with one label a line or a name before it."""
    text = class_maps.text(file, _WHAT)
    if text.lstrip()[:1] == "{":
        said = class_maps.read(file).places
        return {_stem(name): label for name, label in said.items()}
    rows = [re.split(r"[\s,]+", line.strip(), maxsplit=2) for line in text.splitlines() if line]
    if all(len(row) == 1 for row in rows):
        rows = [[name, *row] for name, row in zip(_validation(names, len(rows)), rows, strict=True)]
    elif rows[0][0] == "ImageId":
        del rows[0]
    found = {_stem(row[0]): row[1] for row in rows if len(row) > 1}
    kit = _kit(file) if _KIT in file.name else None
    return {name: _label(file, label, kit) for name, label in found.items()}


def _validation(names: Sequence[str], count: int) -> Sequence[str]:
    """Return the images that `count` lines in order are about.

    Raises: DataError where they are not as many.
    """
    if len(names) == count:
        return names
    numbered = re.match(r"(.*?)(\d{8})\.", names[0])
    if numbered is None or count < len(names):
        raise DataError(
            f"{count} labels for {len(names)} images",
            expected="one line per image, in the order of their names",
        )
    return [f"{numbered[1]}{i:08d}" for i in range(1, count + 1)]


def _label(file: Path, text: str, kit: Mapping[int, str] | None) -> str | int:
    """Return a synset, or the place of one. Raises: DataError."""
    if _SYNSET.fullmatch(text):
        return text
    number = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else -1
    if kit is not None and number in kit:
        return kit[number]
    if kit is None and 0 <= number < CLASSES:
        return number
    raise DataError(
        f"{file}: the label {text[:40]!r}",
        expected=_WHAT,
        fix="numbers from 1 to 1000 are the development kit's: name the file as the kit does, "
        "ILSVRC2012_validation_ground_truth.txt, with meta.mat beside it",
    )


def _kit(labels: Path) -> dict[int, str]:
    """Return the development kit's own number -> synset. Raises: DataError, BackendError."""
    file = _first(labels.parent, _KIT_SYNSETS)
    if file is None:
        raise DataError(
            f"{labels} holds the development kit's numbers, which are in an order of their own",
            expected=" or ".join(_KIT_SYNSETS) + " beside it, which say the synset of each number",
        )
    if file.suffix == ".txt":
        rows = [line.split() for line in class_maps.text(file, "synsets").splitlines()]
        return {int(row[1]): row[0] for row in rows if len(row) > 1 and row[1].isdecimal()}
    return {number: synset for number, synset in _meta(file) if number <= CLASSES}


def _meta(file: Path) -> list[tuple[int, str]]:
    """Return number and synset of each entry of meta.mat."""
    try:
        from scipy import io  # noqa: PLC0415 - an optional package
    except ImportError as error:
        raise not_installed("reading meta.mat", error.name) from error
    try:
        entries: Any = io.loadmat(file, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return [(int(entry[0]), str(entry[1])) for entry in entries]
    except Exception as error:
        raise DataError(
            f"cannot read {file}: {error}", expected="the development kit's list of synsets"
        ) from error


def _categories(labels: set[str | int], file: Path | None) -> dict[int, str]:
    """Return the place of each class -> its synset, and its words where they are known."""
    if file is None:
        synsets = sorted(label for label in labels if isinstance(label, str))
        return dict(enumerate(synsets or map(str, range(CLASSES))))
    if file.suffix == ".json":
        said = class_maps.read(file).places
        return {int(place): synset for synset, place in sorted(said.items())}
    lines = (line.strip() for line in class_maps.text(file, "synsets").splitlines())
    known = dict(enumerate(sorted(line for line in lines if line)))
    unknown = sorted(
        {label for label in labels if isinstance(label, str)}
        - {line.partition(" ")[0] for line in known.values()}
    )
    if unknown:
        raise DataError(f"{file} does not have the synset {unknown[0]} of a label")
    return known


source = Source("imagenet", "ImageNet's validation images with their labels", _open)
