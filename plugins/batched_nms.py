"""Greedy non-maximum suppression of a batch, with fixed shapes: padded results and a count.

Source: the arithmetic is that of torchvision.ops.nms on a CPU, the grouping that of
torchvision.ops.batched_nms (`mask`: its per-class form; `offset`: its coordinate trick).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from deploykit.ops.plugin import Attribute, Call, Input, Launcher, Output, Plugin, Suppression

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from deploykit.ops.plugin import Size
    from deploykit.ops.tape import Operand, Tape

MOST = 3840
"""Largest K of TensorRT's TopK."""
LOWEST = float(np.finfo(np.float32).min)
"""Score of what does not enter: no score threshold is below it."""
BLOCK = 256
"""Rows of the reference whose overlaps are computed together."""
FLOAT, INT32, INT64 = 1, 6, 7
"""ONNX's numbers of the types."""


def limit(iou_threshold: float) -> float:
    """Return the float32 t for which IoU > t says what IoU > `iou_threshold` says in decimals.

    torchvision compares a float32 IoU with a float64 threshold, and an ONNX attribute is a
    float32: 0.6 as float32 is above 0.6, so an IoU of just that must count as larger. The decimal
    meant is the shortest that gives the same float32.
    """
    meant = float(str(np.float32(iou_threshold)))
    nearest = np.float32(meant)
    below = nearest if float(nearest) <= meant else np.nextafter(nearest, np.float32(-1))
    return float(below)


# --- the meaning, in torch -------------------------------------------------------------------


