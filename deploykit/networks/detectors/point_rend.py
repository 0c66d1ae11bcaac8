"""The mask head of PointRend: a coarse mask, doubled in size where only its doubtful points change.

Source: Kirillov et al., PointRend: Image Segmentation as Rendering (arXiv 1912.08193, sections 3
and 4); the names of parameters are those of detectron2's project. The code is written from the
paper, in fixed shapes: as many points of each object at each step, all read by one GridSample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

from deploykit.networks.detectors.point_layers import SIDE, FoldedPoints, Points
from deploykit.networks.states import outputs

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.networks.detectors.two_stage import Rois
    from deploykit.recipes.recipe import StateDict

POOLED, COARSE = 14, 7
"""Sides of the coarse head's features and of its mask."""
POINTS, FIRST, STEPS = SIDE**2, SIDE, 3
"""Points of a step; the side of the first mask, of which all points are computed, and how often it
doubles: 28 to 224."""
PRESENT = 4
"""Of so many rows for objects one is there in most images, the others being padding."""


def grid(side: int) -> Tensor:
    """Return the centres of a box's `side` * `side` cells, [1, side * side, 2], x before y.

    They are constants of the graph, so float32 whatever the weights are.
    """
    line = (torch.arange(side, dtype=torch.float32) + 0.5) / side
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], -1).reshape(1, -1, 2)


@dataclass(frozen=True)
class Widths:
    """How wide the layers are; the paper's unless said otherwise."""

    points: int = 256
    """Channels of a point."""
    reduced: int = 256
    """Channels of the coarse head's convolution."""
    hidden: int = 1024
    """Outputs of the coarse head's linear layers."""


def widths(state: StateDict) -> Widths | None:
    """Return how wide the heads in a state dict are, None where there are none."""
    names = ("point_head.fc1", "coarse_head.reduce_spatial_dim_conv", "coarse_head.fc1")
    found = [outputs(state, f"roi_heads.mask_head.{name}.weight") for name in names]
    kept = [width for width in found if width is not None]
    return Widths(*kept) if len(kept) == len(names) else None


