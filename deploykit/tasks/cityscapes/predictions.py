"""Predictions in the files that Cityscapes' benchmarks take: official ids, one set per scene."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from deploykit.errors import DataError
from deploykit.files import artifacts
from deploykit.tasks import categories, coco_rows
from deploykit.tasks.cityscapes import labels, pixels
from deploykit.tasks.detections import Detections
from deploykit.tasks.semantic import LabelMap

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Size = tuple[int, int]

_MASKS = "masks"
"""Folder of the masks beside the lists of objects."""
_INSIDE = 255


def write_pixels(folder: Path, name: str, result: object, classes: Sequence[str]) -> None:
    """Write a label map, `NAME_labelIds.png`: grey levels are official ids.

    Raises: DataError for another result, ModelError for classes without a name; OutputError.
    """
    if not isinstance(result, LabelMap):
        raise _other(result, "a label map", "instance")
    ids = pixels.official(categories.match(labels.CLASSES, classes))
    _save(artifacts.made(folder) / f"{name}_labelIds.png", pixels.of_classes(result, ids))


def write_objects(
    folder: Path, name: str, result: object, size: Size, classes: Sequence[str]
) -> None:
    """Write the objects of the 8 classes, `NAME_pred.txt`: mask file, official id and score each.

    Masks are `masks/NAME_NUMBER.png`, 255 inside; objects without a pixel are left out. size: H
    and W of the image. Raises: as `write_pixels`.
    """
    if not isinstance(result, Detections) or (result.masks is None and len(result.boxes)):
        raise _other(result, "objects with masks", "semantic")
    ids = coco_rows.ids(categories.match(labels.THINGS, classes))
    known = coco_rows.known(result, ids)
    artifacts.made(folder / _MASKS)
    rows = zip(known.areas(size), known.scores.tolist(), known.classes.tolist(), strict=True)
    lines = []
    for number, ((top, left, mask), score, place) in enumerate(rows):
        if mask.any():
            file = f"{_MASKS}/{name}_{number:03d}.png"
            whole = np.zeros(size, np.uint8)
            whole[top : top + mask.shape[0], left : left + mask.shape[1]] = mask * _INSIDE
            _save(folder / file, whole)
            lines.append(f"{file} {ids[place]} {score!r}\n")
    artifacts.write_text(folder / f"{name}_pred.txt", "".join(lines))


def _other(result: object, expected: str, truth: str) -> DataError:
    return DataError(
        f"the model finds {type(result).__name__}, and the benchmark takes another form",
        expected=expected,
        fix=f"for this model: truth={truth}",
    )


def _save(path: Path, image: NDArray[np.uint8]) -> None:
    with artifacts.replacing(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG")
