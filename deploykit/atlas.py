"""A feature pyramid as one map, read at many places in ops that TensorRT has without a plugin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.recipe import Floats
    from deploykit.tape import Tape

OUTSIDE = -3.0
"""A place beside every map of `LEAST` cells or more, in GridSample's units: it reads zero there."""
LEAST = 2
"""Cells along a side: GridSample takes every place for the only cell of a side of one."""


class Atlas:
    """The levels of a pyramid, one below the other, in FP32."""

    def __init__(
        self, op: Tape, features: Sequence[ir.Value], sizes: Sequence[tuple[int, ...]]
    ) -> None:
        """Write the map float32[B, C, sum of heights, largest width], each at least `LEAST`.

        features: T[B, C, H_l, W_l]. sizes: (H_l, W_l).
        """
        self.heights = [size[0] for size in sizes]
        self.widths = [size[1] for size in sizes]
        self.starts = [sum(self.heights[:i]) for i in range(len(sizes))]
        self.height, self.width = max(LEAST, sum(self.heights)), max(LEAST, *self.widths)
        padded = [
            self._padded(op, maps, width) for maps, width in zip(features, self.widths, strict=True)
        ]
        self.map = padded[0] if len(padded) == 1 else op.Concat(*padded, axis=2)

    def _padded(self, op: Tape, maps: ir.Value, width: int) -> ir.Value:
        if maps.dtype is not ir.DataType.FLOAT:
            maps = op.Cast(maps, to=ir.DataType.FLOAT.value)
        below, beside = max(LEAST - sum(self.heights), 0), self.width - width
        short = below or beside
        padded: ir.Value = op.Pad(maps, [0] * 6 + [below, beside]) if short else maps
        return padded

    def read(self, op: Tape, x: ir.Value, y: ir.Value, size: tuple[int, int]) -> ir.Value:
        """Return float32[B, C, R * Y, X] at x float32[B, R, 1, X] and y float32[B, R, Y, 1].

        Places are in GridSample's units; size: (R * Y, X).
        """
        shape = op.Max(op.Shape(x), op.Shape(y))
        pair = [op.Unsqueeze(op.Expand(place, shape), [4]) for place in (x, y)]
        grid = op.Reshape(op.Concat(*pair, axis=4), [0, *size, 2])
        found: ir.Value = op.GridSample(self.map, grid, align_corners=1, padding_mode="zeros")
        return found


@dataclass(frozen=True)
class Axis:
    """Where every box lies along one axis of its level, in cells; each value is [B, R, 1]."""

    start: ir.Value
    side: ir.Value
    limit: ir.Value
    """How many cells the level has."""
    offset: ir.Value
    """The level's first cell in the atlas."""
    cells: int
    """How many the atlas has."""

    def places(self, op: Tape, part: ir.Value | Floats, wanted: ir.Value) -> ir.Value:
        """Return where samples lie, float32[B, R, n] in GridSample's units.

        part: float32[B or 1, R or 1, n], 0 to 1 along the box. wanted: bool[B, R, 1 or n]; the
        others read zero, as does a place more than a cell outside the level.
        """
        place = op.Add(self.start, op.Mul(self.side, part))
        near = op.And(op.GreaterOrEqual(place, -1.0), op.LessOrEqual(place, self.limit))
        inside = op.Max(op.Min(place, op.Sub(self.limit, 1.0)), 0.0)
        step = 2.0 / max(self.cells - 1, 1)
        unit = op.Sub(op.Mul(op.Add(inside, self.offset), step), 1.0)
        found: ir.Value = op.Where(op.And(near, wanted), unit, OUTSIDE)
        return found
