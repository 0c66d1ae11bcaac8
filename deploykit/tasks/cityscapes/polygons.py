"""Cityscapes' annotations as polygons, and the maps of ids that they become."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from deploykit.data import images
from deploykit.errors import DataError, unknown_name
from deploykit.files import jsonfile, schema
from deploykit.files.schema import many, number, record, row, whole
from deploykit.tasks.cityscapes import labels

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.values import Json

Points: TypeAlias = "Sequence[tuple[float, float]]"
"""x and y in pixels."""
_GROUP = "group"
"""What stands behind a label's name where objects could not be told apart."""
_FAR = 1e5
"""Pixels: no corner is farther from an image."""
_SIDE = whole(1, images.PIXELS)
_OBJECT = record(
    {
        "label": schema.text(least=1, most=256),
        "polygon": many(row(number(-_FAR, _FAR), number(-_FAR, _FAR)), least=2),
    },
    {"deleted": schema.one_of(0, 1)},
    others=True,
)
_FILE = record(
    {"imgHeight": _SIDE, "imgWidth": _SIDE, "objects": many(_OBJECT, most=100_000)}, others=True
)
WHAT = "Cityscapes' polygons: imgHeight, imgWidth and objects"


@dataclass(frozen=True)
class Polygons:
    """What one image shows: later polygons cover earlier ones."""

    height: int
    width: int
    objects: Sequence[tuple[str, Points]]
    """Label and outline of each; `cargroup` is a group of cars."""

    def to_json(self) -> Json:
        """Return it as Cityscapes' files have it."""
        rows: list[Json] = [
            {"label": label, "polygon": [list(point) for point in outline]}
            for label, outline in self.objects
        ]
        return {"imgHeight": self.height, "imgWidth": self.width, "objects": rows}


def read(path: Path) -> Polygons:
    """Return the polygons in a file. Raises: DataError naming file, place and value."""
    data: Any = jsonfile.read(path, _FILE, WHAT, error=DataError)
    if data["imgHeight"] * data["imgWidth"] > images.PIXELS:
        raise DataError(
            f"{path}: an image of {data['imgWidth']}x{data['imgHeight']} pixels",
            expected=f"at most {images.PIXELS} pixels, as 8192x8192 has",
        )
    kept = [one for one in data["objects"] if not one.get("deleted", 0)]
    for one in kept:
        _label(one["label"], path.name)
    objects = [(one["label"], [(x, y) for x, y in one["polygon"]]) for one in kept]
    return Polygons(data["imgHeight"], data["imgWidth"], objects)


def _label(name: str, where: str = "") -> tuple[labels.Label | None, bool]:
    """Return the label of a name, None for the one that is not drawn, and whether it is a group.

    Raises: DataError for an unknown name.
    """
    if name == labels.PLATE:
        return None, False
    if name in labels.BY_NAME:
        return labels.BY_NAME[name], False
    single = name.removesuffix(_GROUP)
    if single == labels.PLATE:
        return None, True
    if single == name or single not in labels.BY_NAME:
        error = unknown_name(
            f"label of Cityscapes{f' in {where}' if where else ''}",
            name,
            [*labels.BY_NAME, labels.PLATE],
        )
        raise DataError(error.found, expected=error.expected, fix=error.fix)
    return labels.BY_NAME[single], True


def instances(polygons: Polygons) -> NDArray[np.int32]:
    """Return the map of instances, int32[H, W], as the set's own scripts draw it.

    An object's number is its place among those of its label; groups get the label's id alone.
    Raises: DataError for an unknown label.
    """
    drawn = Image.new("I", (polygons.width, polygons.height), 0)
    pen, seen = ImageDraw.Draw(drawn), Counter[str]()
    for name, outline in polygons.objects:
        label, is_group = _label(name)
        if label is None:
            continue
        value = label.number
        if label.instances and not is_group:
            value = value * labels.GROUPED + seen[label.name]
            seen[label.name] += 1
        pen.polygon([(x, y) for x, y in outline], fill=value)
    return np.asarray(drawn).astype(np.int32)
