"""ConstantOfShape of a size that is known -> a constant: what exporters write for padding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import constant, is_op, per_node, set_constant

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST = 1 << 20
"""Elements at most: a larger constant stays computed."""


def rewrite(node: ir.Node) -> bool:
    """Return whether the output of `node` became a constant."""
    sizes = constant(node.inputs[0]) if is_op(node, "ConstantOfShape") else None
    if sizes is None or math.prod(max(1, int(size)) for size in sizes.ravel()) > LARGEST:
        return False
    value = np.zeros(1, np.float32)
    if "value" in node.attributes:
        value = node.attributes["value"].as_tensor().numpy().reshape(1)
    return set_constant(node, np.full([int(size) for size in sizes.ravel()], value[0]))


PASS = per_node("constant_shapes", rewrite)