def reference(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> tuple[Tensor, ...]:
    """Return boxes float32[B, M, 4], scores [B, M], classes [B, M], indices [B, M], count [B].

    Scores descend, ties by lower index. Padding rows are 0, 0, -1, -1. A candidate with NaN or
    inverted sides overlaps nothing.
    """
    import torch  # noqa: PLC0415 - quantize, bench and inspect read this file without torch

    found = fake(boxes, scores, classes, **attributes)
    for value, filler in zip(found, (0, 0, -1, -1, 0), strict=True):
        value.fill_(filler)
    for i in range(len(boxes)):
        kept = _kept(boxes[i], scores[i], classes[i], attributes)
        for value, source in zip(found, (boxes, scores, classes), strict=False):
            value[i, : len(kept)] = source[i, kept]
        found[3][i, : len(kept)] = kept.to(torch.int32)
        found[4][i] = len(kept)
    return found


def fake(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> tuple[Tensor, ...]:
    """Return tensors of the right shapes and types."""
    batch, most = boxes.shape[0], attributes["max_detections"]
    return (
        boxes.new_empty(batch, most, 4),
        scores.new_empty(batch, most),
        classes.new_empty(batch, most),
        classes.new_empty(batch, most),
        classes.new_empty(batch),
    )


def _kept(boxes: Tensor, scores: Tensor, classes: Tensor, attributes: Mapping[str, Any]) -> Tensor:
    """Return the indices that one image keeps, int64[<= M]."""
    entering = (scores > attributes["score_threshold"]).nonzero()[:, 0]
    order = scores[entering].argsort(descending=True, stable=True)[: attributes["candidates"]]
    order = entering[order]
    boxes, classes = boxes[order], classes[order]
    if attributes["class_agnostic"] or attributes["grouping"] == "offset":
        if len(boxes) and not attributes["class_agnostic"]:
            boxes = boxes + (classes.to(boxes) * (boxes.max() + 1))[:, None]
        classes = classes.new_zeros(classes.shape)
    at_most = attributes["max_detections"]
    chosen: Tensor = order[_greedy(boxes, classes, limit(attributes["iou_threshold"]), at_most)]
    return chosen


def _greedy(boxes: Tensor, groups: Tensor, threshold: float, at_most: int) -> list[int]:
    """Return the rows that greedy suppression keeps, best first as given."""
    kept: list[int] = []
    gone = np.zeros(len(boxes), bool)
    for start in range(0, len(boxes), BLOCK):
        rows = start + np.flatnonzero(~gone[start : start + BLOCK])
        left, right = boxes[rows.tolist()], boxes[start:]
        hits = (_iou(left, right) > threshold) & (groups[rows.tolist()][:, None] == groups[start:])
        for row, hit in zip(rows.tolist(), hits.cpu().numpy(), strict=True):
            if not gone[row]:
                kept.append(row)
                gone[start:] |= hit
            if len(kept) == at_most:
                return kept
    return kept


def _iou(left: Tensor, right: Tensor) -> Tensor:
    """Return the overlaps of boxes [R, 4] and [C, 4]: float32[R, C]."""
    first, second = left.t()[:, :, None].contiguous(), right.t()[:, None].contiguous()
    width, height = (
        (first[axis + 2].minimum(second[axis + 2]) - first[axis].maximum(second[axis])).clamp_(0)
        for axis in (0, 1)
    )
    inter = width.mul_(height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return inter / (areas[0] + areas[1] - inter)


# --- in standard ONNX ops --------------------------------------------------------------------


def runtime_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Write ONNX Runtime's NonMaxSuppression over what enters, however little that is.

    It takes inverted boxes for what their corners span, so these become empty first: by the
    formula they overlap nothing either.
    """
    a = call.attributes
    entering = op.Greater(call.inputs[1], a["score_threshold"])
    most = op.ReduceMax(op.ReduceSum(op.Cast(entering, to=INT64), [1], keepdims=0), keepdims=0)
    most = op.Max(op.Min(most, a["candidates"]), 1)
    found = _candidates(op, call, entering, op.Reshape(most, [1]))
    x1, y1, x2, y2 = op.Split(_apart(op, found, a), axis=2, num_outputs=4, outputs=4)
    proper = op.And(op.Greater(x2, x1), op.Greater(y2, y1))
    selected = op.NonMaxSuppression(
        op.Where(proper, op.Concat(x1, y1, x2, y2, axis=2), 0.0),
        _by_group(op, found, a),
        [a["max_detections"]],
        np.float32(limit(a["iou_threshold"])),
        np.float32(a["score_threshold"]),
    )
    nothing = op.Expand(False, op.Shape(found.scores))
    image_and_row = op.Gather(selected, [0, 2], axis=1)
    several = op.Expand(True, op.Slice(op.Shape(selected), [0], [1]))
    kept = op.ScatterND(nothing, image_and_row, several)
    rank = op.Range(op.Cast(most, to=FLOAT), np.float32(0), np.float32(-1))
    return _padded(op, call, found, op.Where(kept, rank, 0.0))


def portable_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Write the fixed point of: kept if it enters and nothing kept before it overlaps it.

    Each round settles at least one more link of every chain of overlaps, and a Loop ends with
    the first round that changes nothing: some ten rounds for real detections. Which of two equal
    scores comes first is not left to the runtime's TopK, but for the last of the candidates.
    """
    a, size = call.attributes, min(call.attributes["candidates"], call.dims(1)[0])
    entering = op.Greater(call.inputs[1], a["score_threshold"])
    found = _candidates(op, call, entering, op.operand([size]))
    entered = op.Greater(found.scores, a["score_threshold"])
    before = _before(op, found)
    hits = op.And(_overlap(op, found, a), before)

    def settle(
        op: Tape, _: ir.Value, carried: Sequence[ir.Value]
    ) -> tuple[ir.Value, Sequence[ir.Value]]:
        hit = op.And(hits, op.Unsqueeze(carried[0], [2]))
        after = op.And(entered, op.Not(_any(op, hit, [1])))
        return _any(op, op.Xor(after, carried[0])), [after]

    entered.type, entered.shape = ir.TensorType(ir.DataType.BOOL), ir.Shape([None, size])
    (kept,) = op.loop(size, None, [entered], settle)
    better = op.ReduceSum(op.Where(before, 1.0, 0.0), [1], keepdims=0)
    return _padded(op, call, found, op.Where(kept, op.Sub(float(size), better), 0.0))


@dataclass(frozen=True)
class Found:
    """The candidates of each image, best first; K of them, padded with such as do not enter."""

    boxes: ir.Value
    """float32[B, K, 4]"""
    scores: ir.Value
    """float32[B, K]; LOWEST: does not enter."""
    classes: ir.Value
    """int32[B, K]"""
    indices: ir.Value
    """int64[B, K]"""


def _candidates(op: Tape, call: Call, entering: ir.Value, count: Operand) -> Found:
    """Write the choice of the `count` (int64[1]) best boxes that enter."""
    boxes, scores, classes = call.inputs
    marked = op.Where(entering, scores, LOWEST)
    best, indices = op.TopK(marked, count, axis=1, outputs=2)
    return Found(_rows(op, boxes, indices), best, _rows(op, classes, indices), indices)


def _rows(op: Tape, values: ir.Value, indices: ir.Value) -> ir.Value:
    """Write values[b, indices[b, k]]."""
    rows: ir.Value = op.GatherND(values, op.Unsqueeze(indices, [2]), batch_dims=1)
    return rows


def _apart(op: Tape, found: Found, attributes: Mapping[str, Any]) -> ir.Value:
    """Write the boxes moved apart by class where the grouping is `offset`."""
    if attributes["grouping"] == "mask" or attributes["class_agnostic"]:
        return found.boxes
    entered = op.Unsqueeze(op.Greater(found.scores, attributes["score_threshold"]), [2])
    top = op.ReduceMax(op.Where(entered, found.boxes, LOWEST), [1, 2], keepdims=1)
    unknown = _any(op, op.And(entered, op.IsNaN(found.boxes)), [1, 2])
    step = op.Add(op.Where(op.Unsqueeze(unknown, [1, 2]), float("nan"), top), 1.0)
    offset = op.Mul(op.Unsqueeze(op.Cast(found.classes, to=FLOAT), [2]), step)
    moved: ir.Value = op.Add(found.boxes, offset)
    return moved


def _by_group(op: Tape, found: Found, attributes: Mapping[str, Any]) -> ir.Value:
    """Write scores float32[B, G, K], LOWEST where a candidate is not of the group."""
    scores: ir.Value = op.Unsqueeze(found.scores, [1])
    if attributes["grouping"] == "offset" or attributes["class_agnostic"]:
        return scores
    names = op.Reshape(op.Cast(found.classes, to=INT64), [-1])
    distinct, _, member, _ = op.Unique(names, outputs=4)
    groups = op.Range(np.int64(0), op.Squeeze(op.Shape(distinct), [0]), np.int64(1))
    member = op.Unsqueeze(op.Reshape(member, op.Shape(found.classes)), [1])
    grouped: ir.Value = op.Where(op.Equal(member, op.Unsqueeze(groups, [0, 2])), scores, LOWEST)
    return grouped


def _before(op: Tape, found: Found) -> ir.Value:
    """Write bool[B, K, K]: whether row i comes before column j, by score, then by index."""
    rows, columns = (
        (op.Unsqueeze(found.scores, [k]), op.Unsqueeze(op.Cast(found.indices, to=INT32), [k]))
        for k in (2, 1)
    )
    tie = op.And(op.Equal(rows[0], columns[0]), op.Less(rows[1], columns[1]))
    before: ir.Value = op.Or(op.Greater(rows[0], columns[0]), tie)
    return before


def _overlap(op: Tape, found: Found, attributes: Mapping[str, Any]) -> ir.Value:
    """Write bool[B, K, K]: whether row i and column j, of one group, overlap too much."""
    corners = op.Split(_apart(op, found, attributes), axis=2, num_outputs=4, outputs=4)
    across = [op.Transpose(corner, perm=[0, 2, 1]) for corner in corners]
    sides = []
    for low, high in ((0, 2), (1, 3)):
        start, end = op.Max(corners[low], across[low]), op.Min(corners[high], across[high])
        sides.append(op.Max(op.Sub(end, start), 0.0))
    inter = op.Mul(*sides)
    area = op.Mul(op.Sub(corners[2], corners[0]), op.Sub(corners[3], corners[1]))
    union = op.Sub(op.Add(area, op.Transpose(area, perm=[0, 2, 1])), inter)
    overlap: ir.Value = op.Greater(op.Div(inter, union), limit(attributes["iou_threshold"]))
    if attributes["grouping"] == "mask" and not attributes["class_agnostic"]:
        same = op.Equal(op.Unsqueeze(found.classes, [2]), op.Unsqueeze(found.classes, [1]))
        overlap = op.And(overlap, same)
    return overlap


def _any(op: Tape, values: ir.Value, axes: Sequence[int] | None = None) -> ir.Value:
    """Write whether any is true along `axes`, which go; None: all axes."""
    found: ir.Value = op.Greater(op.ReduceMax(op.Where(values, 1.0, 0.0), axes, keepdims=0), 0.5)
    return found


def _padded(op: Tape, call: Call, found: Found, rank: ir.Value) -> Sequence[ir.Value]:
    """Write the results from float32[B, K]: 0 where not kept, else larger for the better."""
    at_most = call.attributes["max_detections"]
    longer = op.Pad(rank, [0, 0, 0, at_most], 0.0)
    top, slot = op.TopK(longer, [at_most], axis=1, outputs=2)
    live = op.Greater(top, 0.5)
    slot = op.Where(live, slot, np.int64(0))
    rows = [_rows(op, value, slot) for value in (found.boxes, found.scores, found.classes)]
    indices = op.Cast(_rows(op, found.indices, slot), to=INT32)
    count = op.ReduceSum(op.Cast(live, to=INT32), [1], keepdims=0)
    none = np.int32(-1)
    return [
        op.Where(op.Unsqueeze(live, [2]), rows[0], 0.0),
        op.Where(live, rows[1], 0.0),
        op.Where(live, rows[2], none),
        op.Where(live, indices, none),
        count,
    ]


def _mismatch(_: Mapping[str, Any], sizes: Sequence[tuple[int, ...]]) -> str:
    """Return what is wrong between the inputs' sizes."""
    boxes, scores, classes = sizes
    if len(boxes) != 2 or boxes[1] != 4 or boxes[0] == 0:
        return f"boxes are [B, {', '.join(map(str, boxes))}], expected [B, N, 4], N > 0"
    if scores != boxes[:1] or classes != boxes[:1]:
        return f"{boxes[0]} boxes with scores {[*scores]} and classes {[*classes]} per image"
    return ""


# --- its launcher ----------------------------------------------------------------------------


class Params(ctypes.Structure):
    """`BatchedNmsParams` of batched_nms.cuh."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("batch", "boxes", "candidates", "max_detections")),
        *((name, ctypes.c_float) for name in ("iou_threshold", "score_threshold")),
        *((name, ctypes.c_int) for name in ("class_agnostic", "offset_grouping")),
    )


_VALUES = ("candidates", "max_detections", "iou_threshold", "score_threshold", "class_agnostic")
"""Attributes that go into the parameters as they are, in that order."""
_BOX, _KEY, _TILE, _WORD = 16, 8, 4096, 64


def params(values: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> Params:
    """Return the launcher's parameters."""
    named = (values[name] for name in _VALUES)
    return Params(*shapes[0][:2], *named, values["grouping"] == "offset")


def workspace(values: Mapping[str, Any], shapes: Sequence[tuple[int, ...]]) -> int:
    """Return what `workspace_bytes` in batched_nms.cuh does."""
    batch, boxes = shapes[0][:2]
    most = min(values["candidates"], boxes)
    tile = min(1 << max(most - 1, 0).bit_length(), _TILE)
    sorted_keys = -(-most // tile) * tile
    mask = most * -(-most // _WORD) * _KEY
    return int(batch * (most * (_BOX + 8) + sorted_keys * _KEY + mask + 8))


BATCH: tuple[Size, ...] = ((0, 0),)
ROWS: tuple[tuple[Size, ...], ...] = (BATCH, ("max_detections",))


plugin = Plugin(
    name="DKBatchedNms",
    version="1",
    inputs=(Input("boxes", "float32"), Input("scores", "float32"), Input("classes", "int32")),
    outputs=(
        Output("boxes", "float32"),
        Output("scores", "float32"),
        Output("classes", "int32"),
        Output("indices", "int32"),
        Output("count", "int32"),
    ),
    attributes=(
        Attribute("iou_threshold", 0.5, "a number from 0 to 1", lambda v: 0 <= v <= 1),
        Attribute("score_threshold", 0.05, "a finite number", lambda v: LOWEST <= v <= -LOWEST),
        Attribute("candidates", 1000, f"1 to {MOST}", lambda v: 1 <= v <= MOST),
        Attribute("max_detections", 100, f"1 to {MOST}", lambda v: 1 <= v <= MOST),
        Attribute("class_agnostic", 0, "0 or 1", lambda v: v in (0, 1)),
        Attribute("grouping", "mask", "mask or offset", lambda v: v in ("mask", "offset")),
    ),
    reference=reference,
    fake=fake,
    runtime_body=runtime_body,
    portable_body=portable_body,
    source="batched_nms.cu",
    launcher=Launcher(params, ((*ROWS, (4,)), ROWS, ROWS, ROWS, (BATCH,)), workspace),
    why_float="compares scores and coordinates with each other",
    suppression=Suppression(class_agnostic="class_agnostic"),
    check=_mismatch,
)
