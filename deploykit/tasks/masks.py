"""From a mask over a box to pixels of the image, one object at a time.

Source: torchvision's `paste_masks_in_image`, whose rounding `rounded` keeps: the mask gets a border
of one zero, the box grows with it and is cut to whole pixels, both ends included. `exact` is
detectron2's: the mask is read at the centres of pixels, in the box as it is. `whole` is for masks
that each span the whole input: DETR's, of which the logits are read, at the centres of pixels too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from deploykit.data.preprocess import Floats
    from deploykit.values import Json

    Bools: TypeAlias = NDArray[np.bool_]
    Doubles: TypeAlias = NDArray[np.float64]

Pasting: TypeAlias = Literal["rounded", "exact", "whole"]
"""How a mask is brought to the pixels of its box."""
SETTING = "mask_pasting"
"""What a model's card calls it."""
BORDER = 1
THRESHOLD = 0.5
"""A pixel belongs to an object where its mask is above it; pasted exactly, at least it."""


LEAST = 1e-7
"""Nearest that a probability comes to 0 and 1 where its logit is read."""


class Patch(NamedTuple):
    """The part of the image that one mask covers."""

    top: int
    left: int
    values: Floats
    """float32[h, w], 0 to 1; empty where the box lies outside the image."""


def paste(
    masks: Floats,
    boxes: Floats,
    height: int,
    width: int,
    *,
    pasting: Pasting = "rounded",
) -> Bools:
    """Return bool[N, height, width]: the pixels of each object.

    Args:
        masks: float32[N, S, S], 0 to 1, on an even grid over each box.
        boxes: float32[N, 4]: x1, y1, x2, y2 in pixels.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        pasting: How the family of the network does it.
    """
    pixels = np.zeros((len(masks), height, width), bool)
    for whole, (top, left, values) in zip(
        pixels, patches(masks, boxes, height, width, pasting=pasting), strict=True
    ):
        part = whole[top : top + values.shape[0], left : left + values.shape[1]]
        part[:] = inside(values, pasting)
    return pixels


def inside(values: Floats, pasting: Pasting = "rounded") -> Bools:
    """Return which pixels of a patch are the object's."""
    return values >= THRESHOLD if pasting == "exact" else values > THRESHOLD


def patches(
    masks: Floats, boxes: Floats, height: int, width: int, *, pasting: Pasting = "rounded"
) -> Iterator[Patch]:
    """Yield the part of the image that each mask covers; memory is that of one box.

    Arguments are those of `paste`. A box with a coordinate that is no finite number covers nothing.
    """
    frames, axis = np.asarray(boxes, np.float32).reshape(-1, 4), _exact
    if pasting == "whole":
        axis = _whole
    if pasting == "rounded":
        frames, axis = _grown(frames, masks.shape[-1]), _axis
        masks = np.pad(masks, ((0, 0), (BORDER, BORDER), (BORDER, BORDER)))
    for mask, box in zip(masks, frames, strict=True):
        left, rows_x = axis(box[0], box[2], mask.shape[1], width)
        top, rows_y = axis(box[1], box[3], mask.shape[0], height)
        if pasting == "whole":
            surest = mask.astype(np.float64).clip(LEAST, 1 - LEAST)
            read = 1 / (1 + np.exp(-(rows_y @ np.log(surest / (1 - surest)) @ rows_x.T)))
        else:
            read = rows_y @ mask @ rows_x.T
        yield Patch(top, left, read.astype(np.float32))


def run_lengths(
    masks: Floats,
    boxes: Floats,
    height: int,
    width: int,
    *,
    pasting: Pasting = "rounded",
) -> Iterator[list[int]]:
    """Yield COCO's uncompressed run lengths of what `paste` returns, one object at a time.

    Pixels are counted down the columns; the first run is one of background. Arguments are those
    of `paste`.
    """
    for top, left, values in patches(masks, boxes, height, width, pasting=pasting):
        mine = inside(values, pasting)
        yield _runs(mine, (top, left), height, height * width)


