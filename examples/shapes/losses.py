"""Task-aligned assignment and the YOLOv6 losses: VariFocal, GIoU, distribution focal.

Source: TOOD (arXiv 2108.07755, section 3.2) for the assignment; VarifocalNet (2008.13367,
equation 2); Generalized IoU (1902.09630, algorithm 1); Generalized Focal Loss (2006.04388,
equation 6); the YOLOv6 report (2209.02976, section 2.4) for their combination.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

WEIGHTS = {"class": 1.0, "box": 2.5, "bins": 0.5}
"""Of the three losses. Source: the YOLOv6 report."""
CANDIDATES = 13
"""Anchors that one object may claim at most."""
SCORE_POWER, OVERLAP_POWER = 1.0, 6.0
"""Exponents of the alignment metric score^1 * iou^6."""
FOCAL_ALPHA, FOCAL_GAMMA = 0.75, 2.0
_TINY = 1e-9


@dataclass(frozen=True)
class Truth:
    """The objects of a batch, padded to the same number M per image."""

    labels: Tensor
    """int64[B, M]."""
    boxes: Tensor
    """float32[B, M, 4], xyxy in input pixels."""
    present: Tensor
    """bool[B, M]; False for padding."""

    def to(self, device: torch.device) -> Truth:
        """Return the same on another device."""
        return Truth(self.labels.to(device), self.boxes.to(device), self.present.to(device))


@dataclass(frozen=True)
class Targets:
    """What each of the A anchors should predict."""

    scores: Tensor
    """float32[B, A, classes]: alignment in 0 to 1 at the object's class, else 0."""
    boxes: Tensor
    """float32[B, A, 4], xyxy in input pixels."""
    positive: Tensor
    """bool[B, A]."""


def overlap(a: Tensor, b: Tensor, *, generalized: bool = False) -> Tensor:
    """Return the (generalized) IoU of xyxy boxes [..., 4] that broadcast: [...]."""
    corner = torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])
    shared = corner.clamp(min=0).prod(-1)
    area_a = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1)
    area_b = (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1)
    union = area_a + area_b - shared
    iou = shared / (union + _TINY)
    if not generalized:
        return iou
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    hull_area = hull.clamp(min=0).prod(-1)
    return iou - (hull_area - union) / (hull_area + _TINY)


def decode(distances: Tensor, anchors: Tensor, strides: Tensor) -> Tensor:
    """Return xyxy boxes [B, A, 4] in input pixels from raw distances [B, A, 4 * bins]."""
    sides = distances.reshape(*distances.shape[:-1], 4, -1)
    if sides.shape[-1] > 1:
        bins = torch.arange(sides.shape[-1], dtype=sides.dtype, device=sides.device)
        sides = (sides.softmax(-1) * bins).sum(-1)
    else:
        sides = sides.squeeze(-1)
    left_top, right_bottom = (sides * strides).chunk(2, -1)
    return torch.cat([anchors - left_top, anchors + right_bottom], -1)


@torch.no_grad()
def assign(scores: Tensor, boxes: Tensor, anchors: Tensor, truth: Truth) -> Targets:
    """Return the targets of each anchor: the objects it is best aligned with.

    scores: float32[B, A, classes] in 0 to 1; boxes: float32[B, A, 4]; anchors: float32[A, 2].
    """
    batch, count, classes = scores.shape
    inside = torch.cat(
        [anchors - truth.boxes[:, :, None, :2], truth.boxes[:, :, None, 2:] - anchors], -1
    )
    allowed = (inside.amin(-1) > _TINY) & truth.present[..., None]
    iou = overlap(truth.boxes[:, :, None], boxes[:, None]) * allowed
    index = truth.labels[..., None].expand(-1, -1, count)
    aligned = scores.transpose(1, 2).gather(1, index) ** SCORE_POWER * iou**OVERLAP_POWER

    best = aligned.topk(min(CANDIDATES, count), dim=-1)
    claimed = torch.zeros_like(allowed).scatter_(-1, best.indices, best.values > _TINY) & allowed
    # An anchor that several objects claim goes to the one it overlaps most.
    owner = (iou * claimed).argmax(1)
    positive = claimed.any(1)
    owned = F.one_hot(owner, truth.labels.shape[1]).permute(0, 2, 1).bool() & positive[:, None]

    aligned, iou = aligned * owned, iou * owned
    scaled = aligned / (aligned.amax(-1, keepdim=True) + _TINY) * iou.amax(-1, keepdim=True)
    labels = truth.labels.gather(1, owner)
    target_scores = F.one_hot(labels, classes) * scaled.amax(1)[..., None]
    target_boxes = truth.boxes.gather(1, owner[..., None].expand(batch, count, 4))
    return Targets(target_scores, target_boxes, positive)


