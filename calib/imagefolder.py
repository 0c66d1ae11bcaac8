"""Images sorted into folders, one per class: `imagefolder:DIR`, `imagefolder:DIR,classes=FILE`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from deploykit.data import class_maps, images, listing
from deploykit.data.sources import Dataset, Sample, Source
from deploykit.errors import DataError, OptionError

if TYPE_CHECKING:
    from pathlib import Path

_ORDERS = ("text", "number")
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))


def _open(location: str) -> Dataset:
    """Return the images below the folders of `location`, folder by folder."""
    root, options = listing.location("imagefolder", location, ["classes", "order"])
    folders = _folders(root)
    if "classes" in options:
        if "order" in options:
            raise OptionError("classes and order together", fix="the class map has the order")
        return _mapped(location, root, folders, images.home(options["classes"]))
    ordered = _ordered(root, folders, options.get("order"))
    numbers = {name: number for number, name in enumerate(ordered)}
    return Dataset(f"imagefolder:{location}", _samples(root, numbers), dict(enumerate(ordered)))


def _folders(root: Path) -> list[str]:
    """Return the names of the folders in `root`, sorted. Raises: DataError where there is none."""
    try:
        found = sorted(p.name for p in root.iterdir() if p.is_dir() and p.name[0] != ".")
    except OSError as error:
        raise DataError(f"cannot list {root}: {error.strerror}") from error
    if not found:
        raise DataError(
            f"{root} has no folders, and the classes of its images are not known",
            expected="one folder per class, with the images of that class in it",
            fix="for ImageNet's validation images side by side: imagenet:DIR",
        )
    if set(found) <= _SPLITS:
        raise DataError(
            f"the folders of {root} are called {', '.join(found)}, which are parts of a data set",
            expected="one folder per class",
            fix=f"imagefolder:{root / found[-1]}",
        )
    return found


def _ordered(root: Path, folders: list[str], order: str | None) -> list[str]:
    """Return the folders in the order of the classes: as text, or as numbers where asked for.

    Raises: OptionError for folders called by numbers whose order nobody says.
    """
    if order not in (None, *_ORDERS):
        raise OptionError(f"imagefolder: order={order!r}", expected=" or ".join(_ORDERS))
    if not all(name.isascii() and name.isdecimal() for name in folders):
        if order == "number":
            raise OptionError(f"{root} has folders that are no numbers", fix="leave order out")
        return folders
    counted = sorted(folders, key=int)
    if counted != folders and order is None:
        raise OptionError(
            f"the folders of {root} are called by numbers: as text {folders[1]} comes second, as "
            f"numbers {counted[1]}",
            expected="order=text, as torchvision's ImageFolder trains, or order=number",
            fix=f"imagefolder:{root},order=number, or a class map: classes=FILE",
        )
    return counted if order == "number" else folders


def _mapped(location: str, root: Path, folders: list[str], file: Path) -> Dataset:
    """Return the images whose class a class map gives, by index or by name."""
    found = class_maps.read(file, folders)
    places = found.places
    missing = [name for name in folders if name not in places]
    if missing:
        raise DataError(
            f"{file} does not say which class {len(missing)} of {len(folders)} folders are, the "
            f"first one {missing[0]}",
            fix=f"add them to {file.name}, or leave these folders out",
        )
    names = list(dict.fromkeys(places.values()))
    numbers = {value: value if isinstance(value, int) else i for i, value in enumerate(names)}
    categories = {
        numbers[value]: name if isinstance(value, int) else value for name, value in places.items()
    }
    by_index = isinstance(names[0], int) and not found.is_list
    samples = _samples(root, {name: numbers[places[name]] for name in folders})
    return Dataset(f"imagefolder:{location}", samples, categories, by_index)


def _samples(root: Path, numbers: dict[str, int]) -> list[Sample]:
    """Return the images below each folder, with the id of its class."""
    found = [
        Sample(
            f"{folder}/{name}",
            partial(images.decode, root / folder / name),
            partial(int, number),
        )
        for folder, number in numbers.items()
        for name in listing.below(root / folder, least=0)
    ]
    if not found:
        raise DataError(f"the {len(numbers)} folders in {root} hold no images")
    return found


source = Source("imagefolder", "images in one folder per class", _open)
