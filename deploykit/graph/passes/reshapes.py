"""Reshape(Reshape(x)) -> Reshape(x); also after Flatten, Squeeze and Unsqueeze."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import constant, integer, is_op, per_node

if TYPE_CHECKING:
    import onnx_ir as ir

_REORDER_NOTHING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze")


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` is a reshape that skipped the reshape before it.

    A target that copies sizes from its input (a 0 in it) depends on the shape in between.
    """
    if not is_op(node, "Reshape") or len(node.inputs) < 2 or node.inputs[0] is None:
        return False
    inner, target = node.inputs[0].producer(), constant(node.inputs[1])
    if inner is None or target is None or not is_op(inner, *_REORDER_NOTHING):
        return False
    if (target == 0).any() and not integer(node, "allowzero", 0):
        return False
    node.replace_input_with(0, inner.inputs[0])
    return True


PASS = per_node("reshapes", rewrite)
