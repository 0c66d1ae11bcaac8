"""Boxes whose coordinates name pixels, both ends inside: the convention of the Caffe detectors.

A box from 3 to 3 is one pixel wide, so sides are x2 - x1 + 1 here.
Source: Faster R-CNN (arXiv 1506.01497) and the conventions of its Caffe code, which PyTorch ports
such as jwyang/faster-rcnn.pytorch keep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deploykit.networks.detectors import dense, grids

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

INSIDE = 1.0
"""What a side is longer than the difference of its ends."""


def cell_anchors(
    stride: int, scales: Sequence[float], ratios: Sequence[float]
) -> NDArray[np.float32]:
    """Return float32[ratios * scales, 4]: the anchors of the first cell, in input pixels.

    A square of `stride` pixels gets the aspect ratio (height over width), its sides are rounded,
    and only then it is scaled.
    """
    centre, boxes = (stride - INSIDE) / 2, []
    for ratio in ratios:
        width = np.round(np.sqrt(stride * stride / ratio))
        height = np.round(width * ratio)
        for scale in scales:
            x, y = (width * scale - INSIDE) / 2, (height * scale - INSIDE) / 2
            boxes.append((centre - x, centre - y, centre + x, centre + y))
    return np.array(boxes, np.float32)


def grid_anchors(
    cell: NDArray[np.float32], stride: int, size: tuple[int, int]
) -> NDArray[np.float32]:
    """Return float32[H * W * anchors, 4]: those of a feature map of `size` (H, W), row by row."""
    y, x = np.meshgrid(np.arange(size[0]), np.arange(size[1]), indexing="ij")
    shifts = np.stack([x, y, x, y], -1).reshape(-1, 1, 4).astype(np.float32) * stride
    anchors: NDArray[np.float32] = (shifts + cell).reshape(-1, 4)
    return anchors


def moved(boxes: Tensor, deltas: Tensor, limit: Tensor) -> Tensor:
    """Return `boxes` [B, ..., 4] moved by `deltas` [B, ..., 4], inside images of `grids.limits`.

    dx, dy: in sides; dw, dh: logarithms of the ratio of the sides.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    sides = high - low + INSIDE
    centre = low + 0.5 * sides + deltas[..., :2] * sides
    half = 0.5 * (deltas[..., 2:].exp() * sides)
    corners = torch.cat([centre - half, centre + half], -1)
    return grids.clipped(corners, limit - INSIDE)


def suppressed(found: dense.Candidates, limits: dense.Limits, score: float) -> tuple[Tensor, ...]:
    """Return what `dense.suppressed` does, for boxes of this convention.

    The op gets their edges, one pixel further: its overlaps are those of the convention then.
    """
    edges = found._replace(boxes=found.boxes + torch.tensor([0.0, 0.0, INSIDE, INSIDE]))
    _, scores, classes, places, count = dense.nms(edges, limits, score)
    boxes = dense.rows(found.boxes, places.clamp(min=0).to(torch.int64))
    return torch.where((places >= 0).unsqueeze(-1), boxes, 0.0), scores, classes, count