class Coarse(nn.Module):
    """Each class's mask of 7 by 7, from the features of a box."""

    def __init__(self, channels: int, classes: int, widths: Widths) -> None:
        """Make the layers. channels: of the features. classes: the background not among them."""
        super().__init__()
        self.reduce_spatial_dim_conv = nn.Conv2d(channels, widths.reduced, 2, 2)
        self.fc1 = nn.Linear(widths.reduced * (POOLED // 2) ** 2, widths.hidden)
        self.fc2 = nn.Linear(widths.hidden, widths.hidden)
        self.prediction = nn.Linear(widths.hidden, classes * COARSE**2)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits float32[n, classes, 7, 7] of features float32[n, C, 14, 14]."""
        x = self.reduce_spatial_dim_conv(features).relu().flatten(1)
        x = self.prediction(self.fc2(self.fc1(x).relu()).relu())
        return cast("Tensor", x.reshape(-1, x.shape[1] // COARSE**2, COARSE, COARSE))


class Stack:
    """The maps of a batch as one, below each other, a row of zeros below each."""

    def __init__(self, features: Tensor) -> None:
        """Stack maps float32[B, C, H, W]."""
        channels, self.height, self.width = (int(size) for size in features.shape[1:])
        below = F.pad(features, (0, 0, 0, 1)).transpose(0, 1)
        self.map = below.reshape(1, channels, -1, self.width)

    def read(self, places: Tensor) -> Tensor:
        """Return float32[n, C, P] at float32[1, n, P, 2], see `Places`."""
        return F.grid_sample(self.map, places, align_corners=False).squeeze(0).transpose(0, 1)


class Places(nn.Module):
    """From points of boxes to where these are read, in GridSample's units: -1 to 1 over a map."""

    def forward(
        self, points: Tensor, image: Tensor, stack: Stack, boxes: Tensor, stride: float
    ) -> Tensor:
        """Return float32[1, n, P, 2].

        points: float32[n or 1, P, 2], x before y, 0 to 1 over a box. image: int[n], which of the
        batch. boxes: float32[n, 4] in input pixels, of which `stride` are a cell of the maps.
        """
        # x and y alone: runtimes are slow where they go through numbers two by two
        corners = (corner.chunk(2, 1) for corner in boxes.chunk(2, 1))
        x, y = (
            (low + part * (high - low)) / stride
            for part, low, high in zip(points.unbind(-1), *corners, strict=True)
        )
        down = y + (image * (stack.height + 1)).to(y.dtype).unsqueeze(1)
        sides = stack.width, stack.map.shape[2]
        units = [2 * place / side - 1 for place, side in zip((x, down), sides, strict=True)]
        return torch.stack(units, -1).unsqueeze(0)


class Inside(nn.Module):
    """From points of boxes to where these are in maps of the boxes, as `Places` has it."""

    def forward(self, points: Tensor) -> Tensor:
        """Return float32[n, P, 1, 2] of points float32[n, P, 2]."""
        return torch.stack([2 * part - 1 for part in points.unbind(-1)], -1).unsqueeze(2)


class Doubt(nn.Module):
    """The points of a mask that are nearest to neither object nor background."""

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return places int64[n, POINTS] in masks float32[n, S, S], and these as points."""
        side = logits.shape[-1]
        chosen = (-logits.abs().flatten(1)).topk(POINTS).indices
        return chosen, as_points(chosen, (side, side), logits)


def as_points(chosen: Tensor, sides: tuple[int, int], like: Tensor) -> Tensor:
    """Return places int64[n, P] in maps of `sides` H and W as points [n, P, 2] from 0 to 1."""
    height, width = sides
    down = torch.div(chosen, width, rounding_mode="floor")
    cells = (chosen - down * width).to(like.dtype), down.to(like.dtype)
    return torch.stack([(c + 0.5) / n for c, n in zip(cells, (width, height), strict=True)], -1)


class PointRend(nn.Module):
    """The head: from the finest map and the detections to their masks."""

    def __init__(self, channels: int, classes: int, widths: Widths = Widths()) -> None:
        """Make the layers. channels: of the map. classes: the background not among them."""
        super().__init__()
        self.coarse_head = Coarse(channels, classes, widths)
        self.point_head: nn.Module = Points(channels, classes, widths.points)
        self.places, self.inside, self.doubt = Places(), Inside(), Doubt()

    def forward(self, features: Tensor, stride: float, objects: Rois, classes: Tensor) -> Tensor:
        """Return masks float32[n, 224, 224], 0 to 1: packed rows, see `Rois.packed`.

        features: float32[B, C, H, W], the pyramid's finest map. classes: int32[B, R], -1 in the
        padding.
        """
        boxes = objects.boxes.reshape(-1, 4)
        image = torch.arange(boxes.shape[0], dtype=torch.int32) // int(objects.boxes.shape[1])
        stack, image, within = Stack(features), objects.packed(image), objects.packed(boxes)
        first = self._first(features, int(objects.boxes.shape[1]))
        label = objects.packed(classes.flatten()).clamp(min=0).to(torch.int64).reshape(-1, 1)

        def fine(points: Tensor, source: Stack = stack) -> Tensor:
            return source.read(self.places(points, image, source, within, stride))

        masks = self.coarse(fine)

        def answers(points: Tensor) -> Tensor:
            read, here = fine(points, first or stack), self.coarse_at(masks, points)
            how = {"mapped": True} if first else {}
            return cast("Tensor", self.point_head(read, here, label, **how))

        # of each object, though the same: where there is none, no runtime multiplies one with none
        points = grid(FIRST).to(features.dtype) + 0 * label.unsqueeze(2)
        logits = answers(points).reshape(-1, FIRST, FIRST)
        for _ in range(STEPS):
            side = 2 * logits.shape[-1]
            logits = F.interpolate(logits.unsqueeze(1), (side, side), mode="bilinear").squeeze(1)
            chosen, points = self.doubt(logits)
            logits = logits.flatten(1).scatter(1, chosen, answers(points)).reshape(-1, side, side)
        return logits.sigmoid()

    def _first(self, features: Tensor, rows: int) -> Stack | None:
        """Return the first layer of each cell, None where `rows` objects have too few points.

        A weighted mean of what a layer makes of cells is what it makes of the mean.
        """
        points, cells = rows * POINTS * (1 + STEPS) // PRESENT, features[0, 0].numel()
        if cells > points or not isinstance(self.point_head, FoldedPoints):
            return None
        return Stack(self.point_head.mapped(features))

    def coarse(self, fine: Callable[[Tensor], Tensor]) -> Tensor:
        """Return each class's coarse mask, logits float32[n, classes, 7, 7].

        fine: The features float32[n, C, P] at points of each box.
        """
        pooled = fine(grid(POOLED).to(next(self.parameters()).device))
        pooled = pooled.reshape(-1, pooled.shape[1], POOLED, POOLED)
        return cast("Tensor", self.coarse_head(pooled))

    def coarse_at(self, masks: Tensor, points: Tensor) -> Tensor:
        """Return the coarse masks float32[n, classes, 7, 7] at points, float32[n, classes, P]."""
        return F.grid_sample(masks, self.inside(points), align_corners=False).squeeze(3)
