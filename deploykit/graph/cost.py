"""What a model computes: multiply-accumulates per ONNX node, and their sum as papers print it."""

from __future__ import annotations

import ast
import math
from operator import add, floordiv, mul, sub
from typing import TYPE_CHECKING, Literal, get_args

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit import ops
from deploykit.errors import ModelError, unknown_name

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

Convention = Literal["mac", "flop2", "thop2", "gimac"]
_GIBI = 2**30
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: add,
    ast.FloorDiv: floordiv,
    ast.Mult: mul,
    ast.Sub: sub,
}
"""What the size of a dimension is computed with, as the exporter writes it."""


def macs(model: ir.Model) -> dict[str, int]:
    """Return node name -> multiply-accumulates for one image, in the graph's order.

    Counted are Conv, ConvTranspose, Gemm and MatMul of the main graph; bias, normalisation and
    activation are not. A dynamic batch counts as 1, a fixed batch as it is. A node without a name
    goes by its first output. The model is left as it is.

    Raises: ModelError where a counted node's shape cannot be known.
    """
    return {name: count for name, count, _ in _counts(model)}


def total(model: ir.Model, convention: Convention = "mac") -> float:
    """Return the cost of one image under a convention.

    mac: multiply-accumulates, as torch and fvcore count convolutions; flop2: twice that, as most
    detector papers print; thop2: twice, with a transposed convolution's window applied to every
    *output* element, as the `thop` package does and hence YOLOv6's tables; gimac: mac / 2**30, as
    HRNet's tables.

    Raises: ModelError, OptionError.
    """
    if convention not in get_args(Convention):
        raise unknown_name("convention", convention, get_args(Convention))
    counts = list(_counts(model))
    if convention == "thop2":
        return 2 * sum(over for _, _, over in counts)
    mac = sum(count for _, count, _ in counts)
    return {"mac": mac, "flop2": 2 * mac, "gimac": mac / _GIBI}[convention]


def _counts(model: ir.Model) -> Iterable[tuple[str, int, int]]:
    """Return (node name, MACs, MACs as thop counts them) of every counted node."""
    shaped = _with_shapes(model)
    for node in shaped.graph:
        rule = _RULES.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rule is not None:
            name = node.name or str(node.outputs[0].name)
            yield name, rule(node), _THOP.get(node.op_type, rule)(node)


def _conv(node: ir.Node) -> int:
    """Return output elements * window, the window being in-channels-per-group * kernel."""
    return math.prod(_output(node)) * math.prod(_input(node, 1)[1:])


def _conv_transpose(node: ir.Node) -> int:
    """Return input elements * window: each is spread over out-channels-per-group * kernel."""
    return math.prod(_input(node, 0)) * math.prod(_input(node, 1)[1:])


def _conv_transpose_thop(node: ir.Node) -> int:
    channels, _, *kernel = _input(node, 1)
    group = node.attributes.get_int("group", 1)
    return math.prod(_output(node)) * (channels // group) * math.prod(kernel)


def _gemm(node: ir.Node) -> int:
    """Return M * N * K."""
    transposed = node.attributes.get_int("transA", 0)
    inner = _input(node, 0)[0 if transposed else 1]
    return math.prod(_output(node)) * inner


def _matmul(node: ir.Node) -> int:
    """Return output elements * K."""
    return math.prod(_output(node)) * _input(node, 0)[-1]


_RULES: dict[str, Callable[[ir.Node], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
_THOP = {"ConvTranspose": _conv_transpose_thop}


def _input(node: ir.Node, index: int) -> tuple[int, ...]:
    return _dims(node, node.inputs[index] if index < len(node.inputs) else None)


def _output(node: ir.Node) -> tuple[int, ...]:
    return _dims(node, node.outputs[0])


def _dims(node: ir.Node, value: ir.Value | None) -> tuple[int, ...]:
    shape = None if value is None else value.shape
    if value is None or shape is None or not shape.is_static():
        raise ModelError(
            f"cannot count the cost of {node.op_type} {node.name!r}: the shape of "
            f"{getattr(value, 'name', None)!r} is {shape}",
            expected="shapes that follow from the model's inputs, with only the batch dynamic",
            fix="export the model with a fixed height and width",
        )
    return tuple(int(dim) for dim in shape.numpy())


def _with_shapes(model: ir.Model) -> ir.Model:
    """Return a copy whose batch is fixed and whose every shape is inferred, weights shared."""
    shaped = model.clone()
    batches = [v.shape[0] for v in shaped.graph.inputs if v.shape]
    dynamic = {batch for batch in batches if not isinstance(batch, int)}
    known = {*shaped.graph.inputs, *shaped.graph.initializers.values()}
    for value in _values(shaped.graph):
        if value.shape is not None:
            dims = [_size(dim, dynamic) for dim in value.shape]
            # An intermediate shape with an unknown is inferred anew from the fixed batch.
            stale = value not in known and not all(isinstance(dim, int) for dim in dims)
            value.shape = None if stale else ir.Shape(dims)
    common.ShapeInferencePass(check_type=False, strict_mode=False)(shaped)
    return shaped


def _size(dim: int | ir.SymbolicDim, batches: Collection[object]) -> int | ir.SymbolicDim:
    """Return a size for a batch of 1: 1000 for `1000*batch`; `dim` where it has other unknowns."""
    if isinstance(dim, int) or dim in batches:
        return dim if isinstance(dim, int) else 1
    try:
        tree = ast.parse(str(dim), mode="eval").body
    except SyntaxError:
        return dim
    size = _evaluated(tree, {batch.value for batch in batches if isinstance(batch, ir.SymbolicDim)})
    return dim if size is None else size


def _evaluated(tree: ast.expr, ones: Collection[object]) -> int | None:
    """Return what an expression is where each of the names `ones` is 1; None: not known."""
    match tree:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return 1 if name in ones else None
        case ast.Call(func=ast.Name(id=ops.AT_MOST), args=[most]):
            return _evaluated(most, ones)
        case ast.BinOp(left, operator, right):
            sides = _evaluated(left, ones), _evaluated(right, ones)
            rule = _OPERATORS.get(type(operator))
            if rule is None or sides[0] is None or sides[1] is None:
                return None
            return rule(sides[0], sides[1]) if sides[1] or rule is not floordiv else None
    return None


def _values(graph: ir.Graph) -> Iterable[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs
