"""FP16 in the graph: nodes compute in half precision, except those that would lose by it.

A strongly typed TensorRT network takes each layer's precision from the types in the ONNX file, so
the Casts are written here. Inputs and outputs of the model stay FP32.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from deploykit import acceptance, artifacts, metadata, onnxfile
from deploykit.errors import ModelError, OptionError
from deploykit.passes._graph import is_op, unique, value_names
from deploykit.placement import default_plan
from deploykit.placement.rules import WEIGHTED, constant
from deploykit.values import Artifact, Precision, PrecisionPlan

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

Wide: TypeAlias = dict[str, str]
"""Node that computes in FP32 -> reason."""

_COORDINATE = 512
"""From here on neighbouring FP16 numbers are 0.5 apart: too coarse for pixels."""
_MAX_LOSS = 2.0**-9
"""Largest relative L2 error of a constant in FP16; rounding of normal numbers stays below 2**-11."""
_HALF, _SINGLE = ir.DataType.FLOAT16, ir.DataType.FLOAT
_COORDINATES = "works on coordinates, and FP16 numbers above 512 are 0.5 apart"
_SUM = "adds up many numbers, which may leave FP16's range"

WIDE_OPS: Mapping[str, str] = {
    "CumSum": _SUM,
    "Exp": "leaves FP16's range for arguments above 11",
    "GridSample": _COORDINATES,
    "Log": "its argument loses all digits near 1 and underflows near 0",
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
}
"""Op -> why it stays in FP32."""


def cast(model: Path, output: Path, *, float_type: Precision) -> Artifact:
    """Return the artifact of the FP16 version of an ONNX file.

    What the recipe marks as FP32 stays so. Raises: ModelError, OptionError, OutputError;
    ProofError where the result does not run in ONNX Runtime or overflows.
    """
    if float_type is not Precision.FP16:
        raise OptionError(f"cannot cast to {float_type}", expected="fp16")
    artifacts.check_writable(output)
    graph = onnxfile.read_model(model)
    plan = default_plan(graph, metadata.read(graph.metadata_props))
    wide = wide_nodes(graph, plan)
    to_float16(graph, plan)
    inputs, outputs = onnxfile.interface(graph)
    with artifacts.replacing(output) as temporary:
        onnxfile.write_model(graph, temporary)
        agreements = acceptance.accept(temporary, model)
    return artifacts.describe(
        output,
        made_by={
            "verb": "cast",
            "float_type": float_type.value,
            "fp32_nodes": wide,
            "max_relative_error": max(agreement.relative for agreement in agreements),
        },
        parents=(model,),
        inputs=inputs,
        outputs=outputs,
    )


def to_float16(model: ir.Model, plan: PrecisionPlan) -> ir.Model:
    """Return `model`, changed in place: FP16 inside, FP32 where `wide_nodes` says so.

    Names of nodes and tensors stay; a Cast is called after the tensor it casts.

    Raises: ModelError where a tensor has no known type.
    """
    wide = wide_nodes(model, plan)
    _check_types(model)
    casts = _Casts(model.graph, value_names(model.graph))
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    halves = {node: _computes_half(node, wide, model) for node in nodes}
    for node in nodes:
        if not _is_float(*node.inputs, *node.outputs):
            continue
        half = halves[node]
        if is_op(node, "QuantizeLinear"):
            half = half and _dtype(node.inputs[0]) is _HALF
        for index, value in enumerate(node.inputs):
            if value is not None and _is_float(value):
                fixed = _only_single(node, index, model)
                casts.feed(node, index, _HALF if half and not fixed else _SINGLE)
        for value in node.outputs:
            if half and value.dtype is _SINGLE:
                value.dtype = _HALF
    casts.finish()
    return model


def wide_nodes(model: ir.Model, plan: PrecisionPlan) -> Wide:
    """Return every node that must compute in FP32, with its reason; the model is not changed.

    What an FP32 node computes stays FP32 through every following node without weights: a wide
    result is never narrowed just to be moved or shifted.
    """
    ShapeInferencePass()(model)
    found: Wide = {}
    source: dict[ir.Value, str] = {}
    for node in model.graph:
        reason = _reason(node, plan, model)
        if reason is None and not is_op(node, *WEIGHTED, "DequantizeLinear", "Cast"):
            origins = (source[v] for v in node.inputs if v is not None and v in source)
            reason = next((f"follows {name}, which is FP32" for name in origins), None)
        if reason is not None and _is_float(*node.inputs, *node.outputs):
            found[str(node.name)] = reason
            source.update((value, str(node.name)) for value in node.outputs if _is_float(value))
    return found


def _reason(node: ir.Node, plan: PrecisionPlan, model: ir.Model) -> str | None:
    """Return why a node itself needs FP32, None where it does not."""
    name = node.name or ""
    if plan.layers.get(name) is Precision.FP32:
        return plan.reasons.get(name, "the plan says fp32")
    if not is_op(node, node.op_type):
        return f"is the custom op {node.domain}::{node.op_type}, whose types are its own"
    if any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in _attributes(node)):
        return "is control flow: its subgraphs stay FP32"
    if node.op_type == "Cast" and _is_float(*node.outputs) and not _is_float(*node.inputs):
        return "casts integers, and FP16 holds those above 2048 inexactly"
    if node.op_type in WIDE_OPS:
        return WIDE_OPS[node.op_type]
    if node.op_type != "Cast" and not _has_half(node, model):
        return f"ONNX defines {node.op_type} at this opset without FP16"
    return next(filter(None, (_loss(node, v) for v in node.inputs)), None)


def _loss(node: ir.Node, value: ir.Value | None) -> str | None:
    """Return what FP16 would do to a constant input, None where that is harmless."""
    tensor = constant(value)
    if value is None or tensor is None or tensor.dtype is not _SINGLE:
        return None
    array = tensor.numpy()
    array = array[np.isfinite(array)].astype(np.float64)
    largest = float(np.abs(array).max(initial=0.0))
    if largest > np.finfo(np.float16).max:
        return f"{value.name} reaches {largest:.3g}, beyond FP16's 65504"
    if array.size > 1 and largest > _COORDINATE and is_op(node, "Add", "Sub"):
        return f"{value.name} reaches {largest:.4g}: a grid of coordinates"
    lost = float(np.linalg.norm(array.astype(np.float16) - array))
    if lost > _MAX_LOSS * float(np.linalg.norm(array)):
        return f"{value.name} is too small for FP16: values up to {largest:.3g}"
    return None


def _computes_half(node: ir.Node, wide: Wide, model: ir.Model) -> bool:
    inside = node.graph is not model.graph
    return not inside and str(node.name) not in wide and not is_op(node, "Cast")


def _attributes(node: ir.Node) -> Iterator[ir.Attr]:
    return iter(node.attributes.values())


def _is_float(*values: ir.Value | None) -> bool:
    """Return whether one of the values is FP32, or was before the rewrite."""
    return any(_dtype(value) in (_SINGLE, _HALF) for value in values)


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    if value is None:
        return None
    return value.const_value.dtype if value.const_value is not None else value.dtype


def _check_types(model: ir.Model) -> None:
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.type is None and value.uses():
                raise ModelError(
                    f"the type of {value.name!r}, which node {node.name!r} computes, is unknown",
                    expected="a model whose tensors' types ONNX can infer",
                    fix="write value_info for the outputs of custom ops",
                )


def _has_half(node: ir.Node, model: ir.Model) -> bool:
    """Return whether ONNX defines the op for FP16 wherever its float inputs may vary in type."""
    schema = _schema(node.op_type, model.opset_imports.get("", 1))
    return schema is None or all(
        "tensor(float16)" in types or "tensor(float)" not in types
        for index, value in enumerate(node.inputs)
        if _is_float(value) and len(types := _types(schema, index)) > 1
    )


def _only_single(node: ir.Node, index: int, model: ir.Model) -> bool:
    """Return whether ONNX fixes an input to FP32, such as the scales of Resize."""
    schema = _schema(node.op_type, model.opset_imports.get("", 1))
    return schema is not None and _types(schema, index) == {"tensor(float)"}


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


@dataclass
class _Casts:
    """Gives nodes their inputs in the wanted type: one Cast or one converted constant per tensor."""

    graph: ir.Graph
    taken: set[str]
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    halved: dict[ir.Value, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    """Constant -> its readers that want FP16."""

    def feed(self, node: ir.Node, index: int, wanted: ir.DataType) -> None:
        """Make input `index` of `node` have the type `wanted`."""
        value = node.inputs[index]
        assert value is not None  # the caller looked
        if _dtype(value) is wanted:
            return
        if constant(value) is not None and wanted is _HALF:
            self.halved.setdefault(value, []).append((node, index))
        elif self._local(value):
            node.replace_input_with(index, self._cast(value, wanted))

    def finish(self) -> None:
        """Convert the constants, and cast the model's outputs back to FP32."""
        for value, readers in self.halved.items():
            self._convert(value, readers)
        for index, value in enumerate(self.graph.outputs):
            if value.dtype is _HALF:
                self._widen_output(index, value)

    def _local(self, value: ir.Value) -> bool:
        """Return whether the main graph computes `value`; subgraphs stay FP32 throughout."""
        node = value.producer()
        return node is None or node.graph is self.graph

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        if (value, wanted) not in self.made:
            name = unique(f"{value.name}.{'fp16' if wanted is _HALF else 'fp32'}", self.taken)
            self.made[value, wanted] = self._add_cast(value, wanted, name)
        return self.made[value, wanted]

    def _add_cast(self, value: ir.Value, wanted: ir.DataType, name: str) -> ir.Value:
        result = ir.Value(name=name, shape=value.shape, type=ir.TensorType(wanted))
        node = ir.node("Cast", [value], {"to": wanted.value}, outputs=[result], name=f"{name}.Cast")
        producer = value.producer()
        if producer is not None:
            self.graph.insert_after(producer, node)
        elif len(self.graph):
            self.graph.insert_before(self.graph[0], node)
        return result

    def _convert(self, value: ir.Value, readers: list[tuple[ir.Node, int]]) -> None:
        """Turn a constant into FP16: in place, or as a copy where others read it in FP32."""
        tensor = constant(value)
        assert tensor is not None  # only constants are collected
        half = _half(tensor)
        if value.is_initializer() and len(readers) == len(value.uses()):
            half.name, value.const_value, value.dtype = value.name, half, _HALF
            return
        name = unique(f"{value.name}.fp16", self.taken)
        half.name = name
        copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(_HALF), const_value=half)
        self.graph.register_initializer(copy)
        for node, index in readers:
            node.replace_input_with(index, copy)

    def _widen_output(self, index: int, value: ir.Value) -> None:
        """Cast output `index` back to FP32, under the name it had."""
        name = str(value.name)
        value.name = unique(f"{name}.fp16", self.taken)
        self.graph.outputs[index] = self._add_cast(value, _SINGLE, name)


def _half(tensor: ir.TensorProtocol) -> ir.Tensor:
    array: NDArray[np.float16] = tensor.numpy().astype(np.float16)
    return ir.Tensor(array)
