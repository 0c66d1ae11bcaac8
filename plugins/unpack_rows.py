"""Leave the padding out: the way back. See DKPackRows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.ops.plugin import (
    ROWS,
    Call,
    Input,
    Output,
    Plugin,
    empty_rows,
    present,
    rows_mismatch,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir
    from torch import Tensor

    from deploykit.ops.tape import Tape

INT64 = 7
"""ONNX's number of the type."""


def reference(packed: Tensor, count: Tensor, *, per_image: int) -> Tensor:
    """Return T[B * R, ...] of what DKPackRows made of such rows: each in its place, padding zero.

    count: int32[B], how many rows of each image are there, as DKPackRows had it.
    """
    import torch  # noqa: PLC0415 - quantize, bench and inspect read this file without torch

    valid = (torch.arange(per_image, device=count.device) < count[:, None]).flatten()
    return torch.where(valid.reshape(-1, *[1] * (packed.ndim - 1)), packed, 0)


def runtime_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the rows, each where it was, and a row of zeros wherever none was."""
    packed, count = call.inputs
    valid = op.Reshape(present(op, count, call.attributes["per_image"]), [-1])
    number = op.CumSum(op.Cast(valid, to=INT64), 0)
    zeros = np.zeros((1, *call.dims(0)), call.dtype(0))
    return [op.Gather(op.Concat(zeros, packed, axis=0), op.Where(valid, number, 0))]


def portable_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return all rows, those of the padding as zeros."""
    packed, count = call.inputs
    valid = present(op, count, call.attributes["per_image"])
    shape = [-1, *[1] * len(call.dims(0))]
    return [op.Where(op.Reshape(valid, shape), packed, np.zeros((), call.dtype(0)))]


plugin = Plugin(
    name="DKUnpackRows",
    version="1",
    inputs=(Input("packed"), Input("count", "int32")),
    rows="unpacked",
    outputs=(Output("rows", "packed"),),
    attributes=(ROWS,),
    reference=reference,
    fake=empty_rows,
    runtime_body=runtime_body,
    portable_body=portable_body,
    check=rows_mismatch,
)
