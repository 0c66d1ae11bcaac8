"""What PointRend's heads learn from: coarse masks, and points where these are in doubt.

Source: Kirillov et al., PointRend: Image Segmentation as Rendering (arXiv 1912.08193, section 3.1:
`N` points, of `k` * `N` random ones the share `beta` that is most in doubt). The code is written
from the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor

from deploykit.networks.detectors.point_rend import COARSE, Stack, grid
from deploykit.networks.detectors.point_tables import Places

if TYPE_CHECKING:
    from deploykit.networks.detectors.point_rend import PointRend

POINTS, OVERSAMPLING, IMPORTANT = 196, 3, 0.75
"""N, k and beta: the paper's for masks."""
_FINER = 4
"""Places along a side of a coarse mask's cell that say whether it is the object's."""


@dataclass(frozen=True)
class Objects:
    """Objects of a batch, each with a box that it was found in."""

    shown: Tensor
    """uint8[B, H, W]: which object of its image each pixel shows, counted from 1; 0: none."""
    image: Tensor
    """int64[n], which of the batch."""
    number: Tensor
    """int64[n], from 1, which object of the image."""
    label: Tensor
    """int64[n], its class, the background not among them."""
    boxes: Tensor
    """float32[n, 4], xyxy in pixels."""

    def at(self, points: Tensor) -> Tensor:
        """Return float32[n, P], 1 where points [n or 1, P, 2] of the boxes are the object's."""
        height, width = self.shown.shape[1:]
        pixels = self.shown.flatten()
        taps = Places()(points, self.image, (height, width), (self.boxes, 1.0))
        parts = [
            (pixels[place] == self.number.unsqueeze(1)) * weight.squeeze(2)
            for place, weight in taps
        ]
        return (torch.stack(parts).sum(0) >= 0.5).float()


def losses(head: PointRend, features: Tensor, stride: float, known: Objects) -> dict[str, Tensor]:
    """Return the cross entropies of the coarse masks, and of points at their doubtful places.

    features: float32[B, C, H, W], the pyramid's finest map. stride: Input pixels to its cells.
    """
    stack, place = Stack(features), features.device

    def fine(points: Tensor) -> Tensor:
        return stack.read(head.places(points, known.image, stack, known.boxes, stride))

    masks = head.coarse(fine)
    whole = known.at(grid(COARSE * _FINER).to(place)).reshape(-1, 1, *(COARSE * _FINER,) * 2)
    right = (F.avg_pool2d(whole, _FINER) >= 0.5).float().flatten(1)
    points = doubtful(head, masks.detach(), known.label)
    found = head.point_head(fine(points), head.coarse_at(masks, points), known.label.unsqueeze(1))
    return {
        "coarse": _entropy(_own(masks.flatten(2), known.label), right),
        "points": _entropy(found, known.at(points)),
    }


def doubtful(head: PointRend, masks: Tensor, label: Tensor) -> Tensor:
    """Return random points [n, POINTS, 2], most of them where the label's coarse mask is in doubt.

    masks: logits float[n, classes, 7, 7]. label: int64[n].
    """
    count, certain = len(masks), round(POINTS * IMPORTANT)
    offered = torch.rand(count, POINTS * OVERSAMPLING, 2, device=masks.device)
    sure = _own(head.coarse_at(masks, offered), label).abs()
    best = sure.topk(certain, largest=False).indices.unsqueeze(2).expand(-1, -1, 2)
    rest = torch.rand(count, POINTS - certain, 2, device=masks.device)
    return torch.cat([offered.gather(1, best), rest], 1)


def _own(logits: Tensor, label: Tensor) -> Tensor:
    """Return float[n, P], the label's of logits float[n, classes, P]."""
    chosen = label.reshape(-1, 1, 1).expand(-1, 1, logits.shape[2])
    return logits.gather(1, chosen).squeeze(1)


def _entropy(found: Tensor, right: Tensor) -> Tensor:
    """Return the mean binary cross entropy, 0 of nothing."""
    total = F.binary_cross_entropy_with_logits(found.float(), right, reduction="sum")
    return total / max(right.numel(), 1)
