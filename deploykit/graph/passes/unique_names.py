"""Give every node a name of its own: precision plans and calibration tables refer to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import Pass, nodes, unique

if TYPE_CHECKING:
    import onnx_ir as ir


def apply(model: ir.Model) -> bool:
    """Return whether a node was renamed: the first of a name keeps it, others are numbered."""
    changed, seen = False, set[str]()
    taken = {node.name for node in nodes(model) if node.name}
    for node in nodes(model):
        if not node.name or node.name in seen:
            node.name = unique(node.name or node.op_type, taken)
            changed = True
        seen.add(node.name)
    return changed


PASS = Pass("unique_names", apply)
