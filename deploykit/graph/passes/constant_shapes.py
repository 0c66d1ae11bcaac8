"""ConstantOfShape of a size that is known -> a constant: what exporters write for padding.

Weights of one number, as of a network that is kept small in a file, become constants too: layers
are quantised only where their weights are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import Pass, constant, is_op, nodes, set_constant

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST = 1 << 20
"""Elements at most: a larger constant stays computed, unless it is a layer's weights."""
MOST = 1 << 28
"""Elements of all weights together (1 GB of float32): the rest stays computed."""
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def apply(model: ir.Model) -> bool:
    """Return whether something became a constant."""
    left, changed = MOST, False
    for node in nodes(model):
        sizes = _sizes(node)
        count = None if sizes is None else math.prod(sizes)
        if sizes is None or count is None or count > max(LARGEST, left if _weighs(node) else 0):
            continue
        filling = np.zeros(1, np.float32)
        if "value" in node.attributes:
            filling = node.attributes["value"].as_tensor().numpy().reshape(1)
        if set_constant(node, np.full(sizes, filling[0])):
            left, changed = left - count, True
    return changed


def _sizes(node: ir.Node) -> list[int] | None:
    """Return the sizes of what a ConstantOfShape gives, where they are known."""
    found = constant(node.inputs[0]) if is_op(node, "ConstantOfShape") else None
    sizes = None if found is None else [int(size) for size in found.ravel()]
    return None if sizes is None or min(sizes, default=0) < 0 else sizes


def _weighs(node: ir.Node) -> bool:
    """Return whether a node gives weights to layers, and nothing else."""
    uses = node.outputs[0].uses()
    return bool(uses) and all(is_op(reader, *_LAYERS) and index == 1 for reader, index in uses)


PASS = Pass("constant_shapes", apply)
