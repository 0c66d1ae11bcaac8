"""The mask head of PointRend: a coarse mask, doubled in size where only its doubtful points change.

Source: Kirillov et al., PointRend: Image Segmentation as Rendering (arXiv 1912.08193, sections 3
and 4); the names of parameters are those of detectron2's project. The code is written from the
paper, in fixed shapes: as many points of each object at each step, read from rows of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor, nn

from deploykit.networks.detectors.point_layers import FoldedPoints, Points
from deploykit.networks.states import outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deploykit.networks.detectors.two_stage import Rois
    from deploykit.recipes.recipe import StateDict

POOLED, COARSE = 14, 7
"""Sides of the coarse head's features and of its mask."""
POINTS, FIRST, STEPS = 784, 28, 3
"""Points of a step; the side of the first mask, of which all points are computed, and how often it
doubles: 28 to 224."""
PRESENT = 4
"""Of so many rows for objects one is there in most images, the others being padding."""


def bilinear(place: Tensor, cells: int) -> Tensor:
    """Return the weights with which a place reads each of `cells` in a row, float[..., cells].

    place: float[...], 0 is the first cell's centre. What lies outside counts as zero.
    """
    apart = place.unsqueeze(-1) - torch.arange(cells, dtype=place.dtype, device=place.device)
    return (1 - apart.abs()).clamp(min=0)


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
        """Return logits float32[n, classes, 49] of features float32[n, C, 14, 14]."""
        x = self.reduce_spatial_dim_conv(features).relu().flatten(1)
        x = self.prediction(self.fc2(self.fc1(x).relu()).relu())
        return cast("Tensor", x.reshape(-1, x.shape[1] // COARSE**2, COARSE**2))


class Table:
    """A map as a table, of which points read rows."""

    def __init__(self, features: Tensor) -> None:
        """Keep the map, float32[B, C, H, W]."""
        self.sides = int(features.shape[2]), int(features.shape[3])
        self.rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])

    def read(self, taps: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Return float32[n, P, C]: the sum of the rows int64[n, P], each times its [n, P, 1]."""
        parts = [F.embedding(place, self.rows) * weight for place, weight in taps]
        return sum(parts[1:], parts[0])


class Places(nn.Module):
    """From points to the rows of a table, and the weights with which they are read."""

    def forward(
        self,
        points: Tensor,
        image: Tensor,
        sides: tuple[int, int],
        within: tuple[Tensor, float] | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """Return rows int64[n, P] and weights float32[n, P, 1], four times, see `Table`.

        points: float32[n or 1, P, 2], x before y, 0 to 1 over the map or a box. image: int32[n],
        which of the batch. sides: of the map, H and W. within: boxes float32[n, 4] in input pixels,
        and how many of these there are to a cell.
        """
        height, width = sides
        if within is None:
            place = points * points.new_tensor([width, height]) - 0.5
        else:
            (low, high), stride = within[0].unsqueeze(1).chunk(2, 2), within[1]
            place = (low + points * (high - low)) / stride - 0.5
        x, y = place.unbind(-1)
        first = image.to(torch.int64).unsqueeze(1) * (height * width)
        return [
            (first + line * width + column, (down * across).unsqueeze(-1))
            for line, down in _cells(y, height)
            for column, across in _cells(x, width)
        ]


def _cells(place: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two cells in a row of `count` that a place is between, and their weights."""
    low = place.floor()
    found = []
    for cell in (low, low + 1):
        inside = cell.clamp(0, count - 1)
        weight = torch.where(cell == inside, 1 - (place - cell).abs(), 0.0)
        found.append((inside.to(torch.int64), weight))
    return found


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
    cells = torch.stack([chosen - down * width, down], -1).to(like.dtype)
    return (cells + 0.5) / cells.new_tensor([width, height])


class PointRend(nn.Module):
    """The head: from the finest map and the detections to their masks."""

    def __init__(self, channels: int, classes: int, widths: Widths = Widths()) -> None:
        """Make the layers. channels: of the map. classes: the background not among them."""
        super().__init__()
        self.coarse_head = Coarse(channels, classes, widths)
        self.point_head: nn.Module = Points(channels, classes, widths.points)
        self.places, self.doubt = Places(), Doubt()

    def forward(self, features: Tensor, stride: float, objects: Rois, classes: Tensor) -> Tensor:
        """Return masks float32[n, 224, 224], 0 to 1: packed rows, see `Rois.packed`.

        features: float32[B, C, H, W], the pyramid's finest map. classes: int32[B, R], -1 in the
        padding.
        """
        boxes = objects.boxes.reshape(-1, 4)
        image = torch.arange(boxes.shape[0], dtype=torch.int32) // int(objects.boxes.shape[1])
        table, image, within = Table(features), objects.packed(image), objects.packed(boxes)
        first = self._first(features, int(objects.boxes.shape[1]))
        label = objects.packed(classes.flatten()).clamp(min=0).to(torch.int64).reshape(-1, 1)

        def fine(points: Tensor, source: Table = table) -> Tensor:
            return source.read(self.places(points, image, table.sides, (within, stride)))

        masks = self.coarse(fine)

        def answers(points: Tensor) -> Tensor:
            read, here = fine(points, first or table), coarse_at(masks, points)
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

    def _first(self, features: Tensor, rows: int) -> Table | None:
        """Return the first layer of each cell, None where `rows` objects have too few points."""
        points, cells = rows * POINTS * (1 + STEPS) // PRESENT, features[0, 0].numel()
        if cells > points or not isinstance(self.point_head, FoldedPoints):
            return None
        return Table(self.point_head.mapped(features))

    def coarse(self, fine: Callable[[Tensor], Tensor]) -> Tensor:
        """Return each class's coarse mask, logits float32[n, 49, classes].

        fine: The features float32[n, P, C] at points of each box.
        """
        place = next(self.parameters()).device
        pooled = fine(grid(POOLED).to(place)).transpose(1, 2)
        pooled = pooled.reshape(-1, pooled.shape[1], POOLED, POOLED)
        return cast("Tensor", self.coarse_head(pooled).transpose(1, 2))


def coarse_at(masks: Tensor, points: Tensor) -> Tensor:
    """Return the coarse masks float32[n, 49, classes] at points, float32[n, P, classes]."""
    x, y = (points * COARSE - 0.5).unbind(-1)
    seen = bilinear(y, COARSE).unsqueeze(-1) * bilinear(x, COARSE).unsqueeze(-2)
    return seen.flatten(2).to(masks.dtype) @ masks
