"""Weights behind Identity, Cast, Transpose or a reshape -> weights, however large they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import constant, integer, is_op, per_node, set_constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_NUMBERS = frozenset((ir.DataType.FLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.INT8))


def rewrite(node: ir.Node) -> bool:
    """Return whether the output of `node` became a constant."""
    if not is_op(node, "Identity", "Cast", "Transpose", "Reshape", "Unsqueeze", "Squeeze"):
        return False
    value = node.inputs[0]
    found = constant(value)
    if value is None or found is None or value.dtype not in _NUMBERS:
        return False
    moved = _moved(node, found)
    return moved is not None and set_constant(node, moved)


def _moved(node: ir.Node, weights: Array) -> Array | None:
    """Return what `node` makes of weights; None where that is not known."""
    match node.op_type:
        case "Identity":
            return weights
        case "Transpose":
            given = node.attributes.get("perm")
            return weights.transpose(None if given is None else list(given.as_ints()))
        case "Cast":
            wanted = ir.DataType(integer(node, "to", 0))
            return weights.astype(wanted.numpy()) if wanted in _NUMBERS else None
        case "Reshape":
            target = constant(node.inputs[1])
            if target is None or (target == 0).any():
                return None
            return weights.reshape([int(size) for size in target])
        case _:
            return _with_ones(node, weights)


def _with_ones(node: ir.Node, weights: Array) -> Array | None:
    """Return what Squeeze or Unsqueeze makes of weights."""
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if "axes" in node.attributes:
        axes = np.array(node.attributes["axes"].as_ints())
    if axes is None:
        return None
    places = tuple(int(axis) for axis in axes.ravel())
    if node.op_type == "Squeeze":
        return np.squeeze(weights, places)
    return np.expand_dims(weights, places)


PASS = per_node("moved_weights", rewrite)
