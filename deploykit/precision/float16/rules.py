"""Which nodes must compute in FP32, and why: the others can take FP16."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from deploykit import ops
from deploykit.graph import inferring
from deploykit.graph.editing import integer, is_op
from deploykit.precision.placement.weighted import WEIGHTED, constant
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.ops.plugin import Plugin
    from deploykit.values import PrecisionPlan

Wide: TypeAlias = dict[str, str]
"""Node that computes in FP32 -> reason."""
HALF, SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
MAX_HALF = 65504.0
"""Largest FP16 number."""
_COORDINATE = 512
"""From here on neighbouring FP16 numbers are 0.5 apart: too coarse for pixels."""
_MAX_LOSS = 2.0**-9
"""Largest relative L2 error of a constant in FP16; normal numbers stay below 2**-11."""
_COORDINATES = "works on coordinates, and FP16 numbers above 512 are 0.5 apart"
_EXPONENT = "leaves FP16's range for arguments above 11"
_LOGARITHM = "its argument loses all digits near 1 and underflows near 0"
_SQUARES = "adds up powers, and squares above 255 leave FP16's range"
_STASH = "adds up squares in FP16, by its stash_type"
_SUM = "adds up many numbers, which may leave FP16's range"

WIDE_OPS: Mapping[str, str] = {
    "AffineGrid": _COORDINATES,
    "Cosh": _EXPONENT,
    "CumProd": _SUM,
    "CumSum": _SUM,
    "DFT": _SUM,
    "Exp": _EXPONENT,
    "GlobalLpPool": _SQUARES,
    "GridSample": _COORDINATES,
    "LRN": _SQUARES,
    "Log": _LOGARITHM,
    "LogSoftmax": _LOGARITHM,
    "LpNormalization": _SQUARES,
    "LpPool": _SQUARES,
    "MaxRoiPool": _COORDINATES,
    "MeanVarianceNormalization": _SQUARES,
    "Mod": _COORDINATES,
    "NonMaxSuppression": _COORDINATES,
    "Pow": "leaves FP16's range for bases above 255",
    "Range": _COORDINATES,
    "ReduceL1": _SUM,
    "ReduceL2": _SUM,
    "ReduceLogSum": _SUM,
    "ReduceLogSumExp": _SUM,
    "ReduceProd": _SUM,
    "ReduceSum": _SUM,
    "ReduceSumSquare": _SUM,
    "RoiAlign": _COORDINATES,
    "STFT": _SUM,
    "Sinh": _EXPONENT,
}
"""Op -> why it stays in FP32: what leaves FP16 inside it, where no range of a tensor shows it.