def varifocal(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the summed VariFocal loss; targets in 0 to 1, 0 for background."""
    with torch.no_grad():
        background = FOCAL_ALPHA * logits.sigmoid() ** FOCAL_GAMMA
        weight = torch.where(targets > 0, targets, background)
    return F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum")


def distribution_focal(logits: Tensor, target: Tensor) -> Tensor:
    """Return the loss [N] of binned distances: logits [N, 4, bins], target [N, 4] in cells."""
    target = target.clamp(0, logits.shape[-1] - 1 - 0.01)
    low = target.long()
    high_weight = target - low
    log = logits.log_softmax(-1)
    at_low = log.gather(-1, low[..., None]).squeeze(-1)
    at_high = log.gather(-1, low[..., None] + 1).squeeze(-1)
    return -(at_low * (1 - high_weight) + at_high * high_weight).mean(-1)


def loss(
    raw: tuple[Tensor, Tensor, Tensor, Tensor], truth: Truth
) -> tuple[Tensor, dict[str, float]]:
    """Return the training loss of the network's raw outputs, and its parts for the log.

    raw: class logits [B, A, classes], distances [B, A, 4 * bins], anchors [A, 2] and
    strides [A, 1] in input pixels.
    """
    parts, norm = sums(raw, truth)
    means = {name: part / norm for name, part in parts.items()}
    total = torch.stack([WEIGHTS[name] * mean for name, mean in means.items()]).sum()
    return total, {name: mean.item() for name, mean in means.items()}


def sums(
    raw: tuple[Tensor, Tensor, Tensor, Tensor], truth: Truth
) -> tuple[dict[str, Tensor], Tensor]:
    """Return the parts of `loss`, not weighed nor divided yet, and the divisor."""
    logits, distances, anchors, strides = raw
    boxes = decode(distances, anchors, strides)
    targets = assign(logits.detach().sigmoid(), boxes.detach(), anchors, truth)
    chosen = targets.positive
    weight = targets.scores.sum(-1)[chosen]
    gap = 1 - overlap(boxes[chosen], targets.boxes[chosen], generalized=True)
    parts = {"class": varifocal(logits, targets.scores), "box": (gap * weight).sum()}
    bins = distances.reshape(*distances.shape[:-1], 4, -1)[chosen]
    if bins.shape[-1] > 1:
        centre = anchors.expand(*chosen.shape, 2)[chosen]
        step = strides.expand(*chosen.shape, 1)[chosen]
        sides = torch.cat(
            [centre - targets.boxes[chosen][:, :2], targets.boxes[chosen][:, 2:] - centre], -1
        )
        parts["bins"] = (distribution_focal(bins, sides / step) * weight).sum()
    return parts, targets.scores.sum().clamp(min=1)


def pad(classes: Sequence[NDArray[np.int64]], boxes: Sequence[NDArray[np.float32]]) -> Truth:
    """Return the objects of a batch as one padded `Truth`."""
    shape = (len(boxes), max(1, *map(len, boxes)))
    truth = Truth(
        torch.zeros(shape, dtype=torch.int64),
        torch.zeros(*shape, 4),
        torch.zeros(shape, dtype=torch.bool),
    )
    for k, (labels, sides) in enumerate(zip(classes, boxes, strict=True)):
        truth.labels[k, : len(labels)] = torch.from_numpy(labels)
        truth.boxes[k, : len(labels)] = torch.from_numpy(sides)
        truth.present[k, : len(labels)] = True
    return truth
