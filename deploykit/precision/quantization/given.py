"""Q/DQ that a file has already: taken off, or kept where they are.

Weights that are stored as int8 and read through a DQ become float weights again, whose levels are
remembered: quantised per output channel they are the same int8 numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import bypass, constant, integer, is_op, set_constant, value_names
from deploykit.precision.functions import is_positive
from deploykit.precision.lint.graph import is_layer, quantized_data
from deploykit.precision.quantization import operators

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_MOVES = (
    *("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather"),
    *("Split", "Identity", "Expand", "Tile", "DepthToSpace", "SpaceToDepth"),
)
"""Ops whose results are some of the levels that they read."""
_MIXES = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceMax")
"""Ops whose results are at least 0 where what they read is."""
_BOUNDS = {"uint8": (0, 255), "int8": (-128, 127)}
_SIX, _NEAR = 6.0, 0.03
"""Where a Relu6 ends, and how near the highest level is to that."""
_ENDS_ARE_INPUTS = 11
"""Opset from which on Clip has its ends as inputs."""
_KEY = "deploykit.levels"


class Levels(NamedTuple):
    """Weights as a file stored them."""

    levels: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int | None
    """Of the weights that the scales are along; None: one scale for all."""


class Stripped(NamedTuple):
    """What was taken off a graph."""

    pairs: int
    """DQ of activations and weights."""
    operators: int
    """Ops on integers."""
    cut: int
    """Relu and Clip that were put where the lowest level cut what is negative."""


def stripped(model: ir.Model) -> Stripped:
    """Return what was taken off activations and weights, in place.

    Ops on integers are taken apart first, see `operators`. Where levels begin at 0 they stand for
    a Relu too, which tools leave out: it is put back.
    """
    whole = operators.expanded(model)
    cut = sum(_cut(node) for node in list(model.graph) if is_op(node, "QuantizeLinear"))
    count = _lifted(model)
    for node in list(model.graph):
        if not is_op(node, "DequantizeLinear") or node.inputs[0] is None:
            continue
        before = node.inputs[0].producer()
        if before is not None and is_op(before, "QuantizeLinear"):
            value = before.inputs[0]
            assert value is not None  # ONNX requires it
            count += _removed(node, value)
            if not before.outputs[0].uses():
                model.graph.remove(before, safe=True)
        else:
            count += _widened(node, remember=False)
    return Stripped(count, whole, cut)


def _cut(node: ir.Node) -> bool:
    """Return whether a Relu was put before a Q whose levels begin at 0; Relu6 where they end so."""
    value, scale = node.inputs[0], constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else np.uint8(0).reshape(1)
    if value is None or scale is None or zero is None or zero.dtype.name not in _BOUNDS:
        return False
    lowest, highest = _BOUNDS[zero.dtype.name]
    if value.producer() is None or (zero != lowest).any() or _is_positive(value):
        return False
    graph = node.graph
    assert isinstance(graph, ir.Graph)  # the caller gives nodes of the main graph
    taken = value_names(graph)
    top = float(scale.max()) * (highest - lowest)
    if abs(top - _SIX) < _NEAR:
        made = _clip(node, value, scale.dtype, taken)
    else:
        made = operators.node_like("Relu", [value], taken, node)
    made.outputs[0].shape, made.outputs[0].type = value.shape, value.type
    graph.insert_before(node, made)
    node.replace_input_with(0, made.outputs[0])
    return True


def _clip(node: ir.Node, value: ir.Value, dtype: np.dtype[Any], taken: set[str]) -> ir.Node:
    """Return a Relu6 of `value`, in the form of the graph's opset."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)  # `_cut` has looked
    if graph.opset_imports.get("", 1) < _ENDS_ARE_INPUTS:
        ends = [ir.AttrFloat32("min", 0), ir.AttrFloat32("max", _SIX)]
        return operators.node_like("Clip", [value], taken, node, ends)
    values = [operators.weight(graph, np.array(end, dtype), taken) for end in (0, _SIX)]
    return operators.node_like("Clip", [value, *values], taken, node)


def _is_positive(value: ir.Value | None) -> bool:
    """Return whether a tensor is known to hold nothing below 0."""
    node = None if value is None else value.producer()
    if node is None:
        array = constant(value)
        return array is not None and bool((array.astype(np.float64) >= 0).all())
    if is_positive(node):
        return True
    read = node.inputs if is_op(node, "Add", "Mul", "Concat") else node.inputs[:1]
    return is_op(node, *_MOVES, *_MIXES) and all(map(_is_positive, read))


def _lifted(model: ir.Model) -> int:
    """Return how many DQ were taken off whose levels were moved after their Q, in place.

    Where all that is made of a Q's levels is moved, and read by DQ of its scale, they are moved in
    float.
    """
    count = 0
    for node in [node for node in model.graph if is_op(node, "QuantizeLinear")]:
        tree = _tree(node)
        if node.inputs[0] is None or constant(node.inputs[0]) is not None or len(tree) < 2:
            continue
        ends = [r for value in tree for r, _ in value.uses() if is_op(r, "DequantizeLinear")]
        for value in tree[1:]:
            value.type = node.inputs[0].type
        for end in ends:
            count += _removed(end, cast("ir.Value", end.inputs[0]))
        if all(end.graph is None for end in ends):
            bypass(node, node.inputs[0])
    return count


