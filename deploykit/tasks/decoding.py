"""From a detector's raw rows to objects: candidates, non-maximum suppression, the best few."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from deploykit.errors import ModelError, ProofError
from deploykit.tasks import heatmaps
from deploykit.tasks.detections import Detections
from deploykit.tasks.matching import KEYS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats, Geometry

    Indices = NDArray[np.int64]


_BOX = 5
"""Columns of a raw row before its class scores: cx, cy, w, h, objectness."""


@dataclass(frozen=True)
class Limits:
    """When a candidate counts as an object. Defaults: the protocol YOLOv6 reports its AP with."""

    confidence: float = 0.03
    """A candidate's score must be above it."""
    iou: float = 0.65
    """Of two overlapping candidates of a class, the lesser goes where their IoU is above it."""
    candidates: int = 30_000
    """The best so many are looked at."""
    objects: int = 300
    """Most objects per image."""


_LIMITS = Limits()


def objects(outputs: Mapping[str, Floats], geometries: Sequence[Geometry], /) -> list[Detections]:
    """Return the objects in each image, by the form of the outputs: `padded` rows, or raw `decode`.

    Raises: ModelError for outputs of another form; ProofError where one holds NaN or infinity.
    """
    if all(name in outputs for name in KEYS):
        return padded(outputs, geometries)
    first, *others = outputs.values()
    if not others and first.ndim == 3 and first.shape[2] > _BOX:
        return decode(first, geometries)
    forms = ", ".join(f"{name}{list(value.shape)}" for name, value in outputs.items())
    raise ModelError(
        f"the outputs {forms} are no detections",
        expected=f"{', '.join(KEYS)}; or one output [batch, anchors, {_BOX} + classes]",
        fix="name the head that they come from: --decode yolov8, yolov5, yolox or torchvision; in "
        "Python give a task of your own: `Detection(read=...)`",
    )


def decode(
    rows: Floats, geometries: Sequence[Geometry], limits: Limits = _LIMITS
) -> list[Detections]:
    """Return the objects in each image, best first, in its own pixels.

    rows: float32[batch, anchors, 5 + classes]: cx, cy, w, h in input pixels, objectness, class
    scores. An anchor may be an object of several classes.
    Raises: ProofError where a row holds NaN or infinity.
    """
    return [
        _objects(image, geometry, limits) for image, geometry in zip(rows, geometries, strict=True)
    ]


def _objects(rows: Floats, geometry: Geometry, limits: Limits) -> Detections:
    return chosen(rows[:, :4], rows[:, _BOX:] * rows[:, 4:5], geometry, limits)


def chosen(boxes: Floats, scores: Floats, geometry: Geometry, limits: Limits) -> Detections:
    """Return the objects among anchors, best first, in pixels of the image.

    boxes: float32[N, 4]: cx, cy, w, h in input pixels. scores: float32[N, classes]; an anchor may
    be an object of several classes.
    Raises: ProofError where a box or a score is NaN or infinity.
    """
    finite = np.isfinite(boxes).all(1) & np.isfinite(scores).all(1)
    if not finite.all():
        raise not_finite(
            f"{np.count_nonzero(~finite)} of {len(boxes)} anchors hold NaN or infinity"
        )
    anchors, classes = np.nonzero(scores > limits.confidence)
    found = scores[anchors, classes]
    best = top(found, limits.candidates)
    anchors, classes, found = anchors[best], classes[best], found[best]
    corners = xyxy(boxes[anchors])
    kept = nms(corners, found, limits.iou, classes=classes, limit=limits.objects)
    return Detections(geometry.to_image(corners[kept]), found[kept], classes[kept])


def not_finite(found: str) -> ProofError:
    """Return the error for outputs that are no numbers."""
    return ProofError(
        found,
        expected="finite boxes and scores",
        fix="check the weights; in FP16, keep the layers that overflow in FP32",
    )


