"""Q and DQ nodes written into a graph, where placement put them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.errors import ModelError
from deploykit.graph.editing import is_op, unique, value_names
from deploykit.precision.placement.weighted import constant
from deploykit.precision.quantization import given, rounding
from deploykit.precision.quantization.arithmetic import (
    activation_scale,
    rounded_scales,
    scale_type,
    weight_scale_type,
    weight_scales,
)
from deploykit.precision.quantization.sharing import readings
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from deploykit.precision.appending import Appended
    from deploykit.precision.placement import Placement, Weight
    from deploykit.precision.quantization.sharing import Reading
    from deploykit.values import CalibrationTable


def insert(
    model: ir.Model, placed: Placement, table: CalibrationTable, float_type: Precision
) -> None:
    """Write the Q/DQ of `placed` into `model`.

    Every scale is a number of `float_type`, but where that is FP16 and too coarse for it.

    Raises: InputError where the table lacks a range; ModelError for weights that are not finite.
    """
    writer = _Writer(model.graph, float_type)
    for reading in readings(placed.activations, table):
        kind = scale_type(reading.threshold, float_type)
        writer.quantize_activation(reading, activation_scale(reading.threshold, kind))
    for weight in placed.weights:
        writer.quantize_weight(weight)
    writer.drop_unused()


def stored_weights(
    value: ir.Value, weight: Weight, float_type: Precision
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the levels of a layer's weights and their steps, as a file will hold them.

    Raises: ModelError for weights that are not finite float32 numbers.
    """
    tensor = constant(value)
    assert tensor is not None  # placement chose constant weights
    array = tensor.numpy()
    if array.dtype != np.float32 or not np.isfinite(array).all():
        raise ModelError(
            f"the weights {weight.tensor!r} of {weight.node!r} are {array.dtype} "
            + ("" if array.dtype != np.float32 else "with NaN or infinity"),
            expected="finite float32 numbers",
            fix="export the checkpoint again; a model cast to FP16 cannot be quantised",
        )
    kind = weight_scale_type(array, weight.axis, float_type)
    kept = given.levels_of(value, weight.axis)
    if kept is not None:
        return kept.levels, rounded_scales(kept.scales, kind)
    scales = weight_scales(array, weight.axis, kind)
    return rounding.levels(array, scales, weight.axis, rounding.ways_of(value)), scales


def appended_weights(add: Appended, node: ir.Node, weight: Weight) -> ir.Value:
    """Return a layer's weights as INT8 with float32 steps holds them. Raises: ModelError.

    The runtime is given their levels, and multiplies these once, when it opens the model.
    """
    value = node.inputs[1]
    assert value is not None  # placement chose it
    levels, steps = stored_weights(value, weight, Precision.FP32)
    held = add.constant(f"{node.name}.levels", levels)
    scale = add.constant(f"{node.name}.steps", steps)
    axis = 0 if weight.axis is None else weight.axis  # of one step alone none is asked
    return add.node("DequantizeLinear", held, scale, axis=axis)


class _Writer:
    """Adds Q and DQ nodes to a graph."""

    def __init__(self, graph: ir.Graph, float_type: Precision) -> None:
        self._graph = graph
        self._float_type = float_type
        self._taken = value_names(graph)
        self._nodes = {str(node.name): node for node in graph}
        self._names = set(self._nodes)
        outputs = (value for node in graph for value in node.outputs)
        self._values = {str(value.name): value for value in (*graph.inputs, *outputs)}
        self._weights: dict[tuple[str, int | None], ir.Value] = {}
        self._scales: dict[tuple[str, ...], ir.Value] = {}
        self._zero: ir.Value | None = None

    def quantize_activation(self, reading: Reading, scale: np.float32) -> None:
        """Put one Q/DQ pair behind a tensor that has none, and let its readers read that."""
        value = self._values[reading.tensor]
        if is_op(value.producer(), "DequantizeLinear"):
            return
        if self._zero is None:
            self._zero = self._constant("zero_point", np.array(0, np.int8))
        if reading.ranges not in self._scales:
            name = f"{reading.ranges[0]}.scale"
            self._scales[reading.ranges] = self._constant(name, np.array(scale))
        step = self._scales[reading.ranges]
        stored = self._node("QuantizeLinear", value, step, self._zero)
        stored.type = ir.TensorType(ir.DataType.INT8)
        result = self._node("DequantizeLinear", stored, step, self._zero)
        self._place(value, stored, result)
        for name, index in reading.readers:
            self._nodes[name].replace_input_with(index, result)

    def quantize_weight(self, weight: Weight) -> None:
        """Store the weights of a layer as int8 with a DQ."""
        key = (weight.tensor, weight.axis)
        node = self._nodes[weight.node]
        if key not in self._weights:
            value = node.inputs[1]
            assert value is not None  # placement chose it
            self._weights[key] = self._dequantized(value, weight)
        node.replace_input_with(1, self._weights[key])

    def drop_unused(self) -> None:
        """Remove the float weights that nothing reads any more."""
        kept = set(self._graph.outputs)
        for name, value in list(self._graph.initializers.items()):
            if not value.uses() and value not in kept and value not in self._graph.inputs:
                del self._graph.initializers[name]

    def _dequantized(self, value: ir.Value, weight: Weight) -> ir.Value:
        levels, scales = stored_weights(value, weight, self._float_type)
        stored = self._constant(f"{weight.tensor}.int8", levels)
        step = self._constant(f"{weight.tensor}.scale", scales)
        zero = self._constant(f"{weight.tensor}.zero_point", np.zeros(scales.shape, np.int8))
        axis = {} if weight.axis is None else {"axis": weight.axis}
        result = self._node("DequantizeLinear", stored, step, zero, axis=axis, name=weight.tensor)
        self._graph.insert_before(self._graph[0], _producer(result))
        return result

    def _node(
        self,
        op_type: str,
        *inputs: ir.Value,
        axis: Mapping[str, int] | None = None,
        name: str | None = None,
    ) -> ir.Value:
        """Return the output of a new node, not yet in the graph, named after the tensor."""
        stem = name or str(inputs[0].name).removesuffix(".int8")
        suffix = "int8" if op_type == "QuantizeLinear" else "dequantized"
        output = ir.Value(
            name=unique(f"{stem}.{suffix}", self._taken),
            shape=inputs[0].shape,
            type=ir.TensorType(ir.DataType.FLOAT),
        )
        own = unique(f"{stem}.{op_type}", self._names)
        ir.node(op_type, inputs, axis, outputs=[output], name=own)
        return output

    def _place(self, value: ir.Value, *outputs: ir.Value) -> None:
        """Put the nodes of `outputs` right behind the producer of `value`, in order."""
        nodes = [_producer(output) for output in outputs]
        producer = value.producer()
        if producer is None:
            self._graph.insert_before(self._graph[0], nodes)
        else:
            self._graph.insert_after(producer, nodes)

    def _constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        tensor = ir.tensor(array, name=unique(name, self._taken))
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self._graph.register_initializer(value)
        return value


def _producer(value: ir.Value) -> ir.Node:
    node = value.producer()
    assert node is not None  # made by _Writer
    return node
