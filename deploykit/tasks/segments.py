"""From objects with masks to one segment for each pixel, as DETR's panoptic evaluation does it.

Source: arXiv 2005.12872, section 4.3, and the order of its authors' evaluation
(github.com/facebookresearch/detr, `PostProcessPanoptic`): each pixel is the object's whose mask is
the surest there; of several stuff objects of a class the one with the best score is kept (the
authors keep that of the first query), and none of a few pixels is; what these leave becomes the
others'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.tasks import masks
from deploykit.tasks.panoptic import Segment, Segments

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats
    from deploykit.tasks.detections import Detections
    from deploykit.tasks.masks import Pasting

LEAST_SCORE = 0.85
"""Objects are above it."""
_FEW = 4
"""Pixels that a segment has more of."""


def merged(
    found: Detections,
    size: tuple[int, int],
    things: Collection[int],
    *,
    least: float = LEAST_SCORE,
) -> Segments:
    """Return the segments of an image of `size` (H, W); categories are class indices.

    found: with masks that span the whole input. things: classes of which each object is a segment
    of its own. Every pixel is in a segment where an object's score is above `least`; of masks that
    span no more than boxes, those pixels that one covers.
    """
    sure = found.only(found.scores > least)
    spans = _spans(sure, size)
    classes = sure.classes.tolist()
    kept = list(range(len(classes)))
    owner = _owners(spans, kept, found.pasting)
    counts = _counts(owner, len(classes))
    for kind in {kind for kind in classes if kind not in things}:
        first, *others = (i for i in kept if classes[i] == kind)
        counts[first] += counts[others].sum()
        counts[others] = 0
    while kept and min(counts[i] for i in kept) <= _FEW:
        kept = [i for i in kept if counts[i] > _FEW]
        owner = _owners(spans, kept, found.pasting)
        counts = _counts(owner, len(classes))
    known = [Segment(i + 1, classes[i]) for i in kept]
    return Segments(owner + 1, known)


def _spans(found: Detections, size: tuple[int, int]) -> Floats:
    """Return each mask at the pixels of the image, float32[N, H, W]."""
    whole = np.zeros((len(found.scores), *size), np.float32)
    if found.masks is None or not len(whole):
        return whole
    frames = found.boxes if found.frames is None else found.frames
    patches = masks.patches(found.masks, frames, *size, pasting=found.pasting)
    for canvas, (top, left, values) in zip(whole, patches, strict=True):
        canvas[top : top + values.shape[0], left : left + values.shape[1]] = values
    return whole


def _owners(spans: Floats, kept: list[int], pasting: Pasting) -> NDArray[np.int64]:
    """Return whose each pixel is, int64[H, W], of those kept; -1 where no mask covers it."""
    if not kept:
        return np.full(spans.shape[1:], -1, np.int64)
    owners: NDArray[np.int64] = np.array(kept, np.int64)[spans[kept].argmax(0)]
    if pasting == "whole":
        return owners
    return np.where(masks.inside(spans[kept].max(0), pasting), owners, -1)


def _counts(owner: NDArray[np.int64], objects: int) -> NDArray[np.int64]:
    """Return the pixels of each object, int64[objects]."""
    counted: NDArray[np.int64] = np.bincount(owner.ravel() + 1, minlength=objects + 1)
    return counted[1:]
