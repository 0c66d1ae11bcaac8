"""Attention that reads a few places of each map of a pyramid, in ops that every runtime has.

Source: Deformable DETR (arXiv 2010.04159, section 4.1). Each head of a query reads, in each map, a
few places around the query's own, and takes their mean by weights that the query gives. Places are
read by GridSample, map by map; all shapes are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from deploykit.networks import detr

Shapes: TypeAlias = tuple[tuple[int, int], ...]
"""Height and width of each map of a pyramid."""
BOX = 4
"""Numbers of a reference that is a box; a point has two."""


@dataclass(frozen=True)
class Sizes(detr.Sizes):
    """Sizes of a network; as DETR's, and how many maps there are and places read in each."""

    inner: int = 1024
    queries: int = 300
    levels: int = 4
    points: int = 4
    detections: int = 100
    refined: bool = False
    """Whether each layer of the decoder moves the boxes, with heads of its own."""
    two_stage: bool = False
    """Whether the encoder has heads too, which make the queries; then boxes are refined."""


class Pyramid(NamedTuple):
    """Maps of an image."""

    cells: Tensor
    """float32[batch, N, C], one map after the other."""
    shapes: Shapes


class Locate(nn.Module):
    """Where each head of each query reads a map."""

    def __init__(self, points: int) -> None:
        """Take how many places each head reads in each map."""
        super().__init__()
        self.points = points

    def forward(self, offsets: Tensor, reference: Tensor, size: tuple[int, int]) -> Tensor:
        """Return float32[batch * heads, Q, points, 2], in GridSample's units.

        offsets: float32[batch, heads, Q, points * 2], x and y in cells of the map or, beside a box,
        in shares of half its sides times the number of points. reference: float32[1 or batch, Q, 2
        or 4], x, y, w, h as shares of the image. size: height and width of the map.
        """
        middle = (2 * reference[..., :2] - 1).unsqueeze(1).repeat(1, 1, 1, self.points)
        if reference.shape[-1] == BOX:
            around = (reference[..., 2:] / self.points).unsqueeze(1).repeat(1, 1, 1, self.points)
        else:
            around = offsets.new_tensor([2 / size[1], 2 / size[0]] * self.points)
        places = offsets * around + middle
        return places.flatten(0, 1).reshape(-1, int(offsets.shape[2]), self.points, 2)


class Attention(nn.Module):
    """Queries read a pyramid at places of their own choice, in several heads."""

    def __init__(self, sizes: Sizes) -> None:
        """Make the layers."""
        super().__init__()
        self.heads, self.levels, self.points = sizes.heads, sizes.levels, sizes.points
        places = sizes.heads * sizes.levels * sizes.points
        self.sampling_offsets = nn.Linear(sizes.width, 2 * places)
        self.attention_weights = nn.Linear(sizes.width, places)
        self.value_proj = nn.Linear(sizes.width, sizes.width)
        self.output_proj = nn.Linear(sizes.width, sizes.width)
        self.locate = Locate(sizes.points)

    def forward(self, queries: Tensor, reference: Tensor, image: Pyramid) -> Tensor:
        """Return float32[batch, Q, C] of the same; reference: as `Locate` takes it."""
        count, width, shapes = int(queries.shape[1]), int(queries.shape[2]), image.shapes
        each = (-1, count, self.heads, self.levels, 2 * self.points)
        offsets = self.sampling_offsets(queries).reshape(each).permute(3, 0, 2, 1, 4)
        weights = self.attention_weights(queries).reshape(*each[:3], self.levels * self.points)
        shares = weights.softmax(-1).transpose(1, 2).flatten(0, 1).unsqueeze(1)
        cells = self.value_proj(image.cells).transpose(1, 2).split([h * w for h, w in shapes], 2)
        mixed: list[Tensor] = []
        parts = zip(cells, offsets.unbind(0), shares.split(self.points, 3), shapes, strict=True)
        for values, around, share, size in parts:
            there = values.reshape(-1, width // self.heads, *size)
            read = nn.functional.grid_sample(
                there, self.locate(around, reference, size), align_corners=False
            )
            mixed.append((read * share).sum(3))
        found = torch.stack(mixed).sum(0) if len(mixed) > 1 else mixed[0]
        return cast("Tensor", self.output_proj(found.reshape(-1, width, count).transpose(1, 2)))

    def folded(self) -> nn.Module:
        """Return the same, the queries along the last axis."""
        return FoldedAttention(self)


class FoldedLocate(nn.Module):
    """What a `Locate` becomes."""

    def forward(self, offsets: Tensor, reference: Tensor, size: tuple[int, int]) -> Tensor:
        """Return float32[batch * heads, points, Q, 2], see `Locate`.

        offsets: float32[batch, heads, points, Q, 2]. x and y of all queries are one line.
        """
        points, count = int(offsets.shape[2]), int(offsets.shape[3])
        middle = (2 * reference[..., :2] - 1).flatten(1).unsqueeze(1).unsqueeze(1)
        if reference.shape[-1] == BOX:
            around = (reference[..., 2:] / points).flatten(1).unsqueeze(1).unsqueeze(1)
        else:
            around = offsets.new_tensor([2 / size[1], 2 / size[0]] * count)
        return (offsets.flatten(3) * around + middle).reshape(-1, points, count, 2)


class FoldedAttention(nn.Module):
    """What an `Attention` becomes: sums of what is read are sums of whole lines of queries."""

    def __init__(self, source: Attention) -> None:
        """Take the layers of `source` under their names."""
        super().__init__()
        self.heads, self.levels, self.points = source.heads, source.levels, source.points
        for name, layer in source.named_children():
            setattr(self, name, layer)
        self.locate = FoldedLocate()

    def forward(self, queries: Tensor, reference: Tensor, image: Pyramid) -> Tensor:
        """Return what `Attention` does."""
        count, width, shapes = int(queries.shape[1]), int(queries.shape[2]), image.shapes
        layer = self.get_submodule
        each = (-1, count, self.heads, self.levels, self.points, 2)
        offsets = layer("sampling_offsets")(queries).reshape(each).permute(3, 0, 2, 4, 1, 5)
        weights = layer("attention_weights")(queries).reshape(*each[:3], self.levels * self.points)
        shares = weights.softmax(-1).permute(0, 2, 3, 1).flatten(0, 1).unsqueeze(1)
        cells = layer("value_proj")(image.cells).transpose(1, 2)
        parts = zip(
            cells.split([h * w for h, w in shapes], 2),
            offsets.unbind(0),
            shares.split(self.points, 2),
            shapes,
            strict=True,
        )
        mixed = [
            nn.functional.grid_sample(
                values.reshape(-1, width // self.heads, *size),
                self.locate(around, reference, size),
                align_corners=False,
            )
            * share
            for values, around, share, size in parts
        ]
        found = sum((one.sum(2) for one in mixed[1:]), mixed[0].sum(2))
        found = found.reshape(-1, width, count).transpose(1, 2)
        return cast("Tensor", layer("output_proj")(found))
