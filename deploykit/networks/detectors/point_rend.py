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

from deploykit.networks.states import outputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from deploykit.networks.detectors.two_stage import Rois
    from deploykit.recipes.recipe import StateDict

POOLED, COARSE = 14, 7
"""Sides of the coarse head's features and of its mask."""
LAYERS, POINTS, FIRST, STEPS = 3, 784, 28, 3
"""Layers of the point head before its predictor; points of a step; the side of the first mask, of
which all points are computed, and how often it doubles: 28 to 224."""


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


class Points(nn.Module):
    """What a point is, from its fine features and the coarse masks there, which each layer reads.

    As in checkpoints the layers are convolutions along the points.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        """Make the layers. channels: of the features. classes: the background not among them."""
        super().__init__()
        for number in range(1, LAYERS + 1):
            inputs = channels if number == 1 else width
            setattr(self, f"fc{number}", nn.Conv1d(inputs + classes, width, 1))
        self.predictor = nn.Conv1d(width + classes, classes, 1)

    def forward(self, fine: Tensor, coarse: Tensor, label: Tensor) -> Tensor:
        """Return the logits of each object's class at its points, float32[n, P].

        fine, coarse: float32[n, P, C] and [n, P, classes]. label: int64[n, 1].
        """
        *layers, last = self.children()
        found = row(last, _inner(layers, fine, coarse))
        own = label.unsqueeze(2).expand(-1, found.shape[1], -1)
        return found.gather(2, own).squeeze(2)

    def folded(self) -> nn.Module:
        """Return the same, which computes the logits of no other class."""
        return FoldedPoints(self)


def _inner(layers: Iterable[nn.Module], fine: Tensor, coarse: Tensor) -> Tensor:
    """Return what the predictor reads, float32[n, P, C + classes].

    The layers get all points as the rows of one matrix: with it, runtimes multiply, add the bias
    and take the ReLU in one step.
    """
    x, here = fine.flatten(0, 1), coarse.flatten(0, 1)
    for layer in layers:
        x = row(layer, torch.cat([x, here], 1)).relu()
    return torch.cat([x, here], 1).reshape(-1, fine.shape[1], x.shape[1] + here.shape[1])


def row(layer: nn.Module, rows: Tensor) -> Tensor:
    """Return float32[..., out] of rows float32[..., in]."""
    if isinstance(layer, nn.Conv1d):
        return F.linear(rows, layer.weight.squeeze(-1), layer.bias)
    return cast("Tensor", layer(rows))


def linear(layer: nn.Conv1d) -> nn.Linear:
    """Return a convolution along the points as a layer of their rows."""
    made = nn.Linear(layer.in_channels, layer.out_channels, device="meta")
    assert layer.bias is not None
    made.weight, made.bias = nn.Parameter(layer.weight.squeeze(-1)), nn.Parameter(layer.bias)
    return made


class FoldedPoints(nn.Module):
    """What `Points` becomes: linear layers, and of the predictor the row of the object's class."""

    def __init__(self, source: Points) -> None:
        """Take the weights of `source`."""
        super().__init__()
        *layers, last = cast("list[nn.Conv1d]", list(source.children()))
        for number, layer in enumerate(layers, start=1):
            setattr(self, f"fc{number}", linear(layer))
        self.weight, self.bias = nn.Parameter(last.weight.squeeze(-1)), last.bias

    def forward(self, fine: Tensor, coarse: Tensor, label: Tensor) -> Tensor:
        """Return what `Points` does."""
        assert self.bias is not None
        weight = F.embedding(label, self.weight).transpose(1, 2)  # [n, C, 1]
        found = _inner(self.children(), fine, coarse) @ weight
        return found.squeeze(2) + F.embedding(label, self.bias.unsqueeze(1)).squeeze(2)


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
        self.point_head = Points(channels, classes, widths.points)
        self.places, self.doubt = Places(), Doubt()

    def forward(self, features: Tensor, stride: float, objects: Rois, classes: Tensor) -> Tensor:
        """Return masks float32[n, 224, 224], 0 to 1: packed rows, see `Rois.packed`.

        features: float32[B, C, H, W], the pyramid's finest map. classes: int32[B, R], -1 in the
        padding.
        """
        boxes = objects.boxes.reshape(-1, 4)
        image = torch.arange(boxes.shape[0], dtype=torch.int32) // int(objects.boxes.shape[1])
        table, image, within = Table(features), objects.packed(image), objects.packed(boxes)
        label = objects.packed(classes.flatten()).clamp(min=0).to(torch.int64).reshape(-1, 1)

        def fine(points: Tensor) -> Tensor:
            return table.read(self.places(points, image, table.sides, (within, stride)))

        masks = self.coarse(fine)

        def answers(points: Tensor) -> Tensor:
            return cast("Tensor", self.point_head(fine(points), coarse_at(masks, points), label))

        # of each object, though the same: where there is none, no runtime multiplies one with none
        points = grid(FIRST).to(features.dtype) + 0 * label.unsqueeze(2)
        logits = answers(points).reshape(-1, FIRST, FIRST)
        for _ in range(STEPS):
            side = 2 * logits.shape[-1]
            logits = F.interpolate(logits.unsqueeze(1), (side, side), mode="bilinear").squeeze(1)
            chosen, points = self.doubt(logits)
            logits = logits.flatten(1).scatter(1, chosen, answers(points)).reshape(-1, side, side)
        return logits.sigmoid()

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