What is not here may square or add up too. InstanceNormalization, LayerNormalization and others
with a `stash_type` do so in float32, by TensorRT's default and by the attribute's (Source: TensorRT
developer guide, Control of Computational Precision). Softmax takes the largest argument off first;
means, pools, convolutions and matrix products are added up in float32 and are as small as their
tensors, which are measured. Exponents that overflow inside Sigmoid, Mish, Gelu, Elu or Selu leave
the right result.
"""


def wide_nodes(model: ir.Model, plan: PrecisionPlan, unfit: Wide | None = None) -> Wide:
    """Return every node that must compute in FP32, with its reason; the model is not changed.

    unfit: those whose tensors do not fit into FP16, see `ranges`.

    What an FP32 node computes stays FP32 through every following node without weights: a wide
    result is never narrowed just to be moved or shifted.
    """
    inferring.infer(model)
    found: Wide = {}
    source: dict[ir.Value, str] = {}
    for node in model.graph:
        reason = (unfit or {}).get(str(node.name)) or _reason(node, plan, model)
        if reason is None and not is_op(node, *WEIGHTED, "DequantizeLinear", "Cast"):
            origins = (
                source[value]
                for index, value in enumerate(node.inputs)
                if value in source and not only_single(node, index, model)
            )
            reason = next((f"follows {name}, which is FP32" for name in origins), None)
        if reason is not None and is_float(*node.inputs, *node.outputs):
            found[str(node.name)] = reason
            source.update((value, str(node.name)) for value in node.outputs if is_float(value))
    return found


def _reason(node: ir.Node, plan: PrecisionPlan, model: ir.Model) -> str | None:
    """Return why a node itself needs FP32, None where it does not."""
    name = node.name or ""
    if plan.layers.get(name, plan.default) is Precision.FP32:
        return plan.reasons.get(name, "the plan says fp32")
    return _foreign(node) or _unable(node, model) or _lost(node)


def _foreign(node: ir.Node) -> str | None:
    """Return why the types of a node are not ours to choose, None where they are."""
    plugin = ops.op_of(node)
    if plugin is not None:
        return None if _following(node, plugin) else f"{node.op_type} {plugin.why_float}"
    if not is_op(node, node.op_type):
        return f"is the custom op {node.domain}::{node.op_type}, whose types are its own"
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    if any(attribute.type in graphs for attribute in node.attributes.values()):
        return "is control flow: its subgraphs stay FP32"
    if any(map(inferring.is_sequence, (*node.inputs, *node.outputs))):
        return "works on a sequence, whose tensors stay as they are"
    return None


def _unable(node: ir.Node, model: ir.Model) -> str | None:
    """Return why an op cannot take FP16, or not without loss; None where it can."""
    if node.op_type == "Cast":
        widens = is_float(*node.outputs) and not is_float(*node.inputs)
        return "casts integers, and FP16 holds those above 2048 inexactly" if widens else None
    if node.op_type in WIDE_OPS:
        return WIDE_OPS[node.op_type]
    if integer(node, "stash_type", SINGLE.value) != SINGLE.value:
        return _STASH
    return None if _has_half(node, model) else f"ONNX defines this {node.op_type} without FP16"


def _loss(node: ir.Node, value: ir.Value | None) -> str | None:
    """Return what FP16 would do to a constant input, None where that is harmless."""
    tensor = constant(value)
    if value is None or tensor is None or tensor.dtype is not SINGLE:
        return None
    array = tensor.numpy()
    array = array[np.isfinite(array)].astype(np.float64)
    largest = float(np.abs(array).max(initial=0.0))
    if largest > MAX_HALF:
        return f"{value.name} reaches {largest:.3g}, beyond FP16's {MAX_HALF:g}"
    if array.size > 1 and largest > _COORDINATE and is_op(node, "Add", "Sub"):
        return f"{value.name} reaches {largest:.4g}: a grid of coordinates"
    lost = float(np.linalg.norm(array.astype(np.float16) - array))
    if lost > _MAX_LOSS * float(np.linalg.norm(array)):
        return f"{value.name} is too small for FP16: values up to {largest:.3g}"
    return None


def _lost(node: ir.Node) -> str | None:
    """Return what FP16 would do to the constants that a node reads, None where that is harmless."""
    return next(filter(None, (_loss(node, value) for value in node.inputs)), None)


def lossy(graph: ir.Graph) -> Wide:
    """Return each layer whose own weights FP16 does not hold; those behind Q/DQ are not its own."""
    reasons = {str(node.name): _lost(node) for node in graph if is_op(node, *WEIGHTED)}
    return {name: reason for name, reason in reasons.items() if reason is not None}


def is_float(*values: ir.Value | None) -> bool:
    """Return whether one of the values is FP32, or was before the rewrite."""
    return any(dtype(value) in (SINGLE, HALF) for value in values)


def dtype(value: ir.Value | None) -> ir.DataType | None:
    """Return the element type of a tensor, None where there is none or it is unknown.

    A sequence is no tensor, though it has a type of elements.
    """
    if value is None or inferring.is_sequence(value):
        return None
    return value.const_value.dtype if value.const_value is not None else value.dtype


def _has_half(node: ir.Node, model: ir.Model) -> bool:
    """Return whether ONNX defines the op for FP16 wherever its float inputs may vary in type."""
    schema = _schema(node.op_type, model.opset_imports.get("", 1))
    return schema is None or all(
        "tensor(float16)" in types or "tensor(float)" not in types
        for index, value in enumerate(node.inputs)
        if is_float(value) and len(types := _types(schema, index)) > 1
    )


def _following(node: ir.Node, plugin: Plugin) -> range:
    """Return which inputs of one of our ops give an output its type; the others have their own."""
    followed = {output.dtype for output in plugin.outputs} & set(plugin.names)
    if not followed:
        return range(0)
    first = plugin.names.index(followed.pop())
    return range(first, len(node.inputs) if first == len(plugin.names) - 1 else first + 1)


def only_single(node: ir.Node, index: int, model: ir.Model) -> bool:
    """Return whether an input is FP32 by definition, such as the scales of Resize."""
    plugin = ops.op_of(node)
    if plugin is not None:
        return index not in _following(node, plugin)
    schema = _schema(node.op_type, model.opset_imports.get("", 1))
    return schema is not None and _types(schema, index) == {"tensor(float)"}


def may_be_half(node: ir.Node, index: int, model: ir.Model) -> bool:
    """Return whether an output can be FP16: the mean that LayerNormalization gives cannot."""
    schema = None if ops.op_of(node) else _schema(node.op_type, model.opset_imports.get("", 1))
    if schema is None or not schema.outputs:
        return True
    types = schema.outputs[min(index, len(schema.outputs) - 1)].types
    return "tensor(float16)" in types or "tensor(float)" not in types


@functools.cache
def _schema(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(op_type, opset)
    except onnx.defs.SchemaError:
        return None


def _types(schema: onnx.defs.OpSchema, index: int) -> set[str]:
    """Return the element types that an input may have."""
    formal = schema.inputs[min(index, len(schema.inputs) - 1)]
    return set(formal.types)
