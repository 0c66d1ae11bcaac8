"""Operators on each number alone: arithmetic, activations, comparisons, casts."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
import torch.nn.functional as F  # noqa: N812 - the name the field gives it
from torch import Tensor

from deploykit.training.graphs.node import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from deploykit.training.graphs.node import Node, Op, Ops


def _of(function: Callable[..., Any]) -> Op:
    """Return an operator that is a function of its inputs alone."""
    return lambda _, *inputs: function(*inputs)


def _folded(function: Callable[[Tensor, Tensor], Tensor]) -> Op:
    """Return an operator that takes any number of inputs."""
    return lambda _, *inputs: functools.reduce(function, inputs)


def _div(_: Node, a: Tensor, b: Tensor) -> Tensor:
    return a / b if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc")


def _mod(node: Node, a: Tensor, b: Tensor) -> Tensor:
    return torch.fmod(a, b) if node.get("fmod", 0) else torch.remainder(a, b)


def _clip(_: Node, x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    return x if low is None and high is None else torch.clamp(x, low, high)


def _hard_sigmoid(node: Node, x: Tensor) -> Tensor:
    line: Tensor = x * node.get("alpha", 0.2) + node.get("beta", 0.5)
    return line.clamp(0, 1)


def _prelu(_: Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x > 0, x, x * slope)


def _elu(node: Node, x: Tensor) -> Tensor:
    return F.elu(x, node.get("alpha", 1.0))


def _celu(node: Node, x: Tensor) -> Tensor:
    return F.celu(x, node.get("alpha", 1.0))


def _leaky(node: Node, x: Tensor) -> Tensor:
    return F.leaky_relu(x, node.get("alpha", 0.01))


def _gelu(node: Node, x: Tensor) -> Tensor:
    return F.gelu(x, approximate=node.get("approximate", "none"))


def _swish(node: Node, x: Tensor) -> Tensor:
    return x * torch.sigmoid(node.get("alpha", 1.0) * x)


def _cast(node: Node, x: Tensor, like: Tensor | None = None) -> Tensor:
    if like is not None:
        return x.to(like.dtype)
    wanted = ir.DataType(node.get("to"))
    if wanted not in DTYPES:
        raise node.refuse(f"to {wanted}")
    return x.to(DTYPES[wanted])


OPS: Ops = {
    "Abs": _of(torch.abs),
    "Add": _of(torch.add),
    "And": _of(torch.logical_and),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _of(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Cos": _of(torch.cos),
    "Div": _div,
    "Elu": _elu,
    "Equal": _of(torch.eq),
    "Erf": _of(torch.erf),
    "Exp": _of(torch.exp),
    "Floor": _of(torch.floor),
    "Gelu": _gelu,
    "Greater": _of(torch.gt),
    "GreaterOrEqual": _of(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _of(F.hardswish),
    "LeakyRelu": _leaky,
    "Less": _of(torch.lt),
    "LessOrEqual": _of(torch.le),
    "Log": _of(torch.log),
    "Max": _folded(torch.maximum),
    "Min": _folded(torch.minimum),
    "Mish": _of(F.mish),
    "Mod": _mod,
    "Mul": _of(torch.mul),
    "Neg": _of(torch.neg),
    "Not": _of(torch.logical_not),
    "Or": _of(torch.logical_or),
    "Pow": _of(torch.pow),
    "PRelu": _prelu,
    "Reciprocal": _of(torch.reciprocal),
    "Relu": _of(torch.relu),
    "Round": _of(torch.round),
    "Selu": _of(F.selu),
    "Sigmoid": _of(torch.sigmoid),
    "Sign": _of(torch.sign),
    "Sin": _of(torch.sin),
    "Softplus": _of(F.softplus),
    "Softsign": _of(F.softsign),
    "Sqrt": _of(torch.sqrt),
    "Sub": _of(torch.sub),
    "Sum": _folded(torch.add),
    "Swish": _swish,
    "Tanh": _of(torch.tanh),
    "Where": _of(torch.where),
    "Xor": _of(torch.logical_xor),
}
