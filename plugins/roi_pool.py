"""RoIPool: the largest value of each bin of a box, whose limits are whole cells.

Source: Fast R-CNN (arXiv 1504.08083, section 2.1); rounding and clipping are those of
torchvision.ops.roi_pool.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.ops.plugin import (
    POOLED,
    POOLED_SIZE,
    Attribute,
    Call,
    Input,
    Launcher,
    Output,
    Plugin,
    present,
    regions_mismatch,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from deploykit.data.preprocess import Floats
    from deploykit.ops.tape import Tape

ENDLESS = float(1 << 29)
"""Cells from the corner of the map beyond which a box is cut: their distance still is an int32."""
LOWEST = float(np.finfo(np.float32).min)
"""What a bin of nothing but NaN gives; -inf in FP16."""
FLOAT, INT32 = 1, 6
"""ONNX's numbers of the types."""

Span: TypeAlias = "tuple[int, int]"
"""Cells along one axis, from the first up to but not including the last."""


def farthest(scale: float) -> float:
    """Return the largest coordinate that counts, in input pixels: `ENDLESS` cells, a float32."""
    limit = np.float64(ENDLESS) / np.float64(np.float32(scale))
    return float(np.float32(min(limit, -LOWEST)))


# --- the meaning, in torch -------------------------------------------------------------------


