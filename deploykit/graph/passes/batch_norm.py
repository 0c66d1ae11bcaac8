"""BatchNormalization(Conv(x)) -> Conv(x); the same for ConvTranspose and Gemm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph import scaling
from deploykit.graph.editing import bypass, constant, integer, is_op, per_node, real, source

if TYPE_CHECKING:
    import onnx_ir as ir

_EPSILON = 1e-5  # the operator's default


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` is a batch norm at inference that was folded into its input.

    scale = gamma / sqrt(var + eps), shift = beta - mean * scale, per channel.
    """
    if not is_op(node, "BatchNormalization") or integer(node, "training_mode", 0):
        return False
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return False
    inner = source(node.inputs[0], *scaling.OPS)
    statistics = [constant(value) for value in node.inputs[1:]]
    if inner is None or any(array is None for array in statistics):
        return False
    gamma, beta, mean, var = (np.asarray(array, np.float64) for array in statistics)
    if any(array.shape != (scaling.channels(inner),) for array in (gamma, beta, mean, var)):
        return False
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = gamma / np.sqrt(var + real(node, "epsilon", _EPSILON))
    if not scaling.fold(inner, scale, beta - mean * scale):
        return False
    return bypass(node, inner.outputs[0])


PASS = per_node("batch_norm", rewrite, nested=False)  # new weights need names free in all graphs
