"""Sum(a, b, c) -> Add(Add(a, b), c): a residual is known by its Add."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.graph.editing import is_op, per_node, take_place, unique, value_names

if TYPE_CHECKING:
    from collections.abc import Sequence


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` was a Sum of two tensors or more; the last Add keeps its name."""
    if not is_op(node, "Sum") or len(node.inputs) < 2 or not isinstance(node.graph, ir.Graph):
        return False
    terms = [value for value in node.inputs if value is not None]
    taken = value_names(node.graph)
    for number in range(len(terms) - 2):
        name = unique(f"{node.name or 'Sum'}.{number}", taken)
        added = _add(terms[:2], ir.Value(name=name, type=node.outputs[0].type), name)
        node.graph.insert_before(node, added)
        terms[:2] = added.outputs
    last = _add(terms, None, node.name or "")
    node.graph.insert_before(node, last)
    take_place(node, last)
    return True


def _add(terms: Sequence[ir.Value], result: ir.Value | None, name: str) -> ir.Node:
    outputs = None if result is None else [result]
    return ir.node("Add", list(terms), outputs=outputs, name=name)


PASS = per_node("sums", rewrite)
