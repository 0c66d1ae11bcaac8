"""Transpose(Transpose(x)) -> one Transpose; a pair that cancels out leaves to `no_ops`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir import AttrInt64s

from deploykit.graph.editing import is_op, per_node

if TYPE_CHECKING:
    import onnx_ir as ir


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` is a transpose that took in the transpose before it."""
    inner = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
    if inner is None or not is_op(node, "Transpose") or not is_op(inner, "Transpose"):
        return False
    first, second = _order(inner), _order(node)
    if first is None or second is None or len(first) != len(second):
        return False
    node.replace_input_with(0, inner.inputs[0])
    node.attributes["perm"] = AttrInt64s("perm", [first[axis] for axis in second])
    return True


def _order(node: ir.Node) -> list[int] | None:
    return list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None


PASS = per_node("transposes", rewrite)