def reference(
    boxes: Tensor,
    count: Tensor,
    features: Tensor,
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> Tensor:
    """Return T[B * R, C, output_height, output_width]; rows of the padding are zero.

    boxes: float32[B, R, 4]. count: int32[B]. features: T[B, C, H, W]. A box with a coordinate that
    is no finite number gives zeros too, and so does a bin without cells. NaN is never the largest.
    """
    import torch  # noqa: PLC0415 - quantize, bench and inspect read this file without torch

    pooled = fake(boxes, count, features, **attributes).zero_()
    rows = boxes.shape[1]
    present = torch.arange(rows, device=count.device) < count[:, None]
    down, across = _spans(boxes, features.shape[2:], attributes)
    lowest = float("-inf") if features.dtype is torch.float16 else LOWEST
    maps = torch.where(features > lowest, features, lowest)
    for image, row in (present & boxes.isfinite().all(-1)).nonzero().tolist():
        pooled[image * rows + row] = _largest(maps[image], down[image][row], across[image][row])
    return pooled


def fake(
    boxes: Tensor,
    count: Tensor,  # noqa: ARG001 - the op's signature
    features: Tensor,
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> Tensor:
    """Return a tensor of the right shape and type."""
    size = attributes["output_height"], attributes["output_width"]
    return features.new_empty(boxes.shape[0] * boxes.shape[1], features.shape[1], *size)


def _spans(
    boxes: Tensor, size: Sequence[int], attributes: Mapping[str, Any]
) -> list[list[list[list[Span]]]]:
    """Return the rows, and the columns, of the bins of each box, [B][R][bins]."""
    import torch  # noqa: PLC0415 - as in `reference`

    scale = attributes["spatial_scale"]
    limit = farthest(scale)
    places = boxes.nan_to_num().clamp(-limit, limit) * scale
    whole = places.trunc()
    cells = (whole + places.sign() * ((places - whole).abs() >= 0.5)).long()  # as C's roundf
    found = []
    for axis, side in ((1, "height"), (0, "width")):
        bins, low = attributes[f"output_{side}"], cells[..., axis, None]
        length = (cells[..., axis + 2, None] - low + 1).clamp(min=1).to(boxes.dtype)
        edges = torch.arange(bins + 1, device=boxes.device) * (length / length.new_full((1,), bins))
        limits = torch.stack([edges[..., :-1].floor(), edges[..., 1:].ceil()], -1).long()
        found.append((limits + low[..., None]).clamp(0, size[1 - axis]).tolist())
    return found


def _largest(maps: Tensor, down: Sequence[Span], across: Sequence[Span]) -> Tensor:
    """Return T[C, PH, PW] of one box: maps (T[C, H, W]) by rows, then by columns."""
    import torch  # noqa: PLC0415 - as in `reference`

    for axis, spans in ((1, down), (2, across)):
        none = maps.new_zeros(maps.select(axis, 0).shape)
        parts = [
            maps.narrow(axis, first, last - first).amax(axis) if first < last else none
            for first, last in spans
        ]
        maps = torch.stack(parts, axis)
    return maps


# --- standard ops for ONNX Runtime -------------------------------------------------------------


def runtime_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the op as MaxRoiPool, whose arithmetic is torchvision's."""
    boxes, _, features = call.inputs
    maps = _known(op, features)
    valid, near = _valid(op, call)
    images = op.Unsqueeze(op.Shape(boxes, start=0, end=1), [1, 2])
    total = op.Squeeze(images)
    image = op.Cast(op.Unsqueeze(op.Range(0, total, 1), [1, 2]), to=FLOAT)
    rows = op.Concat(op.Expand(image, [1, call.dims(0)[0], 1]), near, axis=2)
    size = [call.attributes[f"output_{side}"] for side in ("height", "width")]
    whole = features.dtype is ir.DataType.FLOAT
    pooled = op.MaxRoiPool(
        maps if whole else op.Cast(maps, to=FLOAT),
        op.Reshape(rows, [-1, 5]),
        pooled_shape=size,
        spatial_scale=call.attributes["spatial_scale"],
    )
    found = op.Where(op.Reshape(valid, [-1, 1, 1, 1]), pooled, 0.0)
    return [found if whole else op.Cast(found, to=ir.DataType.FLOAT16.value)]


def _valid(op: Tape, call: Call) -> tuple[ir.Value, ir.Value]:
    """Return which rows count, bool[B, R, 1], and finite boxes float32[B, R, 4]."""
    boxes, count, _ = call.inputs
    there = op.Unsqueeze(present(op, count, call.dims(0)[0]), [2])
    largest = op.ReduceMax(op.Abs(boxes), [2], keepdims=1)
    known = op.Equal(op.ReduceMax(op.Cast(op.IsNaN(boxes), to=FLOAT), [2], keepdims=1), 0.0)
    valid = op.And(op.And(there, known), op.Less(largest, float("inf")))
    limit = farthest(call.attributes["spatial_scale"])
    near = op.Max(op.Min(op.Where(valid, boxes, 0.0), limit), -limit)
    return valid, near


def _known(op: Tape, features: ir.Value) -> ir.Value:
    """Return the features without NaN, which is the lowest instead: it is never the largest."""
    whole = features.dtype is ir.DataType.FLOAT
    lowest = np.array(LOWEST, np.float32) if whole else np.array(-np.inf, np.float16)
    known: ir.Value = op.Where(op.Greater(features, lowest), features, lowest)
    return known


# --- standard ops for TensorRT without the plugin ----------------------------------------------


def portable_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the op as the largest of four cells of running maxima.

    A bin is as wide and high as two windows whose sides are powers of two, one from either end of
    it. So the maxima of all such windows, from every cell on, are written once per image
    (log2(H) * log2(W) maps: 36 of 38 x 63 cells for an input of 600 x 1000), and a bin takes four
    of them, however large it is. Exact, without a loop, and nothing is as large as R maps.
    """
    channels, height, width = call.dims(2)
    attributes = call.attributes
    valid, near = _valid(op, call)
    cells = _cells(op, op.Mul(near, attributes["spatial_scale"]))
    x1, y1, x2, y2 = op.Split(cells, num_outputs=4, axis=2, outputs=4)
    across = _windows(op, (x1, x2), attributes["output_width"], width)
    down = _windows(op, (y1, y2), attributes["output_height"], height)
    tables = _tables(op, call.inputs[2], call.dims(2))
    windows = _powers(height) * _powers(width) * height * width
    images = op.Squeeze(op.Shape(near, start=0, end=1))
    start = op.Cast(op.Mul(op.Range(0, images, 1), windows), to=INT32)
    start = op.Unsqueeze(start, [1, 2, 3])
    columns = [op.Unsqueeze(index, [2]) for index in across.places(op, 1, height * width)]
    strides = (width, height * width * _powers(width))
    rows = [op.Add(op.Unsqueeze(i, [3]), start) for i in down.places(op, *strides)]
    parts = [op.Gather(tables, op.Add(row, column)) for row in rows for column in columns]
    filled = op.And(op.Unsqueeze(across.filled, [2]), op.Unsqueeze(down.filled, [3]))
    filled = op.Unsqueeze(op.And(filled, op.Unsqueeze(valid, [3])), [4])
    found = op.Where(filled, op.Max(*parts), op.CastLike(0.0, tables))
    shape = [-1, channels, attributes["output_height"], attributes["output_width"]]
    return [op.Reshape(op.Transpose(found, perm=[0, 1, 4, 2, 3]), shape)]


def _cells(op: Tape, places: ir.Value) -> ir.Value:
    """Return int32 of float32: half a cell is rounded away from zero, as C's roundf does."""
    size = op.Abs(places)
    whole = op.Floor(size)
    up = op.Where(op.GreaterOrEqual(op.Sub(size, whole), 0.5), op.Add(whole, 1.0), whole)
    rounded: ir.Value = op.Cast(op.Mul(op.Sign(places), up), to=INT32)
    return rounded


def _powers(size: int) -> int:
    """Return how many powers of two are not above `size`."""
    return size.bit_length()


@dataclass(frozen=True)
class Windows:
    """Two windows for each bin along one axis, which together cover it; each [B, R, bins]."""

    power: ir.Value
    """int32: the windows are 2**power cells."""
    first: ir.Value
    """int32: the first cell of one window."""
    second: ir.Value
    filled: ir.Value
    """bool: whether the bin has a cell."""

    def places(self, op: Tape, step: int, per_power: int) -> list[ir.Value]:
        """Return int32[B, R, bins] of each window: its part of the index into the tables."""
        table = op.Mul(self.power, np.int32(per_power))
        return [op.Add(op.Mul(cell, np.int32(step)), table) for cell in (self.first, self.second)]


def _windows(op: Tape, ends: tuple[ir.Value, ir.Value], bins: int, size: int) -> Windows:
    """Return the windows of sides from one cell to another, int32[B, R, 1], on `size` cells."""
    one, zero, most = np.int32(1), np.int32(0), np.int32(size)
    low, high = ends
    length = op.Cast(op.Max(op.Add(op.Sub(high, low), one), one), to=FLOAT)
    step = op.Div(length, float(bins))
    index: Floats = np.arange(bins + 1, dtype=np.float32)[None, None]
    first = op.Floor(op.Mul(step, index[..., :-1]))
    last = op.Ceil(op.Mul(step, index[..., 1:]))
    first, last = (
        op.Max(op.Min(op.Add(op.Cast(edge, to=INT32), low), most), zero) for edge in (first, last)
    )
    cells = op.Sub(last, first)
    sides = np.array([2**power for power in range(1, _powers(size))], np.int32)
    reached = op.GreaterOrEqual(op.Unsqueeze(cells, [3]), sides)
    power = op.ReduceSum(op.Cast(reached, to=INT32), [3], keepdims=0)
    side = op.Gather(np.concatenate([[one], sides]).astype(np.int32), power)
    inside = op.Min(first, np.int32(size - 1))  # an empty bin at the far end
    second = op.Max(op.Sub(last, side), zero)
    return Windows(power, inside, second, op.Greater(cells, zero))


def _tables(op: Tape, features: ir.Value, sizes: tuple[int, ...]) -> ir.Value:
    """Return T[B * powers of H * powers of W * H * W, C]: the largest of every window.

    A window that reaches beyond the map is written too, and never read.
    """
    channels, height, width = sizes
    tables = [op.Unsqueeze(op.Transpose(_known(op, features), perm=[0, 2, 3, 1]), [1])]
    for axis, size in ((3, width), (2, height)):
        for power in range(_powers(size) - 1):
            tables.append(_doubled(op, tables[-1], axis, 2**power))
        tables = [op.Concat(*tables, axis=1)] if len(tables) > 1 else tables
    table: ir.Value = op.Reshape(tables[0], [-1, channels])
    return table


def _doubled(op: Tape, table: ir.Value, axis: int, step: int) -> ir.Value:
    """Return the maxima of windows twice as long, from those of `step` cells along an axis."""
    later = op.Slice(table, [step], [np.iinfo(np.int64).max], [axis])
    rest = op.Slice(table, [-step], [np.iinfo(np.int64).max], [axis])
    doubled: ir.Value = op.Max(table, op.Concat(later, rest, axis=axis))
    return doubled


class Params(ctypes.Structure):
    """`RoiPoolParams` of roi_pool.cuh."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "rows", "channels", "height", "width")),
        *((name, ctypes.c_int) for name in ("output_height", "output_width")),
        ("spatial_scale", ctypes.c_float),
    )


def params(values: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> Params:
    """Return the launcher's parameters."""
    (batch, rows, _), _, (_, *sizes) = shapes
    named = (values[name] for name in ("output_height", "output_width", "spatial_scale"))
    return Params(batch, rows, *sizes, *named)


plugin = Plugin(
    name="DKRoiPool",
    version="1",
    source="roi_pool.cu",
    launcher=Launcher(params, (POOLED,)),
    why_float="reads whole cells: one rounding, before the head, does",
    inputs=(Input("boxes", "float32"), Input("count", "int32"), Input("features")),
    outputs=(Output("pooled", "features"),),
    attributes=(
        *POOLED_SIZE,
        Attribute("spatial_scale", 0.0625, "a finite number above 0", lambda v: 0 < v < np.inf),
    ),
    reference=reference,
    fake=fake,
    runtime_body=runtime_body,
    portable_body=portable_body,
    check=lambda _, sizes: regions_mismatch(sizes),
)
