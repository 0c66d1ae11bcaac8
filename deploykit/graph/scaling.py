"""Factors per channel, folded into the weights of a layer.

`y * scale + shift` goes into the node that makes y, `x * scale` into one that reads x.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import constant, exact, integer, is_op, real, set_weight

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Doubles: TypeAlias = NDArray[np.float64]

OPS = ("Conv", "ConvTranspose", "Gemm")


def channels(node: ir.Node) -> int | None:
    """Return how many output channels `node` has; None where its weights are not constant."""
    weight = constant(node.inputs[1])
    bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if weight is None or weight.ndim < 2 or not isinstance(node.graph, ir.Graph):
        return None
    if len(node.inputs) > 2 and node.inputs[2] is not None and bias is None:
        return None
    count = _channels(node, weight.shape)
    return count if bias is None or bias.size == count else None


def _channels(node: ir.Node, shape: tuple[int, ...]) -> int:
    if is_op(node, "ConvTranspose"):  # weight: [in, out / groups, kernel...]
        return shape[1] * integer(node, "group", 1)
    if is_op(node, "Gemm"):  # weight: [in, out], or [out, in] where transposed
        return shape[0 if integer(node, "transB", 0) else 1]
    if is_op(node, "MatMul"):
        return shape[-1]
    return shape[0]  # weight: [out, in / groups, kernel...]


def read_channels(node: ir.Node) -> int | None:
    """Return how many input channels `node` has; None where its weights are not constant."""
    weight = constant(node.inputs[1])
    if weight is None or weight.ndim < 2 or (is_op(node, "Gemm") and integer(node, "transA", 0)):
        return None
    first, second = weight.shape[:2]
    if is_op(node, "Conv"):
        return int(second) * integer(node, "group", 1)
    return int(second if integer(node, "transB", 0) else first)


def by_channels(node: ir.Node, weight: Doubles) -> Doubles:
    """Return a view of a layer's weights as [groups, out / groups, in / groups, window...].

    What is written into the view is in the weights.
    """
    groups = integer(node, "group", 1)
    if is_op(node, "ConvTranspose"):
        parts = weight.reshape(groups, -1, *weight.shape[1:])
        return parts.swapaxes(1, 2)
    if is_op(node, "MatMul") or (is_op(node, "Gemm") and not integer(node, "transB", 0)):
        return weight.T[None]
    return weight.reshape(groups, -1, *weight.shape[1:])


def fold(node: ir.Node, scale: Doubles, shift: Doubles) -> bool:
    """Return whether `y * scale + shift` (float64[out] each) was folded into `node`'s weights.

    weight' = weight * scale, bias' = bias * scale + shift, computed in float64 and stored in the
    weight's type. Nothing is folded where the result would not be finite.
    """
    value = node.inputs[1]
    stored, weight = constant(value), exact(value)
    assert value is not None
    assert stored is not None  # `channels` has said so
    assert weight is not None
    bias = exact(node.inputs[2]) if len(node.inputs) > 2 else None
    old = np.zeros(len(scale)) if bias is None else bias.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        new_weight = _scaled(node, weight, scale)
        new_bias = old * _bias_factor(node) * scale + shift
        if not all(np.isfinite(a.astype(stored.dtype)).all() for a in (new_weight, new_bias)):
            return False
    stem = (value.name or "").removesuffix(".weight")
    set_weight(node, 1, new_weight, stored.dtype, f"{stem}.weight")
    set_weight(node, 2, new_bias, stored.dtype, f"{stem}.bias")
    node.attributes.pop("beta", None)
    return True


def _bias_factor(node: ir.Node) -> float:
    return real(node, "beta", 1.0) if is_op(node, "Gemm") else 1.0


def _scaled(node: ir.Node, weight: Doubles, scale: Doubles) -> Doubles:
    if is_op(node, "ConvTranspose"):
        groups = integer(node, "group", 1)
        grouped = weight.reshape(groups, -1, *weight.shape[1:])
        factors = scale.reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
        return (grouped * factors).reshape(weight.shape)
    if is_op(node, "Gemm") and not integer(node, "transB", 0):
        return weight * scale
    return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
