"""Average precision of one class, as Cityscapes' benchmark integrates it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles = NDArray[np.float64]


def average_precision(right: Doubles, wrong: Doubles, missed: int) -> float:
    """Return the area below the curve of precision over recall.

    Each score that occurs is a threshold, and (recall 0, precision 1) the end of the curve; a
    point is as wide as half the way between its neighbours, those beyond the ends being
    themselves and zero.

    right, wrong: float64, the scores of what was found rightly and wrongly. missed: objects that
    nothing was found of at any score. With nothing found at all it is 0.
    """
    scores = np.concatenate([right, wrong])
    if not scores.size:
        return 0.0
    thresholds = np.unique(scores)
    hits = len(right) - np.searchsorted(np.sort(right), thresholds)
    found = len(scores) - np.searchsorted(np.sort(scores), thresholds)
    objects = len(right) + missed
    precision = np.append(hits / found, 1.0)
    recall = np.append(hits / objects, 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(np.dot(precision, 0.5 * (around[:-2] - around[2:])))
