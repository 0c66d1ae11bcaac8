"""A float graph in which each layer stands twice: as it is, and computed from INT8 alone.

The second copy reads the tensors that the float layer reads, rounded to INT8, and the rounded
weights; nothing behind it reads what it gives. So one run over the images tells of every layer what
INT8 does to its result while everything else is float. Compared is the result behind the layer's
activation function, and only sums leave the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import is_op
from deploykit.precision import placement
from deploykit.precision.appending import Appended
from deploykit.precision.functions import behind
from deploykit.precision.probing import Stored
from deploykit.precision.quality import readers
from deploykit.precision.quantization.writing import appended_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.precision.placement import Placement
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable

_CHANNELS_FIRST = ("Conv", "ConvTranspose")


class Names(NamedTuple):
    """The outputs that tell of one layer; each is float32[images, channels], or of channels."""

    error: str
    """Energy of what INT8 changes, per channel: the sum of squares."""
    signal: str
    """Energy of the float result."""
    changed: str
    """Energy of the result from INT8."""
    size: str
    """int64: how many values the result has."""


@dataclass(frozen=True)
class Doubled:
    """A graph with every layer twice."""

    model: Opened
    layers: Mapping[str, Names]
    """Node name -> its outputs, in the graph's order."""


def doubled(model: Opened, placed: Placement, table: CalibrationTable) -> Doubled:
    """Return `model` with each INT8 layer of `placed` twice.

    Raises: InputError where the table lacks a range; ModelError for weights that are not finite.
    """
    add = Appended(model, "twice")
    weights = {each.node: each for each in placed.weights}
    reads: dict[str, dict[int, Stored]] = {}
    for (name, index), read in readers(placed, table).items():
        reads.setdefault(name, {})[index] = read
    stored, found = dict[Stored, ir.Value](), {}
    layers = placement.layers(add.graph, placed)
    followers = {str(node.name): behind(node) for node in layers}
    twins: dict[ir.Value | None, ir.Value] = {}
    for node in layers:
        name = str(node.name)
        inputs = list(node.inputs)
        for index, read in reads.get(name, {}).items():
            if read not in stored:
                stored[read] = add.stored(add.values[read.tensor], read.step)
            inputs[index] = stored[read]
        if name in weights:
            inputs[1] = appended_weights(add, node, weights[name])
        twins[node.outputs[0]] = twin = add.again(node, inputs)
        for carrier in followers[name]:
            values_read = [twins.get(each, each) for each in carrier.inputs]
            twins[carrier.outputs[0]] = twin = add.again(carrier, values_read)
        value = (node, *followers[name])[-1].outputs[0]
        found[name] = _sums(add, node, value, twin)
    return Doubled(add.opened(), found)


def _sums(add: Appended, node: ir.Node, value: ir.Value, twin: ir.Value) -> Names:
    """Return outputs with the energies per channel: sums over more lose digits in float32.

    The runtime sums squares in one node slower than it multiplies and sums.
    """
    size = add.node("Size", value, dtype=ir.DataType.INT64)
    if is_op(node, *_CHANNELS_FIRST):
        rows, axes = add.constant("rows", np.array([0, 0, -1], np.int64)), [2]
        value, twin = (add.node("Reshape", each, rows) for each in (value, twin))
    else:
        axes = list(range(-2, -len(value.shape or (0, 0)), -1)) or [0]  # the channels are last
    over = add.constant(f"axes {axes}", np.array(axes, np.int64))
    squares = (add.node("Mul", each, each) for each in (add.node("Sub", twin, value), value, twin))
    sums = (add.node("ReduceSum", each, over, keepdims=0) for each in squares)
    error, signal, changed = (add.answer(each, rank=2) for each in sums)
    return Names(error, signal, changed, add.answer(size))
