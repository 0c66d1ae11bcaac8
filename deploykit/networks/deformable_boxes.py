"""Points and boxes of Deformable DETR: what queries begin from, how they move, which are kept."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from deploykit.networks import detr_places
from deploykit.networks.deformable_attention import BOX
from deploykit.networks.detectors import dense

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deploykit.networks.deformable_attention import Shapes

EPSILON = 1e-5
"""Nearest that a reference comes to 0 and 1 where its logit is taken."""
FAR = 50.0
"""A logit whose sigmoid is 1 with whatever a head adds."""
FIRST_SIDE = 0.05
"""Share of the image that a proposal on the finest map has along a side; twice as much on the
next."""
EDGE = 0.01
"""Proposals nearer to the image's edge than this share are none."""


def centres(shapes: Shapes) -> NDArray[np.float32]:
    """Return the middle of each cell of all maps, float32[1, N, 2], x and y as shares."""
    each = []
    for height, width in shapes:
        rows, columns = np.mgrid[:height, :width].astype(np.float32) + np.float32(0.5)
        each.append(np.stack([columns / width, rows / height], 2).reshape(-1, 2))
    return np.concatenate(each).astype(np.float32)[None]


def proposals(shapes: Shapes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the logits of each cell's box, float32[1, N, 4], and 1 where it is one, [1, N, 1]."""
    sides = [np.full((h * w, 2), FIRST_SIDE * 2.0**i) for i, (h, w) in enumerate(shapes)]
    boxes = np.concatenate([centres(shapes)[0], np.concatenate(sides)], 1).astype(np.float32)
    inside = np.all((boxes > EDGE) & (boxes < 1 - EDGE), 1)[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        logits: NDArray[np.float32] = np.where(inside, np.log(boxes / (1 - boxes)), FAR)
    return logits[None].astype(np.float32), inside[None].astype(np.float32)


class Refine(nn.Module):
    """A reference, moved."""

    def forward(self, shift: Tensor, reference: Tensor) -> Tensor:
        """Return a box float32[batch, Q, 4] of a shift, as large, and a point or a box."""
        near, far = (x.clamp(min=EPSILON) for x in (reference, 1 - reference))
        logits = (near / far).log()
        if reference.shape[-1] == BOX:
            return (shift + logits).sigmoid()
        return torch.cat([shift[..., :2] + logits, shift[..., 2:]], -1).sigmoid()


class Choose(nn.Module):
    """The cells that are objects the most, as boxes and as what places are embedded by."""

    def __init__(self, count: int, channels: int) -> None:
        """Take how many there are to be, and the channels that embed each of a box's numbers."""
        super().__init__()
        self.count, self.channels = count, channels

    def forward(self, scores: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes float32[batch, Q, 4] and [batch, Q, 2 * C] of [batch, N] and [..., 4]."""
        _, order = scores.topk(min(self.count, int(scores.shape[1])))
        boxes = dense.rows(logits, order).sigmoid()
        step = torch.from_numpy(detr_places.steps(self.channels)).to(boxes.device)
        angles = (boxes * (2 * math.pi)).unsqueeze(-1) / step
        return boxes, torch.stack([angles.sin(), angles.cos()], -1).flatten(2)


class Select(nn.Module):
    """The surest pairs of a query and a class."""

    def __init__(self, detections: int) -> None:
        """Take how many there are at most."""
        super().__init__()
        self.detections = detections

    def forward(self, logits: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
        """Return boxes in input pixels, scores, classes and count."""
        classes = int(logits.shape[2])
        every = logits.sigmoid().flatten(1)
        scores, order = every.topk(min(self.detections, int(every.shape[1])))
        query = torch.div(order, classes, rounding_mode="floor")
        chosen = dense.rows(detr_places.in_pixels(boxes, size), query)
        return chosen, scores, order - query * classes, (scores >= 0).sum(1)
