"""RoIAlign over a feature pyramid: each box is read from the level that fits its size.

Source: Mask R-CNN (arXiv 1703.06870) for the sampling, FPN (arXiv 1612.03144, equation 1) for the
level; clipping and rounding are those of torchvision.ops.roi_align.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from deploykit.ops import levels
from deploykit.ops.atlas import pool
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

CHUNK = 1 << 26
"""Elements of one corner's features that the reference holds at a time."""
STRIP, LONGEST = 16.0, 1024.0
"""Cells in the height of a strip of boxes that ONNX Runtime pools one after another, and cells
along a map, beyond which boxes are not told apart."""
FLOAT, INT64 = 1, 7
"""ONNX's numbers of the types."""


# --- the meaning, in torch -------------------------------------------------------------------


def reference(
    boxes: Tensor,
    count: Tensor,
    features: list[Tensor],
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> Tensor:
    """Return T[B * R, C, output_height, output_width]; rows of the padding are zero.

    boxes: float32[B, R, 4]. count: int32[B]. features: T[B, C, H_l, W_l], one per level. A box
    with a coordinate that is no finite number gives zeros too.
    """
    import torch  # noqa: PLC0415 - quantize, bench and inspect read this file without torch

    pooled = levels.fake(boxes, count, features, **attributes).zero_()
    rows = boxes.shape[1]
    valid = (torch.arange(rows) < count[:, None]) & boxes.isfinite().all(-1)
    level = _level(boxes, len(features), attributes).flatten()
    per_box = features[0].shape[1] * _samples(attributes)
    for index, scale in enumerate(attributes["spatial_scales"]):
        chosen = (valid.flatten() & (level == index)).nonzero()[:, 0]
        for part in torch.split(chosen, max(1, CHUNK // max(1, per_box))):
            corners = boxes.reshape(-1, 4)[part] * scale
            image = torch.div(part, rows, rounding_mode="floor")
            pooled[part] = _aligned(features[index], image, corners, attributes)
    return pooled


def _level(boxes: Tensor, levels: int, attributes: Mapping[str, Any]) -> Tensor:
    """Return the level of each box, int64[B, R], 0 the finest."""
    sides = boxes[..., 2:] - boxes[..., :2] + attributes["inclusive"]
    ratio = sides.prod(-1).sqrt() / attributes["canonical_size"]
    epsilon = attributes["level_epsilon"]
    power = (ratio + epsilon).log2() if attributes["epsilon_inside"] else ratio.log2() + epsilon
    level: Tensor = (attributes["canonical_level"] + power).floor() - attributes["first_level"]
    return level.nan_to_num(0, levels - 1, 0).clamp(0, levels - 1).long()


def _samples(attributes: Mapping[str, Any]) -> int:
    """Return how many samples a box takes, about."""
    ratio = attributes["sampling_ratio"] or 4
    return int(attributes["output_height"] * attributes["output_width"] * ratio * ratio)


def _aligned(maps: Tensor, image: Tensor, corners: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    """Return T[n, C, PH, PW] of n boxes of one level.

    maps: T[B, C, H, W]. image: int64[n]. corners: float32[n, 4] in cells.
    """
    offset = 0.5 if attributes["aligned"] else 0.0
    start = corners[:, :2] - offset
    sides = corners[:, 2:] - offset - start
    if not attributes["aligned"]:
        sides = sides.clamp(min=1)
    size = attributes["output_width"], attributes["output_height"]
    grid = _grid(sides, size, attributes["sampling_ratio"])
    pooled = maps.new_zeros(len(corners), maps.shape[1], size[1], size[0])
    for pair in sorted(set(map(tuple, grid.tolist()))):
        if min(pair) > 0:
            rows = (grid == grid.new_tensor(pair)).all(1).nonzero()[:, 0]
            places = [_places(start[rows, k], sides[rows, k], size[k], pair[k]) for k in (0, 1)]
            sampled = _largest if attributes["mode"] == "max" else _mean
            pool = sampled(maps, image[rows], places, (size[1], pair[1], size[0], pair[0]))
            pooled[rows] = pool.permute(0, 3, 1, 2).to(maps.dtype)
    return pooled


def _grid(sides: Tensor, size: tuple[int, int], ratio: int) -> Tensor:
    """Return the samples per bin, across and down, int64[n, 2]."""
    adaptive = (sides / sides.new_tensor(size)).ceil().long()
    return adaptive if ratio == 0 else adaptive.new_full(adaptive.shape, ratio)


def _places(start: Tensor, side: Tensor, bins: int, samples: int) -> Tensor:
    """Return where the samples lie along one axis, float32[n, bins * samples] in cells."""
    import torch  # noqa: PLC0415 - as in `reference`

    width = (side / bins)[:, None, None]
    bin_start = start[:, None, None] + torch.arange(bins)[None, :, None] * width
    inside = (torch.arange(samples) + 0.5)[None, None] * width / samples
    return (bin_start + inside).flatten(1)


def _largest(
    maps: Tensor, image: Tensor, places: Sequence[Tensor], bins: tuple[int, int, int, int]
) -> Tensor:
    """Return the largest sample of each bin, T[n, PH, PW, C]; arguments as of `_mean`."""
    index, weights = _bilinear(maps, image, *places)
    rows = _rows(maps)
    corners = zip(index.unbind(-1), weights.to(rows.dtype).unbind(-1), strict=True)
    values = sum(rows[cell] * weight[..., None] for cell, weight in corners)
    largest: Tensor = values.unflatten(2, bins[2:]).unflatten(1, bins[:2]).amax((2, 4))  # type: ignore[union-attr]  # four corners are not 0
    return largest


def _mean(
    maps: Tensor, image: Tensor, places: Sequence[Tensor], bins: tuple[int, int, int, int]
) -> Tensor:
    """Return the mean of the samples of each bin, T[n, PH, PW, C], at least in float32.

    maps: T[B, C, H, W]. image: int64[n]. places: of the samples, across and down. bins: how many,
    and samples in each: down, then across.
    """
    from torch.nn.functional import embedding_bag  # noqa: PLC0415 - as in `reference`

    high, down, wide, across = bins
    index, weights = (
        part.reshape(-1, high, down, wide, across, 4).transpose(2, 3).reshape(-1, down * across * 4)
        for part in _bilinear(maps, image, *places)
    )
    rows = _rows(maps)
    sums = embedding_bag(index, rows, per_sample_weights=weights.to(rows.dtype), mode="sum")
    return sums.reshape(-1, high, wide, rows.shape[1]) / (down * across)


def _rows(maps: Tensor) -> Tensor:
    """Return T[B * H * W, C], at least in float32."""
    import torch  # noqa: PLC0415 - as in `reference`

    rows = maps.permute(0, 2, 3, 1).flatten(0, 2)
    return rows.to(torch.promote_types(maps.dtype, torch.float32)).contiguous()


def _bilinear(maps: Tensor, image: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of `_rows` make the samples at y ([n, Y]) and x, and how much of each.

    Both are [n, Y, X, 4]: the corners around each sample.
    """
    import torch  # noqa: PLC0415 - as in `reference`

    height, width = maps.shape[2:]
    index, weights = [], []
    for row, down in _corners(y, height):
        for column, across in _corners(x, width):
            start = (image[:, None] * height + row)[:, :, None] * width
            index.append(start + column[:, None])
            weights.append(down[:, :, None] * across[:, None])
    return torch.stack(index, -1), torch.stack(weights, -1)


def _corners(place: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    """Return the two cells around each place and their weights; 0 more than a cell outside."""
    inside = ((place >= -1) & (place <= size)).to(place.dtype)
    place = place.clamp(min=0)
    low = place.floor().clamp(max=size - 1)
    part = (place - low).masked_fill(low >= size - 1, 0)
    cell = low.long()
    return [(cell, (1 - part) * inside), ((cell + 1).clamp(max=size - 1), part * inside)]


# --- standard ops for ONNX Runtime -------------------------------------------------------------


def runtime_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the op as one RoiAlign per level, over the boxes of that level only."""
    boxes, count, *features = call.inputs
    attributes, rows = call.attributes, call.dims(0)[0]
    flat = op.Reshape(boxes, [-1, 4])
    total = op.Squeeze(op.Shape(flat, start=0, end=1))
    place = op.Range(0, total, 1)
    image = op.Div(place, rows)
    finite = op.Less(op.ReduceSum(op.Abs(flat), [1], keepdims=0), float("inf"))
    valid = op.And(op.Reshape(present(op, count, rows), [-1]), finite)
    if attributes["aligned"] and attributes["sampling_ratio"] == 0:
        valid = op.And(valid, _upright(op, flat))
    level = _level_body(op, flat, len(features), attributes)
    scales = attributes["spatial_scales"]
    scale = op.Gather(np.array(scales, np.float32), level)
    order = _neighbours(op, op.Where(op.Unsqueeze(valid, [1]), flat, 0.0), image, scale)
    half = features[0].dtype is not ir.DataType.FLOAT

    def read(index: int, chosen: ir.Value) -> ir.Value:
        maps = op.Cast(features[index], to=FLOAT) if half else features[index]
        rois = op.Gather(flat, chosen), op.Gather(image, chosen)
        return _roi_align(op, maps, rois, {**attributes, "scale": scales[index]})

    wanted = [op.And(valid, op.Equal(level, index)) for index in range(len(features))]
    size = call.dims(2)[0], attributes["output_height"], attributes["output_width"]
    return [levels.as_features(op, call, levels.pooled(op, order, wanted, read, size))]


def _neighbours(op: Tape, flat: ir.Value, image: ir.Value, scale: ir.Value) -> ir.Value:
    """Return an order of the boxes, int64[n], in which those that read the same cells are close.

    Along strips of the image, from left to right: the cells are then still in the cache.
    flat: finite float32[n, 4]. image: int64[n]. scale: float32[n], cells per pixel.
    """
    low, high = op.Split(op.Mul(flat, 0.5), num_outputs=2, axis=1, outputs=2)
    centre = op.Mul(op.Add(low, high), op.Unsqueeze(scale, [1]))
    x, y = op.Split(op.Clip(centre, 0.0, LONGEST - 1), num_outputs=2, axis=1, outputs=2)
    strip = op.Floor(op.Div(op.Squeeze(y, [1]), STRIP))
    strip = op.Add(strip, op.Mul(op.Cast(image, to=FLOAT), LONGEST / STRIP))
    key = op.Add(op.Mul(strip, LONGEST), op.Squeeze(x, [1]))
    _, order = op.TopK(key, op.Shape(key), largest=0, outputs=2)
    found: ir.Value = order
    return found


def _upright(op: Tape, flat: ir.Value) -> ir.Value:
    """Return which boxes, float32[n, 4], have no negative side; others have no samples at all."""
    low, high = op.Split(flat, num_outputs=2, axis=1, outputs=2)
    upright: ir.Value = op.GreaterOrEqual(op.ReduceMin(op.Sub(high, low), [1], keepdims=0), 0.0)
    return upright


def _level_body(op: Tape, flat: ir.Value, levels: int, attributes: Mapping[str, Any]) -> ir.Value:
    """Return the level of each box, int64[n]: how many levels' smallest sizes it reaches."""
    low, high = op.Split(flat, num_outputs=2, axis=1, outputs=2)
    sides = op.Sub(high, low)
    if attributes["inclusive"]:
        sides = op.Add(sides, 1.0)
    ratio = op.Div(op.Sqrt(op.ReduceProd(sides, [1], keepdims=1)), attributes["canonical_size"])
    epsilon = attributes["level_epsilon"]
    first = attributes["first_level"] - attributes["canonical_level"]
    steps = np.arange(1, levels, dtype=np.float64) + first
    inside = attributes["epsilon_inside"]
    least = 2**steps - epsilon if inside else 2 ** (steps - epsilon)
    reached = op.GreaterOrEqual(ratio, least.astype(np.float32)[None])
    result: ir.Value = op.ReduceSum(op.Cast(reached, to=INT64), [1], keepdims=0)
    return result


def _roi_align(
    op: Tape, maps: ir.Value, rois: tuple[ir.Value, ir.Value], attributes: Mapping[str, Any]
) -> ir.Value:
    samples = attributes["sampling_ratio"]
    finer = samples if attributes["mode"] == "max" else 1
    result: ir.Value = op.RoiAlign(
        maps,
        *rois,
        output_height=attributes["output_height"] * finer,
        output_width=attributes["output_width"] * finer,
        sampling_ratio=1 if finer > 1 else samples,
        spatial_scale=attributes["scale"],
        coordinate_transformation_mode="half_pixel"
        if attributes["aligned"]
        else "output_half_pixel",
    )
    if finer > 1:  # ONNX Runtime's own maximum is over the four weighted corners
        result = op.MaxPool(result, kernel_shape=[finer, finer], strides=[finer, finer])
    return result


# --- standard ops for TensorRT without the plugin ----------------------------------------------


def portable_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the op as GridSample over one map of all levels, then a mean over the samples.

    Places are float32 whatever the features are; their rounding moves a sample by less than 1e-4
    cells on maps of up to 1000 cells.
    """
    flat = op.Reshape(call.inputs[0], [-1, 4])
    level = _level_body(op, flat, len(call.inputs) - 2, call.attributes)
    pooled = pool(op, call, op.Reshape(level, [-1, call.dims(0)[0], 1]))
    return [levels.by_box(op, call, pooled)]


def check(attributes: Mapping[str, Any], sizes: Sequence[tuple[int, ...]]) -> str:
    """Return what is wrong between attributes and inputs, "" where nothing is."""
    levels = len(sizes) - 2
    if len(attributes["spatial_scales"]) != levels:
        return f"{len(attributes['spatial_scales'])} spatial_scales for {levels} levels"
    if attributes["mode"] == "max" and attributes["sampling_ratio"] == 0:
        return "mode 'max' needs a sampling_ratio of 1 or more"
    return regions_mismatch(sizes)


MOST_LEVELS = 5


class Params(ctypes.Structure):
    """`MultiscaleRoiAlignParams` of multiscale_roi_align.cuh."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "rows", "channels", "levels")),
        *((name, ctypes.c_int * MOST_LEVELS) for name in ("heights", "widths")),
        ("spatial_scales", ctypes.c_float * MOST_LEVELS),
        *((name, ctypes.c_int) for name in ("output_height", "output_width", "sampling_ratio")),
        *((name, ctypes.c_int) for name in ("aligned", "maximum")),
        ("canonical_size", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("canonical_level", "first_level")),
        ("level_epsilon", ctypes.c_float),
        *((name, ctypes.c_int) for name in ("epsilon_inside", "inclusive")),
        *((name, ctypes.c_float) for name in ("input_scale", "output_scale")),
    )


_VALUES = (
    *("output_height", "output_width", "sampling_ratio", "aligned", "canonical_size"),
    *("canonical_level", "first_level", "level_epsilon", "epsilon_inside"),
    "inclusive",
)
"""Attributes that go into the parameters as they are."""


def params(values: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> Params:
    """Return the launcher's parameters."""
    (batch, rows, _), _, *levels = shapes
    found = Params(batch, rows, levels[0][1], len(levels))
    for index, (level, scale) in enumerate(zip(levels, values["spatial_scales"], strict=True)):
        found.heights[index], found.widths[index] = level[2:]
        found.spatial_scales[index] = scale
    for name in _VALUES:
        setattr(found, name, values[name])
    found.maximum = values["mode"] == "max"
    return found


plugin = Plugin(
    name="DKMultiscaleRoiAlign",
    version="1",
    inputs=(Input("boxes", "float32"), Input("count", "int32"), Input("features...")),
    outputs=(Output("pooled", "features"),),
    attributes=(
        *POOLED_SIZE,
        Attribute("sampling_ratio", 2, "0 (adaptive) to 16", lambda v: 0 <= v <= 16),
        Attribute("aligned", 0, "0 or 1", lambda v: v in (0, 1)),
        Attribute("mode", "avg", "avg or max", lambda v: v in ("avg", "max")),
        Attribute(
            "spatial_scales",
            (0.25,),
            "1 to 5 numbers above 0",
            lambda v: 1 <= len(v) <= 5 and all(0 < s < np.inf for s in v),
        ),
        Attribute("canonical_size", 224.0, "above 0", lambda v: 0 < v < np.inf),
        Attribute("canonical_level", 4, "0 to 10", lambda v: 0 <= v <= 10),
        Attribute("first_level", 2, "0 to 10", lambda v: 0 <= v <= 10),
        Attribute("level_epsilon", 1e-6, "0 to 0.01", lambda v: 0 <= v <= 0.01),
        Attribute("epsilon_inside", 0, "0 or 1", lambda v: v in (0, 1)),
        Attribute("inclusive", 0, "0 or 1", lambda v: v in (0, 1)),
    ),
    reference=reference,
    fake=levels.fake,
    runtime_body=runtime_body,
    portable_body=portable_body,
    source="multiscale_roi_align.cu",
    launcher=Launcher(params, (POOLED,)),
    why_float="reads between cells, and one rounding, before the head, does for all its levels",
    check=check,
)
