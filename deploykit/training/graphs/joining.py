"""Operators that join many numbers: products, sums over axes, norms, softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor

from deploykit.training.graphs.node import axes_of, positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.training.graphs.node import Node, Op, Ops


def _matmul(_: Node, a: Tensor, b: Tensor) -> Tensor:
    return a @ b


def _gemm(node: Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.T if node.get("transA", 0) else a
    b = b.T if node.get("transB", 0) else b
    alpha, beta = node.get("alpha", 1.0), node.get("beta", 1.0)
    found = a @ b
    found = found if alpha == 1 else found * alpha
    if c is None:
        return found
    return found + (c if beta == 1 else c * beta)


def _einsum(node: Node, *parts: Tensor) -> Tensor:
    return torch.einsum(node.get("equation"), *parts)


def _softmax(node: Node, x: Tensor) -> Tensor:
    run = F.log_softmax if node.op == "LogSoftmax" else F.softmax
    return run(x, node.get("axis", -1))


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Op:
    def run(node: Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
        wanted = axes_of(node, axes)
        if not wanted and node.get("noop_with_empty_axes", 0):
            return x
        along = tuple(wanted or range(x.ndim))
        return function(x, along, bool(node.get("keepdims", 1)))

    return run


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:  # noqa: FBT001 - as the others
    for axis in sorted((positive(axis, x.ndim) for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _arg(node: Node, x: Tensor) -> Tensor:
    if node.get("select_last_index", 0):
        raise node.refuse("of the last of several")
    run = torch.argmax if node.op == "ArgMax" else torch.argmin
    return run(x, node.get("axis", 0), bool(node.get("keepdims", 1)))


def _topk(node: Node, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    largest, ordered = bool(node.get("largest", 1)), bool(node.get("sorted", 1))
    values, places = torch.topk(x, int(k.item()), node.get("axis", -1), largest, ordered)
    return values, places


def _layer_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = positive(node.get("axis", -1), x.ndim)
    shape = x.shape[axis:]
    scale = scale.broadcast_to(shape)
    bias = None if bias is None else bias.broadcast_to(shape)
    return F.layer_norm(x, shape, scale, bias, node.get("epsilon", 1e-5))


def _instance_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=node.get("epsilon", 1e-5))


def _group_norm(node: Node, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    groups = node.get("num_groups")
    if len(scale) != x.shape[1]:  # before opset 21: one for each group
        scale, bias = (t.repeat_interleave(x.shape[1] // groups) for t in (scale, bias))
    return F.group_norm(x, groups, scale, bias, node.get("epsilon", 1e-5))


def _batch_norm(  # noqa: PLR0913, PLR0917 - the operator's inputs
    node: Node, x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor
) -> Tensor:
    if node.get("training_mode", 0):
        raise node.refuse("in training mode")
    epsilon = node.get("epsilon", 1e-5)
    return F.batch_norm(x, mean, variance, scale, bias, eps=epsilon)


def _local_norm(node: Node, x: Tensor) -> Tensor:
    """Return x over a power of the energy of the channels about each: LRN."""
    size, alpha = node.get("size"), node.get("alpha", 1e-4)
    before = (size - 1) // 2
    energy = F.pad(x.square().transpose(1, -1), (before, size - 1 - before))
    around: Tensor = energy.unfold(-1, size, 1).sum(-1).transpose(1, -1)
    whole: Tensor = (node.get("bias", 1.0) + alpha / size * around) ** node.get("beta", 0.75)
    return x / whole


def _cumulated(node: Node, x: Tensor, axis: Tensor) -> Tensor:
    along = int(axis.item())
    turned = x.flip(along) if node.get("reverse", 0) else x
    found = turned.cumsum(along)
    if node.get("exclusive", 0):
        found = found - turned
    return found.flip(along) if node.get("reverse", 0) else found


def _lp_norm(node: Node, x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x, node.get("p", 2), node.get("axis", -1), keepdim=True)
    return x / norm


OPS: Ops = {
    "ArgMax": _arg,
    "ArgMin": _arg,
    "BatchNormalization": _batch_norm,
    "CumSum": _cumulated,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LRN": _local_norm,
    "LogSoftmax": _softmax,
    "LpNormalization": _lp_norm,
    "MatMul": _matmul,
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(lambda x, axes, keep: x.mean(axes, keep)),
    "ReduceMin": _reduction(torch.amin),
    "ReduceProd": _reduction(_product),
    "ReduceSum": _reduction(lambda x, axes, keep: x.sum(axes, keep)),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Softmax": _softmax,
    "TopK": _topk,
}
