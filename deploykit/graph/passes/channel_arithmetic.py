"""Conv(x) * a, + a, - a, / a with a constant per channel -> Conv(x); also ConvTranspose, Gemm."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.graph import scaling
from deploykit.graph.editing import bypass, constant, is_op, per_node, source

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir
    from numpy.typing import NDArray

    Doubles: TypeAlias = NDArray[np.float64]

# Operator -> (scale, shift) that it applies to its first input, given its second.
_EFFECTS: dict[str, Callable[[Doubles], tuple[Doubles, Doubles]]] = {
    "Mul": lambda a: (a, np.zeros_like(a)),
    "Div": lambda a: (1 / a, np.zeros_like(a)),
    "Add": lambda a: (np.ones_like(a), a),
    "Sub": lambda a: (np.ones_like(a), -a),
}
_COMMUTATIVE = ("Mul", "Add")


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` does arithmetic per channel that was folded into its input."""
    if not is_op(node, *_EFFECTS):
        return False
    for index in (0, 1) if node.op_type in _COMMUTATIVE else (0,):
        inner = source(node.inputs[index], *scaling.OPS)
        operand = constant(node.inputs[1 - index])
        if inner is not None and operand is not None and _fold(node, inner, operand):
            return bypass(node, inner.outputs[0])
    return False


def _fold(node: ir.Node, inner: ir.Node, operand: NDArray[np.generic]) -> bool:
    values = _per_channel(inner, operand)
    if values is None:
        return False
    with np.errstate(divide="ignore"):
        scale, shift = _EFFECTS[node.op_type](values)
    return scaling.fold(inner, scale, shift)


def _per_channel(inner: ir.Node, operand: NDArray[np.generic]) -> Doubles | None:
    """Return `operand` as float64[out], None where it varies along another axis than axis 1."""
    count, weight = scaling.channels(inner), constant(inner.inputs[1])
    if count is None or weight is None or operand.ndim > weight.ndim:
        return None
    aligned = operand.reshape(*[1] * (weight.ndim - operand.ndim), *operand.shape)
    if aligned.size not in (1, count) or aligned.shape[1] != aligned.size:
        return None
    return np.broadcast_to(aligned.reshape(-1), (count,)).astype(np.float64)


PASS = per_node(
    "channel_arithmetic", rewrite, nested=False
)  # new weights need names free in all graphs
