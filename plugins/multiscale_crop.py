"""Crops of a feature pyramid, resized bilinearly: each box from the level that fits its size.

Source: the arithmetic is that of `tf.image.crop_and_resize`; the level is that of Mask R-CNN with
a feature pyramid in Keras (FPN, arXiv 1612.03144, equation 1, rounded to the nearest).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from deploykit.ops import levels
from deploykit.ops.atlas import OUTSIDE, Atlas
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

    from deploykit.ops.tape import Tape

CHUNK = 1 << 24
"""Elements of the crops that the reference makes at a time."""
NEAR = 1e-3
"""Cells beyond the border of a map up to which a place still is on it. A box that ends with the
image has its last sample on the last cell, and the rounding of that place is one way or the other:
TensorFlow gives the cell or zero there, as it falls."""
MOST_LEVELS = 5
FLOAT, INT64 = 1, 7
"""ONNX's numbers of the types."""


def shares(attributes: Mapping[str, Any], count: int) -> list[tuple[float, bool]]:
    """Return from which share of the image's area on a box is of the next level, for each but one.

    With l = log2(side / canonical_size), the level is canonical_level + l rounded, a half to the
    even number: True where a share itself is of the next level. Areas need no logarithm.
    """
    side, whole = (float(np.float32(attributes[n])) for n in ("canonical_size", "image_area"))
    found = []
    for level in range(1, count):
        power = level + attributes["first_level"] - attributes["canonical_level"]
        area = 2.0 ** (2 * power - 1) * side**2
        found.append((float(np.float32(area / whole)), power % 2 == 0))
    return found


# --- the meaning, in torch -------------------------------------------------------------------


