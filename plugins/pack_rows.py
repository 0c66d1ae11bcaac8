"""Leave the padding out: the way in. What follows, up to DKUnpackRows, sees rows that are there.

A head that takes R padded rows per image costs as much for an image with 3 objects as for one with
R. Between the two ops a runtime with sizes of its own making (ONNX Runtime) computes the rows that
are there alone; one with fixed sizes (TensorRT) computes all. Neither needs a kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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


def reference(
    rows: Tensor,
    count: Tensor,  # noqa: ARG001 - the op's signature
    **_: int,
) -> Tensor:
    """Return T[n, ...] of T[B * R, ...], sum(count) <= n <= B * R; here all rows, where they were.

    count: int32[B], how many rows of each image are there. Which row came where only DKUnpackRows
    knows; in between, no row may depend on another.
    """
    return rows.clone()


def runtime_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the rows that are there, in order."""
    rows, count = call.inputs
    valid = op.Reshape(present(op, count, call.attributes["per_image"]), [-1])
    return [op.Compress(rows, valid, axis=0)]


def portable_body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return all rows."""
    return [op.Identity(call.inputs[0])]


plugin = Plugin(
    name="DKPackRows",
    version="1",
    inputs=(Input("rows"), Input("count", "int32")),
    rows="packed",
    outputs=(Output("packed", "rows"),),
    attributes=(ROWS,),
    reference=reference,
    fake=empty_rows,
    runtime_body=runtime_body,
    portable_body=portable_body,
    check=rows_mismatch,
)
