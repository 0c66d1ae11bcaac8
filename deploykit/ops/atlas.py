"""RoIAlign in ops that TensorRT has without a plugin: a pyramid as one map, read by GridSample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.ops.plugin import present

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.data.preprocess import Floats
    from deploykit.ops.plugin import Call
    from deploykit.ops.tape import Tape

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


def pool(op: Tape, call: Call, level: ir.Value) -> ir.Value:
    """Return float32[B, C, R * PH, PW] of a call of DKMultiscaleRoiAlign.

    level: of each box, int64[B, R, 1], 0 the finest.
    """
    boxes, count, *features = call.inputs
    atlas = Atlas(op, features, [call.dims(2 + i)[1:] for i in range(len(features))])
    finite = op.Less(op.ReduceSum(op.Abs(boxes), [2], keepdims=1), float("inf"))
    valid = op.And(op.Unsqueeze(present(op, count, call.dims(0)[0]), [2]), finite)
    take = _fixed if call.attributes["sampling_ratio"] else _adaptive
    return take(op, call, atlas, (*_axes(op, call, atlas, level), valid))


def _axes(op: Tape, call: Call, atlas: Atlas, level: ir.Value) -> tuple[Axis, Axis]:
    """Return where the boxes lie, across and down."""
    boxes, attributes = call.inputs[0], call.attributes
    scale = op.Gather(np.array(attributes["spatial_scales"], np.float32), level)
    low_x, low_y, high_x, high_y = op.Split(boxes, num_outputs=4, axis=2, outputs=4)
    shift = 0.5 if attributes["aligned"] else 0.0
    found = []
    for low, high, limits, starts, cells in (
        (low_x, high_x, atlas.widths, [0] * len(atlas.widths), atlas.width),
        (low_y, high_y, atlas.heights, atlas.starts, atlas.height),
    ):
        start = op.Sub(op.Mul(low, scale), shift)
        side = op.Sub(op.Sub(op.Mul(high, scale), shift), start)
        side = side if attributes["aligned"] else op.Max(side, 1.0)
        limit, offset = (op.Gather(np.array(v, np.float32), level) for v in (limits, starts))
        found.append(Axis(start, side, limit, offset, cells))
    return found[0], found[1]


def _fixed(op: Tape, call: Call, atlas: Atlas, boxes: tuple[Axis, Axis, ir.Value]) -> ir.Value:
    """Return float32[B, C, R * PH, PW] with as many samples for every box."""
    across, down, valid = boxes
    ratio, rows = call.attributes["sampling_ratio"], call.dims(0)[0]
    counts = [call.attributes[f"output_{side}"] * ratio for side in ("width", "height")]
    parts = [((np.arange(n) + 0.5) / n).astype(np.float32)[None, None] for n in counts]
    x = op.Unsqueeze(across.places(op, parts[0], valid), [2])
    y = op.Unsqueeze(down.places(op, parts[1], valid), [3])
    samples = atlas.read(op, x, y, (rows * counts[1], counts[0]))
    shrink = op.MaxPool if call.attributes["mode"] == "max" else op.AveragePool
    size = [ratio, ratio]
    pooled: ir.Value = shrink(samples, kernel_shape=size, strides=size)
    return pooled


def _adaptive(op: Tape, call: Call, atlas: Atlas, boxes: tuple[Axis, Axis, ir.Value]) -> ir.Value:
    """Return float32[B, C, R * PH, PW]: sample after sample, as many as the largest box needs."""
    across, down, valid = boxes
    rows = call.dims(0)[0]
    bins = [call.attributes[f"output_{side}"] for side in ("width", "height")]
    grids = [
        op.Where(valid, op.Ceil(op.Div(axis.side, float(n))), 0.0)
        for axis, n in zip((across, down), bins, strict=True)
    ]
    most = [op.Max(op.ReduceMax(grid, keepdims=0), 1.0) for grid in grids]
    trips = op.Cast(op.Mul(*most), to=ir.DataType.INT64.value)

    def add(
        inner: Tape, step: ir.Value, sums: Sequence[ir.Value]
    ) -> tuple[None, Sequence[ir.Value]]:
        number = inner.Cast(step, to=ir.DataType.FLOAT.value)
        row = inner.Floor(inner.Div(number, most[0]))
        turn = (inner.Sub(number, inner.Mul(row, most[0])), row)
        places = []
        for axis, grid, index, n in zip((across, down), grids, turn, bins, strict=True):
            inside = inner.Div(inner.Add(index, 0.5), inner.Max(grid, 1.0))
            base = np.arange(n, dtype=np.float32)[None, None]
            part = inner.Div(inner.Add(inside, base), float(n))
            places.append(axis.places(inner, part, inner.Less(index, grid)))
        x, y = inner.Unsqueeze(places[0], [2]), inner.Unsqueeze(places[1], [3])
        sample = atlas.read(inner, x, y, (rows * bins[1], bins[0]))
        return None, [inner.Add(sums[0], sample)]

    zero = op.Expand(
        0.0,
        op.Concat(op.Shape(call.inputs[2], start=0, end=2), [rows * bins[1], bins[0]], axis=0),
    )
    zero.type = ir.TensorType(ir.DataType.FLOAT)
    (total,) = op.loop(trips, None, [zero], add)
    share = op.Max(op.Mul(*grids), 1.0)
    spread = op.Reshape(op.Expand(share, [1, 1, bins[1]]), [0, 1, rows * bins[1], 1])
    mean: ir.Value = op.Div(total, spread)
    return mean