def reference(
    boxes: Tensor,
    count: Tensor,
    features: list[Tensor],
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> Tensor:
    """Return T[B * R, C, output_height, output_width]; rows of the padding are zero.

    boxes: float32[B, R, 4]: x1, y1, x2, y2, where 0 is the first cell of every map and 1 the last.
    count: int32[B]. features: T[B, C, H_l, W_l], one per level, the finest first. A place outside
    of a map is zero, and so is a box with a coordinate that is no finite number.
    """
    import torch  # noqa: PLC0415 - quantize, bench and inspect read this file without torch

    pooled = levels.fake(boxes, count, features, **attributes).zero_()
    rows, flat = boxes.shape[1], boxes.reshape(-1, 4)
    valid = (torch.arange(rows) < count[:, None]).flatten() & flat.isfinite().all(-1)
    level = _level(flat, len(features), attributes)
    each = max(1, CHUNK // max(1, pooled[:1].numel()))
    for index, maps in enumerate(features):
        chosen = (valid & (level == index)).nonzero()[:, 0]
        for part in torch.split(chosen, each):
            image = torch.div(part, rows, rounding_mode="floor")
            pooled[part] = _crops(maps, image, flat[part], pooled.shape[2:]).to(pooled.dtype)
    return pooled


def _level(flat: Tensor, count: int, attributes: Mapping[str, Any]) -> Tensor:
    """Return the level of each box, int64[n], 0 the finest."""
    import torch  # noqa: PLC0415 - as in `reference`

    area = (flat[:, 2] - flat[:, 0]) * (flat[:, 3] - flat[:, 1])
    level = torch.zeros_like(area, dtype=torch.int64)
    for least, itself in shares(attributes, count):
        level += area >= least if itself else area > least
    return level


def _crops(maps: Tensor, image: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Return [n, C, PH, PW], at least in float32, of maps T[B, C, H, W] and boxes [n, 4]."""
    import torch  # noqa: PLC0415 - as in `reference`

    height, width = maps.shape[2:]
    cells = maps.permute(0, 2, 3, 1)
    y, x = _places(boxes[:, 1::2], size[0], height), _places(boxes[:, 0::2], size[1], width)
    (inside_y, y), (inside_x, x) = _on_map(y, height), _on_map(x, width)
    inside = inside_y[:, :, None] & inside_x[:, None]
    (top, bottom, down), (left, right, along) = _cells(y, height), _cells(x, width)

    def read(row: Tensor, column: Tensor) -> Tensor:
        values = cells[image[:, None, None], row[:, :, None], column[:, None]]
        return values.to(torch.promote_types(maps.dtype, boxes.dtype))

    along, down = along[:, None, :, None], down[:, :, None, None]
    upper = read(top, left)
    upper = upper + (read(top, right) - upper) * along
    lower = read(bottom, left)
    lower = lower + (read(bottom, right) - lower) * along
    found = torch.where(inside[..., None], upper + (lower - upper) * down, 0.0)
    return found.permute(0, 3, 1, 2)


def _places(ends: Tensor, bins: int, cells: int) -> Tensor:
    """Return where the samples of ends [n, 2] lie along one axis, [n, bins] in cells."""
    import torch  # noqa: PLC0415 - as in `reference`

    low, high, last = ends[:, :1], ends[:, 1:], cells - 1
    if bins == 1:
        return 0.5 * (low + high) * last
    # torch divides by a number as it multiplies with its inverse: a tensor is divided by
    step = (high - low) * last / torch.full_like(low, bins - 1)
    return low * last + torch.arange(bins, dtype=ends.dtype) * step


def _on_map(place: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """Return which places are on a map, and each where it is read."""
    near = (place >= -NEAR) & (place - (cells - 1) <= NEAR)
    return near, place.clamp(0, cells - 1)


def _cells(place: Tensor, cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the two cells around each place, and how far it is from the first to the second."""
    low = place.floor()
    near = low.clamp(0, cells - 1).long()
    return near, place.ceil().clamp(0, cells - 1).long(), place - low


# --- standard ops for ONNX Runtime -------------------------------------------------------------


def runtime_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the op as one RoiAlign of one sample a bin per level, over that level's boxes only.

    A bin's centre is where the crop's sample is; what lies outside of the map is put to zero.
    """
    boxes, _, *features = call.inputs
    rows, flat = call.dims(0)[0], op.Reshape(boxes, [-1, 4])
    place = op.Range(0, op.Squeeze(op.Shape(flat, start=0, end=1)), 1)
    image, valid = op.Div(place, rows), op.Reshape(_valid(op, call), [-1])
    level = _level_body(op, flat, len(features), call.attributes)
    half = features[0].dtype is not ir.DataType.FLOAT

    def read(index: int, chosen: ir.Value) -> ir.Value:
        maps = op.Cast(features[index], to=FLOAT) if half else features[index]
        mine = op.Gather(flat, chosen)
        return _sampled(op, call, index, (maps, mine, op.Gather(image, chosen)))

    wanted = [op.And(valid, op.Equal(level, index)) for index in range(len(features))]
    size = call.dims(2)[0], *_size(call)
    return [levels.as_features(op, call, levels.pooled(op, place, wanted, read, size))]


def _size(call: Call) -> tuple[int, int]:
    return call.attributes["output_height"], call.attributes["output_width"]


def _valid(op: Tape, call: Call) -> ir.Value:
    """Return which rows count, bool[B, R]."""
    boxes, count, *_ = call.inputs
    finite = op.Less(op.ReduceSum(op.Abs(boxes), [2], keepdims=0), float("inf"))
    found: ir.Value = op.And(present(op, count, call.dims(0)[0]), finite)
    return found


def _level_body(op: Tape, boxes: ir.Value, count: int, attributes: Mapping[str, Any]) -> ir.Value:
    """Return the level of each box, int64[...]; boxes: [..., 4]."""
    low_x, low_y, high_x, high_y = op.Split(boxes, num_outputs=4, axis=-1, outputs=4)
    area = op.Squeeze(op.Mul(op.Sub(high_x, low_x), op.Sub(high_y, low_y)), [-1])
    level = op.Cast(op.Less(area, float("-inf")), to=INT64)  # zeros
    for least, itself in shares(attributes, count):
        reached = op.GreaterOrEqual(area, least) if itself else op.Greater(area, least)
        level = op.Add(level, op.Cast(reached, to=INT64))
    found: ir.Value = level
    return found


def _sampled(
    op: Tape, call: Call, index: int, where: tuple[ir.Value, ir.Value, ir.Value]
) -> ir.Value:
    """Return float32[k, C, PH, PW] of one level: `where` are its maps, boxes and their images."""
    maps, boxes, image = where
    ends, inside = [], []
    low_x, low_y, high_x, high_y = op.Split(boxes, num_outputs=4, axis=1, outputs=4)
    for axis, (low, high) in enumerate(((low_y, high_y), (low_x, high_x))):
        bins, cells = _size(call)[axis], call.dims(2 + index)[1 + axis]
        place, step = _places_body(op, low, high, bins, float(cells - 1))
        inside.append(_within(op, place, float(cells - 1)))
        first = place if bins == 1 else op.Mul(low, float(cells - 1))
        start = op.Sub(op.Add(first, 0.5), op.Mul(step, 0.5))
        ends += [start, op.Add(start, op.Mul(step, float(bins)))]
    rois = op.Concat(ends[2], ends[0], ends[3], ends[1], axis=1)
    pooled = op.RoiAlign(
        maps,
        rois,
        image,
        output_height=_size(call)[0],
        output_width=_size(call)[1],
        sampling_ratio=1,
        spatial_scale=1.0,
        coordinate_transformation_mode="half_pixel",
    )
    whole = op.And(op.Unsqueeze(inside[0], [1, 3]), op.Unsqueeze(inside[1], [1, 2]))
    found: ir.Value = op.Where(whole, pooled, 0.0)
    return found


def _places_body(
    op: Tape, low: ir.Value, high: ir.Value, bins: int, last: float | ir.Value
) -> tuple[ir.Value, ir.Value]:
    """Return where samples lie, [..., bins] in cells, and the distance of two, [..., 1].

    last: the number of the last cell, of the level of all boxes or of each.
    """
    if bins == 1:
        place = op.Mul(op.Mul(op.Add(low, high), 0.5), last)
        return place, op.Mul(place, 0.0)
    step = op.Div(op.Mul(op.Sub(high, low), last), float(bins - 1))
    numbers = np.arange(bins, dtype=np.float32)
    return op.Add(op.Mul(low, last), op.Mul(step, numbers)), step


def _within(op: Tape, place: ir.Value, last: float | ir.Value) -> ir.Value:
    near = op.Sub(place, last) if isinstance(last, ir.Value) else op.Add(place, -last)
    found: ir.Value = op.And(op.GreaterOrEqual(place, -NEAR), op.LessOrEqual(near, NEAR))
    return found


# --- standard ops for TensorRT without the plugin ----------------------------------------------


def portable_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the op as GridSample over one map of all levels.

    Places are float32 whatever the features are; their rounding moves a sample by less than 1e-4
    cells on maps of up to 1000 cells.
    """
    boxes, _, *features = call.inputs
    rows = call.dims(0)[0]
    sizes = [call.dims(2 + index)[1:] for index in range(len(features))]
    atlas = Atlas(op, features, sizes)
    level = op.Unsqueeze(_level_body(op, boxes, len(features), call.attributes), [2])
    valid = op.Unsqueeze(_valid(op, call), [2])
    low_x, low_y, high_x, high_y = op.Split(boxes, num_outputs=4, axis=2, outputs=4)
    units = []
    for axis, (low, high) in enumerate(((low_y, high_y), (low_x, high_x))):
        starts = [0] * len(sizes) if axis else atlas.starts
        last, offset = (
            op.Gather(np.array(values, np.float32), level)
            for values in ([size[axis] - 1 for size in sizes], starts)
        )
        place, _ = _places_body(op, low, high, _size(call)[axis], last)
        near = op.And(_within(op, place, last), valid)
        step = 2.0 / ((atlas.width if axis else atlas.height) - 1)
        on_map = op.Max(op.Min(place, last), 0.0)
        unit = op.Sub(op.Mul(op.Add(on_map, offset), step), 1.0)
        units.append(op.Where(near, unit, OUTSIDE))
    height, width = _size(call)
    x, y = op.Unsqueeze(units[1], [2]), op.Unsqueeze(units[0], [3])
    pooled = atlas.read(op, x, y, (rows * height, width))
    return [levels.by_box(op, call, pooled)]


# --- the kernel and the plugin -----------------------------------------------------------------


class Params(ctypes.Structure):
    """`MultiscaleCropParams` of multiscale_crop.cuh."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "rows", "channels", "levels")),
        *((name, ctypes.c_int * MOST_LEVELS) for name in ("heights", "widths")),
        *((name, ctypes.c_int) for name in ("output_height", "output_width")),
        *((name, ctypes.c_float) for name in ("image_area", "canonical_size")),
        *((name, ctypes.c_int) for name in ("canonical_level", "first_level")),
    )


def params(values: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> Params:
    """Return the launcher's parameters."""
    (batch, rows, _), _, *maps = shapes
    found = Params(batch, rows, maps[0][1])
    for index, size in enumerate(maps):
        found.heights[index], found.widths[index] = size[2:]
    for attribute in plugin.attributes:
        setattr(found, attribute.name, values[attribute.name])
    return found


def check(attributes: Mapping[str, Any], sizes: Sequence[tuple[int, ...]]) -> str:
    """Return what is wrong between attributes and inputs, "" where nothing is."""
    if attributes["levels"] != len(sizes) - 2:
        return f"levels is {attributes['levels']} for {len(sizes) - 2} maps"
    return regions_mismatch(sizes)


plugin = Plugin(
    name="DKMultiscaleCrop",
    version="1",
    inputs=(Input("boxes", "float32"), Input("count", "int32"), Input("features...")),
    outputs=(Output("pooled", "features"),),
    attributes=(
        *POOLED_SIZE,
        Attribute("levels", 1, f"1 to {MOST_LEVELS}", lambda v: 1 <= v <= MOST_LEVELS),
        Attribute("image_area", 1048576.0, "above 0", lambda v: 0 < v < np.inf),
        Attribute("canonical_size", 224.0, "above 0", lambda v: 0 < v < np.inf),
        Attribute("canonical_level", 4, "0 to 10", lambda v: 0 <= v <= 10),
        Attribute("first_level", 2, "0 to 10", lambda v: 0 <= v <= 10),
    ),
    reference=reference,
    fake=levels.fake,
    runtime_body=runtime_body,
    portable_body=portable_body,
    source="multiscale_crop.cu",
    launcher=Launcher(params, (POOLED,)),
    why_float="reads between cells, and one rounding, before the head, does for all its levels",
    check=check,
)
