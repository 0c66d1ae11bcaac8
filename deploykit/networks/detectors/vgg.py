"""VGG-16 with region heads: the Faster R-CNN and Fast R-CNN of 2015, in fixed shapes.

Source: Faster R-CNN (arXiv 1506.01497) and Fast R-CNN (arXiv 1504.08083); the conventions of
their Caffe code, which its PyTorch ports keep, and the key names of jwyang/faster-rcnn.pytorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from deploykit import ops
from deploykit.networks.detectors import dense, grids, inclusive

STRIDE = 16
"""Input pixels per cell of the features."""
REPEATS = (2, 2, 3, 3, 3)
"""Convolutions of the five stages; a pooling to half the size stands between two stages."""
POOLED = 7
"""Height and width of the features of one region."""
SPREAD = (0.1, 0.1, 0.2, 0.2)
"""Standard deviations by which the targets of the head's boxes were divided."""
LIMITS = dense.Limits(score=0.05, iou=0.3, candidates=dense.MOST, detections=100)


@dataclass(frozen=True)
class Settings:
    """All that tells one variant from another, and what the networks were tested with."""

    scales: tuple[int, ...] = (8, 16, 32)
    """Sides of the square anchors, in cells."""
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""
    agnostic: bool = False
    """Whether all classes of a region share one box."""
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    """Channels of the five stages."""
    hidden: int = 4096
    """Outputs of each of the two layers before the heads."""
    anchors: int = 3840
    """The best so many become boxes. Published: 6000, more than TensorRT's TopK finds (3840). The
    proposals differ only where fewer than `proposals` of these survive the suppression."""
    proposals: int = 300
    proposal_iou: float = 0.7


VARIANTS = {
    "vgg16": Settings(),
    "vgg16_agnostic": Settings(agnostic=True),
    "vgg16_coco": Settings(scales=(4, 8, 16, 32)),
    "vgg16_coco_agnostic": Settings(scales=(4, 8, 16, 32), agnostic=True),
}
"""`coco`: a smaller anchor too, as for that data set; `agnostic`: one box for all classes."""


def features(widths: tuple[int, ...]) -> nn.Sequential:
    """Return the convolutions of VGG-16, without the last pooling: /16, `widths[-1]` channels.

    Layers have torchvision's numbers.
    """
    layers: list[nn.Module] = []
    channels = 3
    for count, width in zip(REPEATS, widths, strict=True):
        layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers[1:])


