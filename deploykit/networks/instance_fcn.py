"""InstanceFCN: masks of objects from maps that are each sensitive to one part of an object.

Source: Dai et al., Instance-sensitive Fully Convolutional Networks (arXiv 1603.08678). No weights
and no code of it are published: layers and sizes are the paper's, key names are torchvision's for
VGG-16 and our own for the two heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

from deploykit import ops
from deploykit.networks.detectors import dense, grids
from deploykit.networks.detectors.vgg import REPEATS

STRIDE = 8
"""Input pixels per cell of the features."""
WIDTHS = (64, 128, 256, 512, 512)
"""Channels of the five stages of VGG-16."""
LIGHT_WIDTHS = (16, 32, 64, 128, 160)
"""Those of this project's own narrow one."""
HIDDEN = 512
"""Channels inside the heads."""
MASK = 28
"""Height and width of the masks that are given out, over the box of their object."""
INSIDE = 0.5
"""A pixel whose score is above it is an object's."""


@dataclass(frozen=True)
class Limits:
    """What a network is run with, which its weights do not hold."""

    window: int = 21
    """Cells along the side of a window that is assembled: the paper's m."""
    candidates: int = 1000
    """The likeliest so many windows of an image are assembled."""
    iou: float = 0.8
    """Of two masks whose tight boxes overlap by more, the lesser goes."""
    score: float = 0.0
    """Least objectness of what is found."""
    detections: int = 100


class Hole(nn.Module):
    """The fourth pooling at stride 1, from which on the kernels have holes.

    Its windows are 2x2 still; right of and below the map there are zeros, so that it keeps its
    size. The paper leaves that border open.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the same size."""
        return F.max_pool2d(F.pad(x, [0, 1, 0, 1]), 2, 1)


def features(widths: tuple[int, ...] = WIDTHS) -> nn.Sequential:
    """Return the convolutions of VGG-16 at stride 8; layers have torchvision's numbers."""
    layers: list[nn.Module] = []
    channels = 3
    for stage, (count, width) in enumerate(zip(REPEATS, widths, strict=True)):
        holes = 2 if stage == len(widths) - 1 else 1
        layers.append(Hole() if holes > 1 else nn.MaxPool2d(2))
        for _ in range(count):
            conv = nn.Conv2d(channels, width, 3, padding=holes, dilation=holes)
            layers += [conv, nn.ReLU()]
            channels = width
    return nn.Sequential(*layers[1:])