def _tree(node: ir.Node) -> list[ir.Value]:
    """Return the levels that a Q makes and what they are moved to; nothing where they stay."""
    tree = [node.outputs[0]]
    for value in tree:
        for reader, place in value.uses():
            if is_op(reader, *_MOVES) and place == 0:
                tree += reader.outputs
            elif not is_op(reader, "DequantizeLinear") or not _same_step(node, reader):
                return []
        if value.is_graph_output():
            return []
    return tree


def _same_step(first: ir.Node, second: ir.Node) -> bool:
    """Return whether a Q and a DQ have one scale."""
    ours, theirs = constant(first.inputs[1]), constant(second.inputs[1])
    return ours is not None and theirs is not None and np.array_equal(ours, theirs)


def _removed(node: ir.Node, value: ir.Value) -> bool:
    """Return whether readers of a DQ read what its Q read."""
    if constant(value) is None:
        return bypass(node, value)
    if node.outputs[0].is_graph_output():
        return False
    node.outputs[0].replace_all_uses_with(value)
    node.graph.remove(node, safe=True)  # type: ignore[union-attr]  # it is a part of one
    return True


def widened(model: ir.Model) -> int:
    """Return how many weights became float: those of layers whose data is float."""
    found = [node for node in model.graph if is_op(node, "DequantizeLinear")]
    return sum(_widened(node, remember=True) for node in found if not _stays(node))


def _stays(node: ir.Node) -> bool:
    """Return whether a DQ belongs to a layer whose data is INT8 too; that of a bias never does."""
    levels = constant(node.inputs[0])
    if levels is not None and levels.dtype == np.int32:
        return False
    readers = [reader for reader, _ in node.outputs[0].uses()]
    return any(is_layer(reader) and quantized_data(reader) is not None for reader in readers)


def _widened(node: ir.Node, *, remember: bool) -> bool:
    """Return whether a DQ of constants became a constant."""
    levels, scales = constant(node.inputs[0]), constant(node.inputs[1])
    zero = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    late = len(node.inputs) > 2 and node.inputs[2] is not None and zero is None
    if levels is None or scales is None or late:
        return False
    axis, block = integer(node, "axis", 1) % max(1, levels.ndim), integer(node, "block_size", 0)
    if block:
        steps, shift = (_by_blocks(each, levels, axis, block) for each in (scales, zero))
    else:
        steps, shift = (_along(each, levels.ndim, axis) for each in (scales, zero))
    if steps is None or (zero is not None and shift is None):
        return False
    whole = levels.astype(np.int32) - (0 if shift is None else shift.astype(np.int32))
    weights = np.multiply(whole, steps, dtype=scales.dtype)
    output = node.outputs[0]
    readers = [(reader, index) for reader, index in output.uses()]
    if not set_constant(node, weights):
        return False
    plain = zero is None or not zero.any()
    if remember and plain and not block and levels.dtype == np.int8 and scales.dtype == np.float32:
        own = axis if scales.size > 1 else None
        kept = Levels(levels.astype(np.int8), scales.astype(np.float32), own)
        for reader, index in readers:
            value = reader.inputs[index]
            assert value is not None  # it has just been put there
            value.meta[_KEY] = kept
    return True


def _along(values: Array | None, rank: int, axis: int) -> Array | None:
    """Return numbers along an axis in a shape that multiplies a tensor of that rank."""
    if values is None or values.size == 1:
        return None if values is None else values.reshape(())
    if values.ndim != 1:
        return None
    return values.reshape([-1 if i == axis else 1 for i in range(rank)])


def _by_blocks(values: Array | None, levels: Array, axis: int, block: int) -> Array | None:
    """Return numbers of the blocks along an axis for each level; None where they do not fit."""
    blocks = tuple(-(-n // block) if i == axis else n for i, n in enumerate(levels.shape))
    if values is None or values.shape != blocks:
        return None
    return np.repeat(values, block, axis)[tuple(slice(n) for n in levels.shape)]


def has_levels(value: ir.Value) -> bool:
    """Return whether a file stored these weights as int8."""
    return _KEY in value.meta


def levels_of(value: ir.Value, axis: int | None) -> Levels | None:
    """Return weights as the file stored them, with scales along `axis`; None: otherwise, or not."""
    kept: Levels | None = value.meta.get(_KEY)
    if kept is None or kept.axis == axis or axis is None:
        return kept if kept is None or kept.axis == axis else None
    if kept.axis is not None:
        return None
    scales = np.full(kept.levels.shape[axis], kept.scales.reshape(()), np.float32)
    return kept._replace(scales=scales, axis=axis)
