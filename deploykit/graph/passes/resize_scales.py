"""Resize to sizes of which the first are those of its input -> Resize by constant scales.

Exporters write so where the batch is open; the sizes then are computed, and ONNX Runtime resizes
outside its blocked layout. Only scales that say the same sizes exactly are written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import (
    constant,
    integer,
    is_op,
    new_weight,
    per_node,
    text,
    value_names,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROI, SCALES, SIZES = 1, 2, 3
"""Inputs of a Resize behind its data."""


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` was a Resize to sizes that scales say as well."""
    if not is_op(node, "Resize") or len(node.inputs) <= SIZES or "axes" in node.attributes:
        return False
    if text(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    data, graph = node.inputs[0], node.graph
    scales = None if data is None else _scales(data, node.inputs[SIZES])
    if scales is None or not isinstance(graph, ir.Graph):
        return False
    name = f"{node.name or 'Resize'}.scales"
    weight = new_weight(graph, scales, name, value_names(graph))
    node.replace_input_with(SCALES, weight)
    node.replace_input_with(SIZES, None)
    return True


def _scales(data: ir.Value, sizes: ir.Value | None) -> NDArray[np.float32] | None:
    """Return the factor of each axis, None where it is not known or no float32."""
    joined = None if sizes is None else sizes.producer()
    if joined is None or not is_op(joined, "Concat") or len(joined.inputs) != 2:
        return None
    first, last = joined.inputs[0], constant(joined.inputs[1])
    kept = _kept(first, data)
    if last is None or data.shape is None or kept + last.size != len(data.shape):
        return None
    factors = [np.float32(1)] * kept
    for old, new in zip(data.shape.dims[kept:], last.ravel().tolist(), strict=True):
        if not isinstance(old, int) or old < 1 or float(np.float32(new / old)) * old != new:
            return None
        factors.append(np.float32(new / old))
    return np.array(factors, np.float32)


def _kept(value: ir.Value | None, data: ir.Value) -> int:
    """Return how many sizes of `data`, the first of them, a value holds; 0: it is another."""
    shape = None if value is None else value.producer()
    if shape is None or not is_op(shape, "Shape") or shape.inputs[0] is not data:
        return 0
    return integer(shape, "end", 0) if integer(shape, "start", 0) == 0 else 0


PASS = per_node("resize_scales", rewrite)