class Proposals(nn.Module):
    """The best anchors, moved by their deltas, without those that a better one covers."""

    def __init__(self, settings: Settings) -> None:
        """Keep the settings."""
        super().__init__()
        self.settings = settings
        self.limits = dense.Limits(
            -1.0, settings.proposal_iou, settings.anchors, settings.proposals
        )

    def forward(self, logits: Tensor, deltas: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals float32[B, R, 4], best first, and their count int32[B].

        logits: [B, 2 * A, H, W], of nothing for all A anchors, then of something.
        deltas: [B, 4 * A, H, W]. limit: of the boxes, see `grids.limits`.
        """
        nothing, something = logits.permute(0, 2, 3, 1).chunk(2, -1)
        scores = (something - nothing).sigmoid().flatten(1)
        cell = inclusive.cell_anchors(STRIDE, self.settings.scales, self.settings.ratios)
        grid = inclusive.grid_anchors(cell, STRIDE, (int(logits.shape[2]), int(logits.shape[3])))
        deltas = deltas.permute(0, 2, 3, 1).reshape(-1, len(grid), 4)
        scores, index = scores.topk(min(self.limits.candidates, len(grid)))
        anchors = dense.constant_rows(torch.from_numpy(grid), index)
        boxes = inclusive.moved(anchors, dense.rows(deltas, index), limit)
        found = dense.Candidates(boxes, scores, torch.zeros_like(index))
        boxes, _, _, count = inclusive.suppressed(found, self.limits, self.limits.score)
        return boxes, count


class Rpn(nn.Module):
    """The region proposal network."""

    def __init__(self, settings: Settings) -> None:
        """Make the layers."""
        super().__init__()
        channels, count = settings.widths[-1], len(settings.scales) * len(settings.ratios)
        self.conv = nn.Conv2d(channels, 512, 3, padding=1)
        self.cls_score = nn.Conv2d(512, 2 * count, 1)
        self.bbox_pred = nn.Conv2d(512, 4 * count, 1)
        self.select = Proposals(settings)

    def forward(self, maps: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the proposals float32[B, R, 4] and their count int32[B]."""
        hidden = self.conv(maps).relu()
        result = self.select(self.cls_score(hidden), self.bbox_pred(hidden), limit)
        return cast("tuple[Tensor, Tensor]", result)


class Regions(NamedTuple):
    """Where the head looks for objects."""

    boxes: Tensor
    """float32[B, R, 4]: x1, y1, x2, y2 in input pixels."""
    rows: Tensor
    """int32[B]: only so many of each image's are looked at."""
    valid: Tensor
    """bool[B, R]: in the others nothing is found."""


class Detections(nn.Module):
    """From what the head says of the regions to the detections."""

    def __init__(self, settings: Settings) -> None:
        """Keep the settings."""
        super().__init__()
        self.settings = settings

    def forward(
        self, logits: Tensor, deltas: Tensor, regions: Regions, limit: Tensor, score: float
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count, see `dense.suppressed`.

        logits: [B * R, 1 + classes]. deltas: [B * R, 4 * (1 + classes)], or [B * R, 4].
        """
        count, classes = int(regions.boxes.shape[1]), int(logits.shape[1]) - 1
        scores = logits.softmax(-1)[:, 1:].reshape(-1, count, classes)
        scores = torch.where(regions.valid.unsqueeze(-1), scores, -torch.inf)
        moves = deltas.reshape(-1, count, deltas.shape[1] // 4, 4)
        moves = (moves if self.settings.agnostic else moves[:, :, 1:]) * torch.tensor(SPREAD)
        boxes = inclusive.moved(regions.boxes.unsqueeze(2), moves, limit)
        boxes = boxes.expand(-1, -1, classes, -1).flatten(1, 2)
        labels = torch.arange(classes).expand_as(scores)
        found = dense.Candidates(boxes, scores.flatten(1), labels.flatten(1))
        return inclusive.suppressed(found, LIMITS, score)


class Head(nn.Module):
    """From regions to detections: RoIPool, two linear layers, class scores and boxes."""

    def __init__(self, settings: Settings, classes: int) -> None:
        """Make the layers for `classes`, the background not among them."""
        super().__init__()
        hidden = settings.hidden
        self.fc6 = nn.Linear(settings.widths[-1] * POOLED * POOLED, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.cls_score = nn.Linear(hidden, classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4 if settings.agnostic else 4 * (classes + 1))
        self.select = Detections(settings)

    def forward(
        self, maps: Tensor, regions: Regions, limit: Tensor, score: float
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count; `limit`: of the boxes, see `grids.limits`."""
        pooled = ops.torch_op("roi_pool")(
            regions.boxes,
            regions.rows,
            maps,
            output_height=POOLED,
            output_width=POOLED,
            spatial_scale=1 / STRIDE,
        )
        x = self.fc7(self.fc6(pooled.flatten(1)).relu()).relu()
        found = self.select(self.cls_score(x), self.bbox_pred(x), regions, limit, score)
        return cast("tuple[Tensor, ...]", found)


class FasterRcnn(nn.Module):
    """Faster R-CNN: the regions come from the network itself."""

    def __init__(self, settings: Settings, classes: int) -> None:
        """Make the network for `classes`, the background not among them.

        `score_threshold` may be changed until the network is traced.
        """
        super().__init__()
        self.features = features(settings.widths)
        self.rpn, self.head = Rpn(settings), Head(settings, classes)
        self.score_threshold = LIMITS.score

    def forward(self, images: Tensor, image_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count of images float32[B, 3, H, W], BGR - mean.

        image_sizes: float32[B, 2], height and width of the images at the top left of the inputs.
        """
        maps, limit = self.features(images), _limit(images, image_sizes)
        boxes, count = self.rpn(maps, limit)
        valid = torch.arange(boxes.shape[1]) < count.unsqueeze(1)
        found = self.head(maps, Regions(boxes, count, valid), limit, self.score_threshold)
        return cast("tuple[Tensor, ...]", found)


class FastRcnn(nn.Module):
    """Fast R-CNN: the regions are an input."""

    def __init__(self, settings: Settings, classes: int) -> None:
        """Make the network for `classes`, the background not among them.

        `score_threshold` may be changed until the network is traced.
        """
        super().__init__()
        self.features = features(settings.widths)
        self.head = Head(settings, classes)
        self.score_threshold = LIMITS.score

    def forward(
        self, images: Tensor, proposals: Tensor, image_sizes: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Return boxes, scores, classes and count.

        images: float32[B, 3, H, W], BGR - mean. proposals: float32[B, R, 4] in input pixels; those
        without area are padding. image_sizes: as of FasterRcnn.
        """
        maps, limit = self.features(images), _limit(images, image_sizes)
        rows = torch.full((proposals.shape[0],), proposals.shape[1], dtype=torch.int32)
        valid = (proposals[..., 2:] > proposals[..., :2]).all(-1)
        found = self.head(maps, Regions(proposals, rows, valid), limit, self.score_threshold)
        return cast("tuple[Tensor, ...]", found)


def _limit(images: Tensor, image_sizes: Tensor | None) -> Tensor:
    return grids.limits((int(images.shape[2]), int(images.shape[3])), image_sizes)
