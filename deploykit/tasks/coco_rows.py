"""The objects found in one image as the rows that faster-coco-eval takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.tasks.categories import Match
    from deploykit.tasks.detections import Detections

    Doubles: TypeAlias = NDArray[np.float64]

UNKNOWN = int(np.iinfo(np.int64).min)
"""Id of a class that the truth does not have."""


def ids(match: Match) -> NDArray[np.int64]:
    """Return int64[classes]: the truth's category id of each class of the model."""
    found = np.full(len(match.classes), UNKNOWN, np.int64)
    for number, i in match.indices.items():
        found[i] = number
    return found


def known(found: Detections, ids: NDArray[np.int64]) -> Detections:
    """Return the objects of classes that the truth has. Raises: ModelError for an unknown class."""
    classes = np.asarray(found.classes)
    if classes.size and not (classes.min() >= 0 and classes.max() < len(ids)):
        raise ModelError(
            f"the model found an object of class {classes.max()}",
            expected=f"a class from 0 to {len(ids) - 1}, one of its class names",
        )
    return found.only(ids[classes] != UNKNOWN)


def rows(image_id: int, found: Detections, ids: NDArray[np.int64]) -> Doubles:
    """Return float64[N, 7]: image id, x, y, width, height, score, category id."""
    classes = np.asarray(found.classes)
    boxes = np.asarray(found.boxes, np.float64).reshape(-1, 4)
    made = np.empty((len(boxes), 7))
    made[:, 0] = image_id
    made[:, 1:3] = boxes[:, :2]
    made[:, 3:5] = boxes[:, 2:] - boxes[:, :2]
    made[:, 5] = found.scores
    made[:, 6] = ids[classes]
    if not np.isfinite(made).all():
        raise ModelError(
            "the model found an object whose box or score is not a finite number",
            fix="compare it with its float form: deploykit verify",
        )
    return made
