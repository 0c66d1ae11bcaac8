"""Every shape of a model, for a batch of one image."""

from __future__ import annotations

import ast
import math
from operator import add, floordiv, mul, sub
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit import ops
from deploykit.graph import folding, inferring

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: add,
    ast.FloorDiv: floordiv,
    ast.Mult: mul,
    ast.Sub: sub,
}
"""What the size of a dimension is computed with, as the exporter writes it."""
_LONGEST = 200
"""Characters of a size that is computed; a longer one is no formula of an exporter's."""


def with_shapes(shaped: ir.Model) -> ir.Model:
    """Return the model, changed in place: its batch is fixed, every shape is inferred."""
    for value in _values(shaped.graph):
        value.shape = _opened(value.shape, given=value in shaped.graph.inputs)
    batches = [v.shape[0] for v in shaped.graph.inputs if v.shape]
    dynamic = {batch for batch in batches if not isinstance(batch, int)}
    known = {*shaped.graph.inputs, *shaped.graph.initializers.values()}
    for value in _values(shaped.graph):
        if value.shape is not None:
            dims = [_size(dim, dynamic) for dim in value.shape]
            # An intermediate shape with an unknown is inferred anew from the fixed batch.
            stale = value not in known and not all(isinstance(dim, int) for dim in dims)
            value.shape = None if stale else ir.Shape(dims)
    inferring.infer(shaped)
    return shaped


def settled(shaped: ir.Model) -> bool:
    """Return whether sizes were computed, in place, that shape inference leaves open.

    Exporters write the padding of windows as arithmetic on sizes, with Mod and ConstantOfShape,
    through which ONNX's inference does not follow. It needs every size of the inputs.
    """
    if not all(
        value.shape is not None and value.shape.is_static() for value in shaped.graph.inputs
    ):
        return False
    for value in _values(shaped.graph):
        if value.producer() is not None and value.shape and not value.shape.is_static():
            value.shape = None
    try:
        folding.folded(shaped, _FEW, _is_of_sizes)
    except Exception:  # noqa: BLE001 - of a node that does not run: what is open stays open
        return False
    return True


_FEW = 64
"""Elements at most of a tensor that sizes are computed with."""
_OF_SIZES = (
    *("Abs", "Add", "Ceil", "Div", "Floor", "Max", "Min", "Mod", "Mul", "Neg", "Sub"),
    *("And", "Cast", "Equal", "Greater", "Less", "Not", "Or", "ReduceProd", "Where"),
    *("Concat", "Gather", "Reshape", "ScatterND", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
)
"""Ops that sizes are computed with: none makes more of a tensor than it is given."""


def _is_of_sizes(node: ir.Node) -> bool | None:
    """Return whether to compute a node of constants; None: where it is small."""
    if node.op_type in _OF_SIZES:
        return None
    value = node.inputs[0] if node.op_type == "ConstantOfShape" else None
    sizes = None if value is None else value.const_value
    return sizes is not None and 0 <= math.prod(map(int, sizes.numpy().ravel())) <= _FEW


def _opened(shape: ir.Shape | None, *, given: bool) -> ir.Shape | None:
    """Return a shape without the sizes below 0 that some exporters write for open ones.

    given: of an input, whose first is the batch.
    """
    if shape is None or not any(isinstance(dim, int) and dim < 0 for dim in shape):
        return shape
    dims = [ir.SymbolicDim(f"open_{i}") if _below(dim) else dim for i, dim in enumerate(shape)]
    if given and _below(shape[0]):
        dims[0] = 1
    return ir.Shape(dims)


def _below(dim: int | ir.SymbolicDim) -> bool:
    return isinstance(dim, int) and dim < 0


def _size(dim: int | ir.SymbolicDim, batches: Collection[object]) -> int | ir.SymbolicDim:
    """Return a size for a batch of 1: 1000 for `1000*batch`; `dim` where it has other unknowns."""
    if isinstance(dim, int) or dim in batches:
        return dim if isinstance(dim, int) else 1
    text = str(dim)
    try:
        tree = ast.parse(text if len(text) < _LONGEST else "?", mode="eval").body
    except (SyntaxError, ValueError):
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
    """Yield what is given to a graph or computed in it, in its subgraphs too."""
    yield from graph.inputs
    for node in ir.traversal.RecursiveGraphIterator(graph):
        yield from node.outputs
        for attribute in node.attributes.values():
            if attribute.type is ir.AttributeType.GRAPH:
                yield from attribute.as_graph().inputs