class Select(nn.Module):
    """From the maps to objects: the likeliest windows, assembled, boxed and suppressed."""

    def __init__(self, bins: int, limits: Limits) -> None:
        """Keep the number of parts along a side, and the limits."""
        super().__init__()
        self.bins, self.limits = bins, limits

    def forward(
        self, maps: Tensor, logits: Tensor, limit: Tensor, score: float
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes, count and masks, padded.

        maps: [B, bins * bins, H, W]. logits: of objectness, [B, 1, H, W]. limit: of boxes, see
        `grids.limits`.
        """
        width = int(maps.shape[3])
        scores, place = self._likeliest(logits, limit)
        assembled = ops.torch_op("assemble")(
            maps, place.to(torch.int32), bins=self.bins, window=self.limits.window
        )
        masks = assembled.sigmoid()
        row = torch.div(place, width, rounding_mode="floor")
        middle = torch.stack([place - row * width, row], -1)
        first = (middle - self.limits.window // 2).to(maps.dtype) * STRIDE
        boxes, any_inside = self._tight(masks, first, limit)
        found = torch.where(any_inside, scores, -torch.inf)
        most = min(self.limits.detections, int(found.shape[1]))
        kept = dense.Limits(score, self.limits.iou, dense.MOST, most)
        one = dense.Candidates(boxes, found, torch.zeros_like(place))
        boxes, scores, classes, chosen, count = dense.nms(one, kept, score)
        index = chosen.clamp(min=0).to(torch.int64)
        side = self.limits.window
        of_kept = dense.rows(masks.flatten(2), index).reshape(-1, 1, side, side)
        windows = dense.rows(first, index)
        there = (chosen >= 0).reshape(-1, most, 1, 1)
        given = torch.where(there, self._over_boxes(of_kept, boxes, windows), 0.0)
        return boxes, scores, classes, count, given

    def _likeliest(self, logits: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B, N] and places int64[B, N] of the likeliest windows in their images."""
        height, width = (int(side) for side in logits.shape[2:])
        y, x = torch.arange(height) * float(STRIDE), torch.arange(width) * float(STRIDE)
        each = limit.reshape(-1, 1, 4)
        inside = (y.reshape(1, -1, 1) < each[..., 3:]) & (x.reshape(1, 1, -1) < each[..., 2:3])
        scores = torch.where(inside, logits.squeeze(1).sigmoid(), -1.0).flatten(1)
        return cast(
            "tuple[Tensor, Tensor]", scores.topk(min(self.limits.candidates, height * width))
        )

    def _tight(self, masks: Tensor, first: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the box around the pixels of each mask, in input pixels, and whether it has any.

        masks: [B, N, m, m]. first: x, y of the windows' corners, [B, N, 2].
        """
        side = self.limits.window
        cells = torch.arange(side, dtype=masks.dtype)
        ends = []
        for axis in (2, 3):  # over the rows for x, over the columns for y
            line = masks.amax(axis) > INSIDE
            low = torch.where(line, cells, float(side)).amin(-1)
            high = torch.where(line, cells + 1, 0.0).amax(-1)
            ends.append((low, high))
        (left, right), (top, bottom) = ends
        corners = torch.stack([left, top, right, bottom], -1) * STRIDE + first.repeat(1, 1, 2)
        boxes = grids.clipped(corners, limit)
        return boxes, (boxes[..., 2:] > boxes[..., :2]).all(-1)

    def _over_boxes(self, masks: Tensor, boxes: Tensor, first: Tensor) -> Tensor:
        """Return [B, M, MASK, MASK]: masks [B * M, 1, m, m] as they are over their boxes."""
        padded = F.pad(masks, [1, 1, 1, 1])
        cells = (boxes - first.repeat(1, 1, 2)) / STRIDE + 0.5  # of the padded windows
        low, high = cells[..., :2], cells[..., 2:]
        half = (high - low) / (2 * MASK)
        shares = torch.cat([low + half, high - half], -1) / (int(padded.shape[-1]) - 1)
        found = ops.torch_op("multiscale_crop")(
            shares.reshape(-1, 1, 4),
            torch.ones_like(padded[:, 0, 0, 0], dtype=torch.int32),
            [padded],
            output_height=MASK,
            output_width=MASK,
        )
        return cast("Tensor", found.reshape(-1, int(boxes.shape[1]), MASK, MASK))


class InstanceFcn(nn.Module):
    """VGG-16 with holes, instance-sensitive maps and objectness."""

    def __init__(
        self, bins: int = 5, limits: Limits | None = None, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        """Make the layers. bins: parts along a side of an object, the paper's k.

        `score_threshold` may be changed until the network is traced.
        """
        super().__init__()
        hidden = HIDDEN * widths[-1] // WIDTHS[-1]
        self.features = features(widths)
        self.instance = nn.Sequential(
            nn.Conv2d(widths[-1], hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, bins * bins, 3, padding=1),
        )
        self.objectness = nn.Sequential(
            nn.Conv2d(widths[-1], hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 1)
        )
        self.limits = limits or Limits()
        self.score_threshold = self.limits.score
        self.select = Select(bins, self.limits)

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes (all 0), count and masks of objects, the best first.

        images: float32[B, 3, H, W], BGR less a mean. image_sizes: float32[B, 2], height and width
        of the images at the top left of the inputs; None: as large as these. masks: float32[B, M,
        28, 28], 0 to 1, over the boxes, which are tight around them.
        """
        limit = grids.limits((int(images.shape[2]), int(images.shape[3])), image_sizes)
        x = self.features(images)
        found = self.select(self.instance(x), self.objectness(x), limit, self.score_threshold)
        return cast("tuple[Tensor, ...]", found)
