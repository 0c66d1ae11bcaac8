"""From heatmaps over boxes to keypoints: the highest point after bicubic enlargement to pixels.

Source: torchvision's `heatmaps_to_keypoints`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from deploykit.data.preprocess import Floats

_A = -0.75
"""Of the cubic convolution kernel, as torch has it."""


def locate(heatmaps: Floats, boxes: Floats) -> Floats:
    """Return float32[N, K, 3]: x, y in pixels and the logit there.

    Args:
        heatmaps: float32[N, K, S, S], logits over each box.
        boxes: float32[N, 4]: x1, y1, x2, y2 in pixels; smaller sides count as 1.
    """
    found = np.zeros((*heatmaps.shape[:2], 3), np.float32)
    for points, maps, box in zip(found, heatmaps, boxes, strict=True):
        width, height = (max(float(box[2 + k] - box[k]), 1.0) for k in (0, 1))
        across, down = math.ceil(width), math.ceil(height)
        rows, columns = cubic(maps.shape[1], down), cubic(maps.shape[2], across)
        enlarged = rows @ maps @ columns.T
        best = enlarged.reshape(len(maps), -1).argmax(1)
        y, x = np.divmod(best, across)
        points[:, 0] = (x + 0.5) * (width / across) + box[0]
        points[:, 1] = (y + 0.5) * (height / down) + box[1]
        points[:, 2] = enlarged[np.arange(len(maps)), y, x]
    return found


def cubic(samples: int, size: int) -> Floats:
    """Return the weights float32[size, samples] of bicubic interpolation to `size` samples."""
    place = (np.arange(size) + 0.5) * (samples / size) - 0.5
    base = np.floor(place).astype(np.int64)
    part = place - base
    weights = np.zeros((size, samples))
    for step in range(-1, 3):
        column = np.clip(base + step, 0, samples - 1)
        np.add.at(weights, (np.arange(size), column), _kernel(np.abs(part - step)))
    narrowed: Floats = weights.astype(np.float32)
    return narrowed


def _kernel(x: Floats) -> Floats:
    """Return the cubic convolution kernel at distances from 0 to 2."""
    near = ((_A + 2) * x - (_A + 3)) * x * x + 1
    far = _A * (((x - 5) * x + 8) * x - 4)
    values: Floats = np.where(x <= 1, near, np.where(x < 2, far, 0.0))
    return values
