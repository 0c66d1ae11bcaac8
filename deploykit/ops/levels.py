"""Boxes read from the levels of a pyramid, in ops of ONNX Runtime: of each level its own only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

    from deploykit.ops.tape import Tape


def pooled(
    op: Tape,
    order: ir.Value,
    wanted: list[ir.Value],
    read: Callable[[int, ir.Value], ir.Value],
    size: tuple[int, int, int],
) -> ir.Value:
    """Return float32[n, C, PH, PW] of n boxes, zero where no level wants one.

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
