"""Boxes read from the levels of a pyramid: what ops that do so have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from deploykit.ops.plugin import Call
    from deploykit.ops.tape import Tape


def fake(
    boxes: Tensor,
    count: Tensor,  # noqa: ARG001 - the ops' signature
    features: list[Tensor],
    **attributes: Any,  # noqa: ANN401 - those of the plugin, complete
) -> Tensor:
    """Return a tensor of the shape and type that such an op gives: T[B * R, C, PH, PW]."""
    size = attributes["output_height"], attributes["output_width"]
    return features[0].new_empty(boxes.shape[0] * boxes.shape[1], features[0].shape[1], *size)


def by_box(op: Tape, call: Call, pooled: ir.Value) -> ir.Value:
    """Return T[B * R, C, PH, PW] of what was read for all boxes, float32[B, C, R * PH, PW]."""
    rows, channels = call.dims(0)[0], call.dims(2)[0]
    size = call.attributes["output_height"], call.attributes["output_width"]
    split = op.Transpose(op.Reshape(pooled, [0, channels, rows, *size]), perm=[0, 2, 1, 3, 4])
    return as_features(op, call, op.Reshape(split, [-1, channels, *size]))


def as_features(op: Tape, call: Call, found: ir.Value) -> ir.Value:
    """Return float32 values in the type of the features."""
    half = call.inputs[2].dtype is not ir.DataType.FLOAT
    result: ir.Value = op.Cast(found, to=ir.DataType.FLOAT16.value) if half else found
    return result


def pooled(
    op: Tape,
    order: ir.Value,
    wanted: list[ir.Value],
    read: Callable[[int, ir.Value], ir.Value],
    size: tuple[int, int, int],
) -> ir.Value:
    """Return float32[n, C, PH, PW] of n boxes, zero where no level wants one.

    In ops of ONNX Runtime, and of each level for its own boxes only.

    order: int64[n], in which boxes are read. wanted: of each level bool[n], at most one says yes
    to a box. read: (level, int64[k] boxes) -> float32[k, C, PH, PW]. size: C, PH, PW.
    """
    parts, places = [], []
    for index, mine in enumerate(wanted):
        chosen = op.Gather(order, op.Squeeze(op.NonZero(op.Gather(mine, order)), [0]))
        places.append(chosen)
        parts.append(read(index, chosen))
    found = op.Concat(*parts, np.zeros((1, *size), np.float32), axis=0)
    last = op.Sub(op.Shape(found, start=0, end=1), 1)
    where = op.ScatterElements(
        op.Expand(last, op.Shape(order)),
        op.Concat(*places, axis=0),
        op.Range(0, op.Squeeze(last), 1),
    )
    result: ir.Value = op.Gather(found, where)
    return result
