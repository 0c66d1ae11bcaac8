"""Nodes that TensorRT moves a DQ across, so that what reads them is read as INT8 as well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import dims, is_op
from deploykit.precision.placement.rules import moved_inputs, moves
from deploykit.precision.placement.weighted import WEIGHTED, constant

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    import onnx_ir as ir

FAR = 200
"""Nodes in a row that a DQ is moved across at most."""
_STOPS = ("Resize",)
"""Moving ops that a DQ is not moved across: they need a Q behind them."""


def crossed(node: ir.Node) -> list[int]:
    """Return the inputs from which a DQ is moved across a node; none: it is not.

    The node moves values, or scales them all by one number.
    """
    if moves(node):
        return [] if node.op_type in _STOPS else list(moved_inputs(node))
    if is_op(node, "Neg"):
        return [0]
    if is_op(node, "Mul", "Div") and _one_number(node.inputs[1]):
        return [0]
    return [1] if is_op(node, "Mul") and _one_number(node.inputs[0]) else []


def _one_number(value: ir.Value | None) -> bool:
    """Return whether a tensor is one number that the shapes of others fix, or nothing at all."""
    shape = dims(value)
    single = shape is not None and all(size == 1 for size in shape)
    waiting, left = [value], FAR
    while single and waiting and left:
        left -= 1
        each = waiting.pop()
        node = None if each is None else each.producer()
        if constant(each) is not None or (node is not None and is_op(node, "Shape", "Size")):
            continue
        if node is None or not node.inputs:
            return False
        waiting += [given for given in node.inputs if given is not None]
    return single and not waiting


def reaches_float(node: ir.Node, reads: Mapping[ir.Value, Container[tuple[ir.Node, int]]]) -> bool:
    """Return whether a DQ before `node` is moved to a layer with weights that runs in float.

    reads: quantised tensor -> its readers (node, input index).
    """
    waiting, seen = [node], {node}
    while waiting:
        each = waiting.pop()
        if not crossed(each):
            continue
        uses = [(out, use) for out in each.outputs for use in out.uses()]
        for reader, index in (use for out, use in uses if use not in reads.get(out, ())):
            if is_op(reader, *WEIGHTED) and index == 0 and constant(reader.inputs[1]) is not None:
                return True
            if reader not in seen and len(seen) < FAR:
                seen.add(reader)
                waiting.append(reader)
    return False
