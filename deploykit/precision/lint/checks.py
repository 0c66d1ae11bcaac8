"""What each rule of the lint looks for at one node: a message, or None where all is well."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import is_op
from deploykit.ops.plugin import NAMESPACE
from deploykit.precision.lint.graph import (
    IMAGE_CHANNELS,
    as_layer,
    dequantized,
    has_weights,
    int8_source,
    is_layer,
    quantized_data,
    quantized_weights,
    quantizer,
    right_axis,
    runs_int8,
    same_scale,
    step,
)
from deploykit.precision.placement.rules import (
    GROUP_MULTIPLE,
    MIN_CHANNELS,
    float_rule,
    moved_inputs,
    moves,
)
from deploykit.precision.placement.weighted import constant

Message: TypeAlias = str | None
"""What was found; None: nothing."""

Q, DQ = "QuantizeLinear", "DequantizeLinear"
ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh")
FP16_SCALES = 19
"""First opset whose Q/DQ take FP16 scales."""
AXIS_SCALES = 13
"""First opset whose Q/DQ take one scale per channel."""
INT8_CORES = 75
"""First compute capability with INT8 tensor cores, Turing's."""


@dataclass(frozen=True)
class Facts:
    """What a rule may know beyond the node."""

    model: ir.Model
    target_sm: int | None = None
    """Compute capability of the GPU the engine is for, such as 75; None: any."""

    @property
    def opset(self) -> int:
        """Return the version of the ONNX operators."""
        return self.model.opset_imports.get("", 1)


def quantized_op(node: ir.Node, _: Facts) -> Message:
    """Find an op of the QOperator format."""
    return f"{node.op_type} is refused by TensorRT's parser"


def asymmetric(node: ir.Node, _: Facts) -> Message:
    """Find a zero-point other than 0."""
    found = step(node)
    if found.zero is None or not found.zero.any():
        return None
    return f"zero-point {found.zero.ravel()[0]}, and TensorRT knows only 0"


def unsigned(node: ir.Node, _: Facts) -> Message:
    """Find uint8 around 0."""
    found = step(node)
    plain = found.zero is None or not found.zero.any()
    if found.dtype is not ir.DataType.UINT8 or not plain:
        return None
    return "uint8 with zero-point 0 is read as int8: values above 127 are clipped"


def bad_scale(node: ir.Node, _: Facts) -> Message:
    """Find a scale that is no positive constant."""
    scale = step(node).scale
    if scale is None:
        return "the scale is computed at run time, and TensorRT wants a constant"
    values = scale.astype(np.float64)
    wrong = values[~(np.isfinite(values) & (values > 0))]
    return f"scale {wrong.ravel()[0]} is not a positive number" if wrong.size else None


def int32(node: ir.Node, _: Facts) -> Message:
    """Find the DQ of an int32 bias."""
    if step(node).dtype is not ir.DataType.INT32:
        return None
    return "dequantizes int32, as for a bias, which TensorRT's parser refuses"


def per_channel_activation(node: ir.Node, _: Facts) -> Message:
    """Find an activation with one scale per channel."""
    found = step(node)
    if found.scale is None or found.per_tensor or constant(node.inputs[0]) is not None:
        return None
    readers = [reader.name for out in node.outputs for reader, _ in out.uses()]
    return f"an activation with {found.scale.size} scales: {readers} silently run in float"


def old_axis(node: ir.Node, facts: Facts) -> Message:
    """Find scales per channel at an opset that lacks them."""
    scale = step(node).scale
    old = scale is not None and scale.size > 1 and facts.opset < AXIS_SCALES
    return f"a scale per channel at opset {facts.opset}" if old else None


def half_scale(node: ir.Node, facts: Facts) -> Message:
    """Find an FP16 scale at an opset that lacks it."""
    scale = step(node).scale
    half = scale is not None and scale.dtype == np.float16
    return f"an FP16 scale at opset {facts.opset}" if half and facts.opset < FP16_SCALES else None


def mixed_types(node: ir.Node, _: Facts) -> Message:
    """Find a scale of another type than the float tensor beside it."""
    scale = step(node).scale
    value = node.inputs[0] if node.op_type == Q else node.outputs[0]
    if scale is None or value is None or value.dtype is None:
        return None
    same = value.dtype.numpy() == scale.dtype
    return None if same else f"the scale is {scale.dtype} and the tensor {value.dtype.numpy()}"


def wrong_axis(node: ir.Node, _: Facts) -> Message:
    """Find weights with scales along another axis than the output channels'."""
    weights = quantized_weights(node)
    if weights is None or node.op_type == "ConvTranspose" or right_axis(node, weights):
        return None
    return f"scales along axis {weights.axis} of the weights: the layer silently runs in float"


def float_weights(node: ir.Node, _: Facts) -> Message:
    """Find a layer whose input alone is quantised."""
    if quantized_data(node) is None or quantized_weights(node) is not None:
        return None
    if len(node.inputs) < 2 or constant(node.inputs[1]) is None or float_rule(as_layer(node)):
        return None
    return "its input is INT8 and its weights are float: it runs in float"


