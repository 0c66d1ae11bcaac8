"""A Q/DQ graph as its rules see it: what is quantised, with which scale, and who reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import dims, integer, is_op
from deploykit.precision.placement.crossing import FAR, crossed
from deploykit.precision.placement.rules import weight_axis
from deploykit.precision.placement.weighted import WEIGHTED, Layer, constant

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.generic]

INT8 = ir.DataType.INT8
_INT8 = ("Conv", "Einsum", "Gemm", "MatMul")
"""Ops with INT8 kernels; a transposed convolution and a recurrence run in float."""
IMAGE_CHANNELS = 4
"""A convolution with this few channels reads the image: it is the first, which pays in INT8."""


@dataclass(frozen=True)
class Step:
    """A QuantizeLinear or DequantizeLinear node."""

    node: ir.Node
    scale: Array | None
    """None where it is computed at run time."""
    zero: Array | None
    """None where it is left out or computed."""

    @property
    def per_tensor(self) -> bool:
        """Return whether one scale serves the whole tensor."""
        return self.scale is not None and self.scale.size == 1

    @property
    def axis(self) -> int:
        """Return the axis that the scales belong to; ONNX's default is 1."""
        return integer(self.node, "axis", 1)

    @property
    def dtype(self) -> ir.DataType | None:
        """Return the integer type of the quantised side."""
        value = (
            self.node.inputs[0] if self.node.op_type == "DequantizeLinear" else self.node.outputs[0]
        )
        zero = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        for candidate in (value, zero):
            if candidate is not None:
                tensor = constant(candidate)
                found = candidate.dtype if tensor is None else tensor.dtype
                if found is not None:
                    return found
        return ir.DataType.UINT8 if self.node.op_type == "QuantizeLinear" else None

    @property
    def symmetric_int8(self) -> bool:
        """Return whether it is int8 around 0."""
        return self.dtype is INT8 and (self.zero is None or not self.zero.any())


def step(node: ir.Node) -> Step:
    """Return what is known of a Q or DQ node."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    return Step(node, _array(node.inputs[1]), _array(zero))


def _array(value: ir.Value | None) -> Array | None:
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def dequantized(value: ir.Value | None) -> Step | None:
    """Return the DQ node that computes `value`, None where another node does."""
    node = None if value is None else value.producer()
    return step(node) if node is not None and is_op(node, "DequantizeLinear") else None


def quantizer(dequantizer: Step) -> Step | None:
    """Return the Q node before a DQ node, None where the int8 numbers are constant."""
    value = dequantizer.node.inputs[0]
    node = None if value is None else value.producer()
    return step(node) if node is not None and is_op(node, "QuantizeLinear") else None


def int8_source(value: ir.Value | None) -> Step | None:
    """Return the DQ that `value` comes from, through nodes that a DQ may be moved across.

    Behind a Concat: the DQ of one input, where all are quantised with the same scale.
    """
    return _int8_source(value, {}, FAR)


def _int8_source(
    value: ir.Value | None, known: dict[ir.Value, Step | None], steps: int
) -> Step | None:
    """Return what `int8_source` does, at most `steps` nodes back; `known`: what was found."""
    found = dequantized(value)
    node = None if value is None else value.producer()
    if value in known:
        return known[value]
    data = [] if node is None else crossed(node)
    if found is not None or node is None or not data or not steps:
        return found
    sources = [_int8_source(node.inputs[i], known, steps - 1) for i in data]
    first = sources[0] if sources else None
    found = first if all(same_scale(first, source) for source in sources) else None
    if value is not None:
        known[value] = found
    return found


def same_scale(one: Step | None, other: Step | None) -> bool:
    """Return whether two steps are known and quantise alike."""
    if one is None or other is None or one.scale is None or other.scale is None:
        return False
    return np.array_equal(one.scale, other.scale)


def quantized_data(layer: ir.Node) -> Step | None:
    """Return the Q/DQ behind a layer's data input, None where it reads float."""
    return int8_source(layer.inputs[0]) if layer.inputs else None


def quantized_weights(layer: ir.Node) -> Step | None:
    """Return the DQ behind a layer's weights or second operand, None where they are float."""
    value = layer.inputs[1] if len(layer.inputs) > 1 else None
    found = dequantized(value)
    if found is not None or not is_op(layer, "Einsum", "MatMul"):
        return found
    source = int8_source(value)
    return source if source is not None and (source.per_tensor or _turned(value)) else None


def _turned(weights: ir.Value | None) -> bool:
    """Return whether weights come from a DQ through one exchange of their two axes."""
    node = None if weights is None else weights.producer()
    if node is None or not is_op(node, "Transpose") or dequantized(node.inputs[0]) is None:
        return False
    return len(dims(node.inputs[0]) or ()) == 2


def is_layer(node: ir.Node) -> bool:
    """Return whether a node has weights or multiplies matrices."""
    return is_op(node, *WEIGHTED)


def as_layer(node: ir.Node) -> Layer:
    """Return a weighted node with the shape of its weights, behind Q/DQ or not.

    A convolution is taken for the first one where it reads an image's channels.
    """
    value = node.inputs[1]
    producer = None if value is None else value.producer()
    while producer is not None and is_op(producer, "QuantizeLinear", "DequantizeLinear"):
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    shape = dims(value)
    few = shape is not None and len(shape) > 1 and shape[1] <= IMAGE_CHANNELS
    return Layer(node, shape, first=few and integer(node, "group", 1) == 1)


def has_weights(layer: ir.Node) -> bool:
    """Return whether the second operand of a product is constant, behind Q/DQ or not."""
    value = layer.inputs[1] if len(layer.inputs) > 1 else None
    node = None if value is None else value.producer()
    while node is not None and is_op(node, "QuantizeLinear", "DequantizeLinear", "Transpose"):
        value = node.inputs[0]
        node = None if value is None else value.producer()
    return constant(value) is not None


def right_axis(layer: ir.Node, weights: Step) -> bool:
    """Return whether the scales of a layer's weights are one, or one per output channel."""
    shape = as_layer(layer).weights
    axis = weights.axis % len(shape) if shape else weights.axis
    wanted = 1 if is_op(layer, "MatMul") else weight_axis(layer)
    if is_op(layer, "MatMul") and _turned(layer.inputs[1]):
        axis = 1 - axis
    return weights.per_tensor or axis == wanted


def runs_int8(layer: ir.Node) -> bool:
    """Return whether TensorRT should run a node that multiplies in INT8."""
    if not is_op(layer, *_INT8):
        return False
    data, weights = quantized_data(layer), quantized_weights(layer)
    if data is None or weights is None:
        return False
    symmetric = data.symmetric_int8 and weights.symmetric_int8
    fits = is_op(layer, "Einsum") or right_axis(layer, weights)
    return symmetric and data.per_tensor and fits
