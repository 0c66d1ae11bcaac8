"""Remove nodes that return their input unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import bypass, constant, dims, integer, is_op, per_node

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` was removed, because one of its inputs is its output."""
    if not is_op(node, *_SAME) or not node.inputs:
        return False
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    value = _SAME[node.op_type](node)
    return value is not None and bypass(node, value)


def _first_if(condition: Callable[[ir.Node], bool]) -> Callable[[ir.Node], ir.Value | None]:
    return lambda node: node.inputs[0] if condition(node) else None


def _at_inference(node: ir.Node) -> bool:
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = constant(node.inputs[2])
    return training is not None and not training.any()


def _same_type(node: ir.Node) -> bool:
    value = node.inputs[0]
    return value is not None and value.dtype == integer(node, "to", 0)


def _same_shape(node: ir.Node) -> bool:
    shape = dims(node.inputs[0])
    return shape is not None and shape == dims(node.outputs[0])


def _same_order(node: ir.Node) -> bool:
    if "perm" not in node.attributes:
        return False
    order = list(node.attributes["perm"].as_ints())
    return order == sorted(order)


def _sole_input(node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _neutral(number: float, indices: tuple[int, ...]) -> Callable[[ir.Node], ir.Value | None]:
    """Return a function: node -> the operand that remains when the other one is `number`."""

    def remaining(node: ir.Node) -> ir.Value | None:
        for index in indices:
            operand, other = constant(node.inputs[index]), node.inputs[1 - index]
            if operand is None or other is None or other.shape is None:
                continue
            # More dimensions than the other operand's would add some to the result.
            if operand.ndim > len(other.shape) or any(n != 1 for n in operand.shape):
                continue
            if operand.astype(np.float64).reshape(-1)[0] == number:
                return other
        return None

    return remaining


_EITHER, _SECOND = (0, 1), (1,)
# Operator -> a function that returns the input that equals the output, None where none does.
_SAME: dict[str, Callable[[ir.Node], ir.Value | None]] = {
    "Identity": _first_if(_sole_input),
    "Dropout": _first_if(_at_inference),
    "Cast": _first_if(_same_type),
    "Reshape": _first_if(_same_shape),
    "Flatten": _first_if(_same_shape),
    "Expand": _first_if(_same_shape),
    "Transpose": _first_if(_same_order),
    "Concat": _first_if(_sole_input),
    "Sum": _first_if(_sole_input),
    "Max": _first_if(_sole_input),
    "Min": _first_if(_sole_input),
    "Add": _neutral(0.0, _EITHER),
    "Sub": _neutral(0.0, _SECOND),
    "Mul": _neutral(1.0, _EITHER),
    "Div": _neutral(1.0, _SECOND),
}

PASS = per_node("no_ops", rewrite)
