"""Q/DQ that a file has already: taken off, or kept where they are.

Weights that are stored as int8 and read through a DQ become float weights again, whose levels are
remembered: quantised per output channel they are the same int8 numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deploykit.graph.editing import bypass, constant, integer, is_op, set_constant
from deploykit.precision.lint.graph import is_layer, quantized_data

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

_KEY = "deploykit.levels"


class Levels(NamedTuple):
    """Weights as a file stored them."""

    levels: NDArray[np.int8]
    scales: NDArray[np.float32]
    axis: int | None
    """Of the weights that the scales are along; None: one scale for all."""


def stripped(model: ir.Model) -> int:
    """Return how many Q/DQ pairs were taken off activations and weights, in place."""
    count = 0
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
    return count


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
    if levels is None or scales is None or late or integer(node, "block_size", 0):
        return False
    axis = integer(node, "axis", 1) % max(1, levels.ndim)
    steps, shift = (_along(each, levels.ndim, axis) for each in (scales, zero))
    if steps is None:
        return False
    whole = levels.astype(np.int32) - (0 if shift is None else shift.astype(np.int32))
    weights = np.multiply(whole, steps, dtype=scales.dtype)
    output = node.outputs[0]
    readers = [(reader, index) for reader, index in output.uses()]
    if not set_constant(node, weights):
        return False
    plain = zero is None or not zero.any()
    if remember and plain and levels.dtype == np.int8 and scales.dtype == np.float32:
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


def levels_of(value: ir.Value, axis: int | None) -> Levels | None:
    """Return weights as the file stored them, with scales along `axis`; None: otherwise, or not."""
    kept: Levels | None = value.meta.get(_KEY)
    if kept is None or kept.axis == axis or axis is None:
        return kept if kept is None or kept.axis == axis else None
    if kept.axis is not None:
        return None
    scales = np.full(kept.levels.shape[axis], kept.scales.reshape(()), np.float32)
    return kept._replace(scales=scales, axis=axis)