def _runs(inside: Bools, corner: tuple[int, int], height: int, pixels: int) -> list[int]:
    """Return the runs of an image that has `inside` at `corner` (row, column) and nothing else."""
    columns = np.pad(inside.T, ((0, 0), (1, 1))).astype(np.int8)
    edges = np.diff(columns, axis=1)
    column, row = np.nonzero(edges)
    place = (corner[1] + column) * height + corner[0] + row
    # A run that reaches the bottom goes on at the top of the next column.
    joined = np.flatnonzero(place[1:] == place[:-1])
    place = np.delete(place, [*joined, *(joined + 1)])
    runs: list[int] = np.diff([0, *place.tolist(), pixels]).tolist()
    return runs if runs[-1] or len(runs) == 1 else runs[:-1]


def _grown(boxes: Floats, side: int) -> Floats:
    """Return boxes with the border of a mask of `side` pixels."""
    with np.errstate(invalid="ignore", over="ignore"):  # such boxes cover nothing
        half = (boxes[:, 2:] - boxes[:, :2]) * np.float32(0.5)
        centre = (boxes[:, 2:] + boxes[:, :2]) * np.float32(0.5)
        half = half * np.float32((side + 2 * BORDER) / side)
        grown: Floats = np.concatenate([centre - half, centre + half], 1)
    return grown


def _axis(low: float, high: float, samples: int, limit: int) -> tuple[int, Doubles]:
    """Return the first pixel in the image, and each pixel's weights of bilinear interpolation."""
    if not (np.isfinite(low) and np.isfinite(high)):
        return 0, np.zeros((0, samples))
    first, last = int(low), int(high)
    size = max(last - first + 1, 1)
    start, end = max(first, 0), min(last + 1, limit)
    place = (np.arange(start, max(start, end)) - first + 0.5) * (samples / size) - 0.5
    place = place.clip(0, samples - 1)
    near = place.astype(np.int64)
    weights = np.zeros((len(place), samples))
    index = np.arange(len(place))
    weights[index, near] = 1 - (place - near)
    weights[index, np.minimum(near + 1, samples - 1)] += place - near
    return min(start, limit), weights


def _exact(low: float, high: float, samples: int, limit: int) -> tuple[int, Doubles]:
    """Return what `_axis` does, for the box as it is: beside it are zeros.

    The pixel x lies at u = (x + 0.5 - low) / (high - low) * samples - 0.5 of the mask.
    """
    if not (np.isfinite(low) and np.isfinite(high) and high > low):
        return 0, np.zeros((0, samples))
    start, place = _centres(low, high, samples, limit)
    near = np.floor(place).astype(np.int64)
    weights, index = np.zeros((len(place), samples + 2)), np.arange(len(place))
    weights[index, near.clip(-1, samples) + 1] = 1 - (place - near)
    weights[index, (near + 1).clip(-1, samples) + 1] += place - near
    return start, weights[:, 1:-1]


def _whole(low: float, high: float, samples: int, limit: int) -> tuple[int, Doubles]:
    """Return what `_exact` does, with the mask going on beside its ends as they are."""
    start, place = _centres(low, high, samples, limit)
    place = place.clip(0, samples - 1)
    near = place.astype(np.int64)
    weights, index = np.zeros((len(place), samples)), np.arange(len(place))
    weights[index, near] = 1 - (place - near)
    weights[index, np.minimum(near + 1, samples - 1)] += place - near
    return start, weights


def _centres(low: float, high: float, samples: int, limit: int) -> tuple[int, Doubles]:
    """Return the first pixel that a box reaches, and where it and those after it lie in a mask."""
    start, end = (int(np.clip(side, 0, limit)) for side in (np.floor(low), np.ceil(high)))
    place = (np.arange(start, end) + 0.5 - low) * (samples / float(high - low)) - 0.5
    return start, place.astype(np.float64)


def compressed(segmentation: Any, size: tuple[int, int]) -> Json:  # noqa: ANN401 - JSON
    """Return COCO's compressed run lengths of polygons, or of run lengths, in an image of H, W.

    The format is that of faster-coco-eval, which must be there.
    """
    from faster_coco_eval.core import mask  # noqa: PLC0415 - an optional package

    if isinstance(segmentation, list):
        return dict(mask.merge(mask.frPyObjects(segmentation, *size)))
    if isinstance(segmentation["counts"], list):
        return dict(mask.frPyObjects(segmentation, *size))
    return dict(segmentation)
