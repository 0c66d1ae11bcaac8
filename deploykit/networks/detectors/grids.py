"""The boxes that dense detectors start from, and how their outputs move them.

Boxes are computed in float32 as torchvision does, but in numpy: in a traced network they are
constants.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Size = tuple[int, int]

LARGEST = math.log(1000 / 16)
"""Most that the logarithm of a side may grow by."""


def anchors(cell: Array, image: Size, grid: Size, step: int | None = None) -> Array:
    """Return float32[H * W * A, 4] in input pixels: the anchors of the first cell in every cell.

    cell: float32[A, 4] around the origin. image, grid: (H, W) of the input and the feature map;
    cells are a whole number of pixels apart, `step` or as many as fit.
    """
    y, x = (np.arange(n) * (step or side // n) for side, n in zip(image, grid, strict=True))
    corners = np.stack(np.meshgrid(x, y, indexing="xy") * 2, -1)
    boxes: Array = (corners.reshape(-1, 1, 4).astype(np.float32) + cell).reshape(-1, 4)
    return boxes


def default_boxes(sides: Array, image: Size, grid: Size, steps: tuple[float, float]) -> Array:
    """Return float32[H * W * A, 4] in input pixels: the default boxes of one level of SSD.

    sides: float32[A, 2], widths and heights over those of the image. steps: cells per image,
    down and across, not always those of the grid.
    """
    y, x = (
        (np.arange(n, dtype=np.float32) + np.float32(0.5)) / np.float32(step)
        for n, step in zip(grid, steps, strict=True)
    )
    centres = np.stack(np.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 1, 2)
    half, scale = np.float32(0.5) * sides, np.array([image[1], image[0]], np.float32)
    corners = [(centres - half) * scale, (centres + half) * scale]
    boxes: Array = np.concatenate(corners, -1).reshape(-1, 4)
    return boxes


def moved(
    deltas: Tensor,
    boxes: Tensor,
    weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
    *,
    bounded: bool = False,
) -> Tensor:
    """Return `boxes` [..., 4] moved by `deltas` [..., 4]: torchvision's BoxCoder.

    dx, dy: in sides; dw, dh: logarithms of the ratio of the sides; each times its weight. bounded:
    whether a side shrinks no more than it may grow, as mmdetection has it.
    """
    least = -LARGEST if bounded else None
    low, high = boxes[..., :2], boxes[..., 2:]
    sides = high - low
    deltas = deltas if set(weights) == {1.0} else deltas / torch.tensor(weights)
    centre = deltas[..., :2] * sides + (low + 0.5 * sides)
    half = 0.5 * (deltas[..., 2:].clamp(least, LARGEST).exp() * sides)
    return torch.cat([centre - half, centre + half], -1)


def spread(distances: Tensor, boxes: Tensor) -> Tensor:
    """Return boxes [..., 4] that reach `distances` (left, top, right, bottom, in sides of `boxes`).

    They start from the centres of `boxes`: torchvision's BoxLinearCoder.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    sides, centre = high - low, 0.5 * (low + high)
    near, far = distances[..., :2] * sides, distances[..., 2:] * sides
    return torch.cat([centre - near, centre + far], -1)


def limits(size: Size, image_sizes: Tensor | None) -> Tensor:
    """Return the largest x1, y1, x2, y2 of boxes: float32[4], or float32[B, 4].

    size: (H, W) of the input. image_sizes: float32[B, 2], those of the images in it; None: that.
    """
    if image_sizes is None:
        return torch.tensor([size[1], size[0]] * 2, dtype=torch.get_default_dtype())
    return image_sizes.flip(1).repeat(1, 2)


def clipped(boxes: Tensor, limit: Tensor, least: float = 0.0) -> Tensor:
    """Return boxes [B, ..., 4] inside their images, see `limits`.

    least: that both sides keep of a box that lies beside its image.
    """
    each = (
        limit.to(boxes.dtype) if limit.ndim == 1 else limit.reshape(-1, *(1,) * (boxes.ndim - 2), 4)
    )
    if not least:
        return boxes.clamp(min=0).minimum(each)
    first, last = torch.tensor([0.0, 0.0, least, least]), torch.tensor([least, least, 0.0, 0.0])
    return boxes.maximum(first).minimum(each - last)