def float_data(node: ir.Node, _: Facts) -> Message:
    """Find a layer whose weights alone are quantised."""
    if quantized_weights(node) is None or quantized_data(node) is not None:
        return None
    if not has_weights(node):
        return None  # a product of two activations
    return "its weights are INT8 and its input is float: it silently runs in float"


def kernel_shape(node: ir.Node, _: Facts) -> Message:
    """Find a convolution whose kernel size only its quantised weights tell."""
    if "kernel_shape" in node.attributes or quantized_weights(node) is None:
        return None
    return "no kernel_shape, and its weights come from a DQ: TensorRT cannot know it"


def splits_fusion(node: ir.Node, _: Facts) -> Message:
    """Find Q/DQ between a layer and its activation function."""
    found = dequantized(node.inputs[0])
    before = quantizer(found) if found else None
    value = before.node.inputs[0] if before else None
    layer = value.producer() if value is not None else None
    if layer is None or not is_layer(layer):
        return None
    return f"Q/DQ between {layer.name!r} and its activation function: an extra rounding step"


def concat_scales(node: ir.Node, _: Facts) -> Message:
    """Find a Concat whose inputs are quantised unlike each other."""
    sources = [int8_source(node.inputs[index]) for index in moved_inputs(node)]
    known = [source for source in sources if source is not None]
    if known and len(known) < len(sources):
        return f"{len(known)} of its {len(sources)} inputs are INT8: those are widened again"
    if all(same_scale(known[0], other) for other in known):
        return None
    return "its INT8 inputs have different scales: each is rescaled"


def moved_scales(node: ir.Node, _: Facts) -> Message:
    """Find different scales before and behind a node that only moves values."""
    if node.op_type == "Concat" or not moves(node):
        return None
    before = dequantized(node.inputs[0])
    behind = [step(r) for out in node.outputs for r, _ in out.uses() if is_op(r, Q)]
    if before is None or not behind or any(same_scale(before, after) for after in behind):
        return None
    return "Q/DQ before and behind it have different scales: it runs in float"


def unclosed_resize(node: ir.Node, _: Facts) -> Message:
    """Find a Resize between a DQ and a layer, without Q behind it."""
    readers = [reader for reader, _ in node.outputs[0].uses()]
    layers = [str(r.name) for r in readers if is_layer(r) and quantized_weights(r) is not None]
    if dequantized(node.inputs[0]) is None or not layers:
        return None
    return f"INT8 before it and no Q behind it: {', '.join(layers)} silently run in float"


def float_skip(node: ir.Node, _: Facts) -> Message:
    """Find an Add that reads the float copy of a tensor stored in INT8."""
    for value in node.inputs:
        if value is not None and any(is_op(reader, Q) for reader, _ in value.uses()):
            return (
                f"reads {value.name!r} in float, which is stored in INT8 too: it is written twice"
            )
    return None


def float_copy(node: ir.Node, _: Facts) -> Message:
    """Find a tensor that is stored in INT8 and in float."""
    value = node.inputs[0]
    readers = [reader for reader, _ in value.uses()] if value is not None else []
    others = sorted(
        str(reader.name)
        for reader in set(readers)
        if not is_op(reader, Q, "Add", "Shape") and reader.domain != NAMESPACE
    )
    if value is None or not others:
        return None
    return f"{value.name!r} is stored in INT8, and in float for {', '.join(others)}"


def groups(node: ir.Node, _: Facts) -> Message:
    """Find an INT8 convolution with awkward groups."""
    layer = as_layer(node)
    if layer.weights is None or layer.group == 1 or not runs_int8(node):
        return None
    per_group = [count // layer.group for count in layer.channels]
    if not any(count % GROUP_MULTIPLE for count in per_group):
        return None
    return (
        f"INT8 with {per_group[0]} input and {per_group[1]} output channels per group, for which "
        "TensorRT has no kernel on Turing"
    )


def few_channels(node: ir.Node, _: Facts) -> Message:
    """Find an INT8 convolution with few channels that is not the first."""
    layer = as_layer(node)
    if layer.weights is None or layer.group > 1 or not runs_int8(node):
        return None
    few = IMAGE_CHANNELS < min(layer.channels) < MIN_CHANNELS
    return f"INT8 with {min(layer.channels)} channels: padding may cost the gain" if few else None


def transposed(node: ir.Node, _: Facts) -> Message:
    """Find a transposed convolution with INT8 weights."""
    if quantized_weights(node) is None:
        return None
    return "INT8 weights, and it runs in float all the same"


def no_int8_cores(_: ir.Node, facts: Facts) -> Message:
    """Find INT8 for a GPU without the tensor cores for it."""
    if facts.target_sm is None or facts.target_sm >= INT8_CORES:
        return None
    return f"SM {facts.target_sm} has no INT8 tensor cores: INT8 is slower there than FP16"