def padded(outputs: Mapping[str, Floats], geometries: Sequence[Geometry]) -> list[Detections]:
    """Return the objects in each image, best first, in its own pixels.

    outputs: `boxes` float32[batch, M, 4] in input pixels, `scores` and `classes` [batch, M],
    `count` [batch]: how many rows are objects; where the model has them `masks`
    float32[batch, M, S, S], `mask_scores` [batch, M] and `keypoints` float32[batch, M, K, S, S],
    logits over the boxes.
    Objects that lie wholly beside the image are left out.
    Raises: ProofError where an object holds NaN or infinity.
    """
    return [_image(outputs, i, geometry) for i, geometry in enumerate(geometries)]


def _image(outputs: Mapping[str, Floats], i: int, geometry: Geometry) -> Detections:
    rows = {
        name: array[i, : int(outputs["count"][i])]
        for name, array in outputs.items()
        if name != "count"
    }
    boxes, scores = rows["boxes"], rows["scores"]
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise not_finite("an object's box or score is NaN or infinity")
    visible = geometry.to_image(boxes)
    seen = (visible[:, 2:] > visible[:, :2]).all(1)
    rows = {name: array[seen] for name, array in rows.items()}
    found = Detections(visible[seen], rows["scores"], rows["classes"].astype(np.int64))
    if "masks" in rows:
        frames = geometry.unclipped(rows["boxes"])
        found = replace(found, masks=rows["masks"], frames=frames)
    if "mask_scores" in rows:
        if not np.isfinite(rows["mask_scores"]).all():
            raise not_finite("the score of an object's mask is NaN or infinity")
        found = replace(found, mask_scores=rows["mask_scores"])
    if "keypoints" in rows:
        points = heatmaps.locate(rows["keypoints"], rows["boxes"])
        points[..., :2] = geometry.unclipped(np.tile(points[..., :2], 2))[..., :2]
        found = replace(found, keypoints=points)
    return found


def xyxy(boxes: Floats) -> Floats:
    """Return corners x1, y1, x2, y2 (float32[N, 4]) of boxes given as cx, cy, w, h."""
    half = boxes[:, 2:] / 2
    corners: Floats = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], 1)
    return corners


def top(scores: Floats, count: int) -> Indices:
    """Return the indices of the `count` highest scores, best first; ties in their order."""
    return np.argsort(-scores, kind="stable")[:count]


def nms(
    boxes: Floats,
    scores: Floats,
    threshold: float,
    *,
    classes: Indices | None = None,
    limit: int | None = None,
) -> Indices:
    """Return the indices of the boxes that no better box suppresses, best first.

    Greedy: the best box stays, those whose IoU with it is above `threshold` go, and so on; at
    most `limit` stay. Boxes of different `classes` never meet: what an offset per class is for,
    without its rounding. A box of no area or with a NaN corner suppresses and loses to none.
    """
    groups = np.zeros(len(boxes), np.int64) if classes is None else classes
    order = top(scores, len(scores))
    grouped = order[np.argsort(groups[order], kind="stable")]  # by class, best first in each
    place = np.empty(len(order), np.int64)
    place[grouped] = np.arange(len(order))
    ends = np.searchsorted(groups[grouped], groups[grouped], side="right")
    sides = np.ascontiguousarray(boxes[grouped].T)
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for index, i in zip(order.tolist(), place[order].tolist(), strict=True):
        if len(kept) == limit:
            break
        if alive[i]:
            kept.append(index)
            rest = slice(i + 1, ends[i])
            alive[rest] &= ~(_iou(sides[:, i], sides[:, rest]) > threshold)
    return np.array(kept, np.int64)


def _iou(box: Floats, others: Floats) -> NDArray[np.float64]:
    """Return the IoU (float64[N]) of float32[4] with float32[4, N]; NaN for two of no area."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        width = np.minimum(box[2], others[2]) - np.maximum(box[0], others[0])
        height = np.minimum(box[3], others[3]) - np.maximum(box[1], others[1])
        shared = np.maximum(width, 0) * np.maximum(height, 0)
        area = (box[2] - box[0]) * (box[3] - box[1])
        areas = (others[2] - others[0]) * (others[3] - others[1])
        iou: NDArray[np.float64] = (shared / (area + areas - shared)).astype(np.float64)
    return iou
