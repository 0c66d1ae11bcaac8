"""What TensorRT refuses in a Q/DQ graph, and what it runs in float without a word.

Each rule is a row of `RULES`. An `error` is refused by the parser or silently runs in float; a
`warning` costs speed or accuracy; an `info` is worth knowing. Measured with TensorRT-RTX 1.7.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit.lint.graph import (
    dequantized,
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
from deploykit.passes._graph import is_op
from deploykit.placement.rules import (
    GROUP_MULTIPLE,
    MIN_CHANNELS,
    PASS_THROUGH,
    WEIGHTED,
    constant,
    moved_inputs,
    moves,
    weighted_layers,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Severity: TypeAlias = Literal["error", "warning", "info"]
Message: TypeAlias = str | None
"""What was found; None: nothing."""

Q, DQ = "QuantizeLinear", "DequantizeLinear"
ACTIVATIONS = ("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh")
FP16_SCALES = 19
"""First opset whose Q/DQ take FP16 scales."""
AXIS_SCALES = 13
"""First opset whose Q/DQ take one scale per channel."""


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


@dataclass(frozen=True)
class Rule:
    """One thing that goes wrong in Q/DQ graphs."""

    id: str
    severity: Severity
    ops: tuple[str, ...]
    """The node types it looks at."""
    check: Callable[[ir.Node, Facts], Message]
    fix: str


def _quantized_op(node: ir.Node, _: Facts) -> Message:
    return f"{node.op_type} is refused by TensorRT's parser"


def _asymmetric(node: ir.Node, _: Facts) -> Message:
    found = step(node)
    if found.zero is None or not found.zero.any():
        return None
    return f"zero-point {found.zero.ravel()[0]}, and TensorRT knows only 0"


def _unsigned(node: ir.Node, _: Facts) -> Message:
    found = step(node)
    plain = found.zero is None or not found.zero.any()
    if found.dtype is not ir.DataType.UINT8 or not plain:
        return None
    return "uint8 with zero-point 0 is read as int8: values above 127 are clipped"


def _bad_scale(node: ir.Node, _: Facts) -> Message:
    scale = step(node).scale
    if scale is None:
        return "the scale is computed at run time, and TensorRT wants a constant"
    wrong = scale[~(np.isfinite(scale) & (scale > 0))]
    return f"scale {wrong.ravel()[0]} is not a positive number" if wrong.size else None


def _int32(node: ir.Node, _: Facts) -> Message:
    if step(node).dtype is not ir.DataType.INT32:
        return None
    return "dequantizes int32, as for a bias, which TensorRT's parser refuses"


def _per_channel_activation(node: ir.Node, _: Facts) -> Message:
    found = step(node)
    if found.scale is None or found.per_tensor or constant(node.inputs[0]) is not None:
        return None
    readers = [reader.name for out in node.outputs for reader, _ in out.uses()]
    return f"an activation with {found.scale.size} scales: {readers} silently run in float"


def _old_axis(node: ir.Node, facts: Facts) -> Message:
    many = not step(node).per_tensor and step(node).scale is not None
    return f"a scale per channel at opset {facts.opset}" if many and facts.opset < 13 else None


def _half_scale(node: ir.Node, facts: Facts) -> Message:
    scale = step(node).scale
    half = scale is not None and scale.dtype == np.float16
    return f"an FP16 scale at opset {facts.opset}" if half and facts.opset < FP16_SCALES else None


def _mixed_types(node: ir.Node, _: Facts) -> Message:
    scale = step(node).scale
    value = node.inputs[0] if node.op_type == Q else node.outputs[0]
    if scale is None or value is None or value.dtype is None:
        return None
    same = value.dtype.numpy() == scale.dtype
    return None if same else f"the scale is {scale.dtype} and the tensor {value.dtype.numpy()}"


def _wrong_axis(node: ir.Node, _: Facts) -> Message:
    weights = quantized_weights(node)
    if weights is None or node.op_type == "ConvTranspose" or right_axis(node, weights):
        return None
    return f"scales along axis {weights.axis} of the weights: the layer silently runs in float"


def _float_weights(node: ir.Node, _: Facts) -> Message:
    if quantized_data(node) is None or quantized_weights(node) is not None:
        return None
    if len(node.inputs) < 2 or constant(node.inputs[1]) is None:
        return None
    return "its input is INT8 and its weights are float: it runs in float"


def _float_data(node: ir.Node, _: Facts) -> Message:
    if quantized_weights(node) is None or quantized_data(node) is not None:
        return None
    return "its weights are INT8 and its input is float: it silently runs in float"


def _kernel_shape(node: ir.Node, _: Facts) -> Message:
    if "kernel_shape" in node.attributes or quantized_weights(node) is None:
        return None
    return "no kernel_shape, and its weights come from a DQ: TensorRT cannot know it"


def _splits_fusion(node: ir.Node, _: Facts) -> Message:
    found = dequantized(node.inputs[0])
    before = quantizer(found) if found else None
    value = before.node.inputs[0] if before else None
    layer = value.producer() if value is not None else None
    if layer is None or not is_layer(layer):
        return None
    return f"Q/DQ between {layer.name!r} and its activation function: an extra rounding step"


def _concat_scales(node: ir.Node, _: Facts) -> Message:
    sources = [int8_source(node.inputs[index]) for index in moved_inputs(node)]
    known = [source for source in sources if source is not None]
    if len(known) < 2:
        return None
    if len(known) < len(sources):
        return f"{len(known)} of its {len(sources)} inputs are INT8: those are widened again"
    equal = all(same_scale(known[0], other) for other in known)
    return None if equal else "its INT8 inputs have different scales: each is rescaled"


def _moved_scales(node: ir.Node, _: Facts) -> Message:
    if node.op_type == "Concat" or not moves(node):
        return None
    before = dequantized(node.inputs[0])
    behind = [step(r) for out in node.outputs for r, _ in out.uses() if is_op(r, Q)]
    wrong = before is not None and any(not same_scale(before, after) for after in behind)
    return "Q/DQ before and behind it have different scales: it runs in float" if wrong else None


def _unclosed_resize(node: ir.Node, _: Facts) -> Message:
    readers = [reader for reader, _ in node.outputs[0].uses()]
    layers = [str(r.name) for r in readers if is_layer(r) and quantized_weights(r) is not None]
    if dequantized(node.inputs[0]) is None or not layers:
        return None
    return f"INT8 before it and no Q behind it: {', '.join(layers)} silently run in float"


def _float_skip(node: ir.Node, _: Facts) -> Message:
    for value in node.inputs:
        if value is not None and any(is_op(reader, Q) for reader, _ in value.uses()):
            return f"reads {value.name!r} in float, which is stored in INT8 too: it is written twice"
    return None


def _float_copy(node: ir.Node, _: Facts) -> Message:
    value = node.inputs[0]
    readers = {str(r.name) for r, _ in value.uses() if r is not node} if value is not None else ()
    others = sorted(name for name in readers)
    if value is None or not others or all(is_op(r, "Add", Q) for r, _ in value.uses()):
        return None
    return f"{value.name!r} is stored in INT8, and in float for {', '.join(others)}"


def _groups(node: ir.Node, _: Facts) -> Message:
    layer = next(each for each in weighted_layers([node]))
    if not runs_int8(node) or layer.group == 1:
        return None
    return f"INT8 with {layer.group} groups of {layer.channels[0] // layer.group} channels"
