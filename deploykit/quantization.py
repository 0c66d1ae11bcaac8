"""Float model, ranges and plan -> a model with Q/DQ, checked before it is accepted.

Symmetric INT8: x is stored as clamp(round_half_even(x / scale), -128, 127), zero-point 0, with
one scale per activation tensor and one per output channel of the weights.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit import acceptance, artifacts, calibration, float16, lint, onnxfile, placement
from deploykit.errors import ModelError, OptionError, ProofError
from deploykit.passes._graph import unique, value_names
from deploykit.placement.rules import constant
from deploykit.values import INT8_LEVELS, Precision, PrecisionPlan, digest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.placement import Activation, Placement, Weight
    from deploykit.values import Artifact, CalibrationTable, Json

MIN_OPSET: Mapping[Precision, int] = {Precision.FP32: 13, Precision.FP16: 19}
"""Float type -> first opset with it as a scale: 13 has scales per channel, 19 has FP16 ones."""
MIN_WEIGHT_SCALE = 2.0**-24
"""Scale of a dead channel, whose weights are all 0: FP16's smallest number, for it must be > 0."""
MIN_SCALE: Mapping[Precision, float] = {Precision.FP32: 2.0**-24, Precision.FP16: 2.0**-14}
"""Smallest scale of an activation; in FP16 its reciprocal must be finite too."""
MAX_HALF = 65504.0
"""Largest FP16 number."""
METADATA_KEY = "deploykit.quantization"


def quantize(
    model: Path,
    table: CalibrationTable,
    plan: PrecisionPlan,
    output: Path,
    *,
    float_type: Precision,
) -> Artifact:
    """Return the artifact of the quantised model: Q/DQ by the rules of placement, FP16 elsewhere.

    With `float_type` FP16 the other nodes compute in FP16, save those that `float16` or the plan
    keeps in FP32. Node and tensor names stay.

    Raises: StaleTableError where `table` was made for another model; InputError where it lacks a
    range; ModelError, OptionError for a model or plan that cannot be quantised; OutputError;
    ProofError where the result is not accepted by ONNX, ONNX Runtime and the lint.
    """
    artifacts.check_writable(output)
    graph = onnxfile.read_model(model)
    calibration.check_fresh(table, model)
    _check_model(graph, float_type)
    placed = placement.place(graph, plan)
    _check_placed(placed, table, float_type)
    insert(graph, placed, table, float_type)
    if float_type is Precision.FP16:
        float16.to_float16(graph, plan)
    summary = _summary(table, plan, placed, float_type)
    graph.metadata_props[METADATA_KEY] = json.dumps(summary, sort_keys=True)
    _check_lint(graph)
    inputs, outputs = onnxfile.interface(graph)
    with artifacts.replacing(output) as temporary:
        onnxfile.write_model(graph, temporary)
        acceptance.accept(temporary, model)
    return artifacts.describe(
        output,
        made_by={"verb": "quantize", **summary},
        parents=(model,),
        inputs=inputs,
        outputs=outputs,
    )


def insert(
    model: ir.Model, placed: Placement, table: CalibrationTable, float_type: Precision
) -> None:
    """Write the Q/DQ of `placed` into `model`; every scale is a number of `float_type`.

    Raises: InputError where the table lacks a range; ModelError for weights that are not finite.
    """
    unified = calibration.unify(table, _observed(placed))
    writer = _Writer(model.graph, float_type)
    for activation in placed.activations:
        threshold = unified.ranges[activation.range_of].threshold
        writer.quantize_activation(activation, activation_scale(threshold, float_type))
    for weight in placed.weights:
        writer.quantize_weight(weight)
    writer.drop_unused()


def activation_scale(threshold: float, float_type: Precision) -> np.float32:
    """Return the step `threshold / 127` as a number of `float_type`, at least `MIN_SCALE`."""
    scale = max(threshold / INT8_LEVELS, MIN_SCALE[float_type])
    return np.float32(np.float16(scale)) if float_type is Precision.FP16 else np.float32(scale)


def weight_scales(
    weights: NDArray[np.float32], axis: int | None, float_type: Precision
) -> NDArray[np.float32]:
    """Return the smallest scale per index of `axis` (None: one) that clips no weight.

    max |w| / 127, rounded up to a number of `float_type`, at least `MIN_WEIGHT_SCALE`.
    """
    others = tuple(i for i in range(weights.ndim) if i != axis) if axis is not None else None
    largest = np.abs(weights).max(axis=others).astype(np.float64)
    exact = np.maximum(largest / INT8_LEVELS, MIN_WEIGHT_SCALE)
    kind = np.float16 if float_type is Precision.FP16 else np.float32
    rounded = exact.astype(kind)
    up = np.nextafter(rounded, kind(np.inf))
    scales: NDArray[np.float32] = np.where(rounded < exact, up, rounded).astype(np.float32)
    return scales


def quantized(
    weights: NDArray[np.float32], scales: NDArray[np.float32], axis: int | None
) -> NDArray[np.int8]:
    """Return round_half_even(weights / scales), -127 to 127."""
    if axis is not None:
        scales = scales.reshape([-1 if i == axis else 1 for i in range(weights.ndim)])
    levels: NDArray[np.int8] = np.rint(weights / scales).clip(-127, 127).astype(np.int8)
    return levels


class _Writer:
    """Adds Q and DQ nodes to a graph."""

    def __init__(self, graph: ir.Graph, float_type: Precision) -> None:
        self._graph = graph
        self._float_type = float_type
        self._taken = value_names(graph)
        self._nodes = {str(node.name): node for node in graph}
        outputs = (value for node in graph for value in node.outputs)
        self._values = {str(value.name): value for value in (*graph.inputs, *outputs)}
        self._weights: dict[tuple[str, int | None], ir.Value] = {}
        self._scales: dict[str, ir.Value] = {}
        self._zero: ir.Value | None = None

    def quantize_activation(self, activation: Activation, scale: np.float32) -> None:
        """Put one Q/DQ pair behind a tensor, and let its readers read that."""
        value = self._values[activation.tensor]
        if self._zero is None:
            self._zero = self._constant("zero_point", np.array(0, np.int8))
        if activation.range_of not in self._scales:
            name = f"{activation.range_of}.scale"
            self._scales[activation.range_of] = self._constant(name, np.array(scale))
        stored = self._node("QuantizeLinear", value, self._scales[activation.range_of], self._zero)
        stored.type = ir.TensorType(ir.DataType.INT8)
        result = self._node(
            "DequantizeLinear", stored, self._scales[activation.range_of], self._zero
        )
        self._place(value, stored, result)
        for name, index in activation.readers:
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
        scales = weight_scales(array, weight.axis, self._float_type)
        levels = quantized(array, scales, weight.axis)
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
        ir.node(op_type, inputs, axis, outputs=[output], name=f"{stem}.{op_type}")
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


def _observed(placed: Placement) -> tuple[tuple[str, ...], ...]:
    """Return the groups of observed tensors, those that are alone included."""
    grouped = {name for group in placed.groups for name in group}
    alone = (name for name in placement.activations(placed) if name not in grouped)
    return (*placed.groups, *((name,) for name in alone))


def _check_model(model: ir.Model, float_type: Precision) -> None:
    if float_type not in MIN_OPSET:
        raise OptionError(f"float type {float_type}", expected="fp16 or fp32")
    opset = model.opset_imports.get("", 0)
    if opset < MIN_OPSET[float_type]:
        raise OptionError(
            f"the model has opset {opset}",
            expected=f"at least {MIN_OPSET[float_type]} for Q/DQ with {float_type} scales",
            fix="export with --opset 19, or quantize with --float-type fp32"
            if float_type is Precision.FP16
            else "export with --opset 17 or higher",
        )
    if any(node.op_type == "QuantizeLinear" for node in model.graph):
        raise ModelError("the model is quantised already", fix="quantise the float model")


def _check_placed(placed: Placement, table: CalibrationTable, float_type: Precision) -> None:
    if not placed.weights:
        kept = "; ".join(f"{name}: {why}" for name, why in list(placed.kept.items())[:3])
        raise ModelError(
            "no layer of the model can be quantised" + (f" ({kept})" if kept else ""),
            expected="at least one Conv, Gemm or MatMul with constant weights",
        )
    for name, found in table.ranges.items():
        reached = max(abs(found.minimum), abs(found.maximum))
        if float_type is Precision.FP16 and reached > MAX_HALF:
            raise ModelError(
                f"{name!r} reaches {reached:.4g} on the calibration images",
                expected=f"at most {MAX_HALF:g}, the largest FP16 number",
                fix="quantize with --float-type fp32",
            )


def _check_lint(model: ir.Model) -> None:
    errors = [finding for finding in lint.lint(model) if finding.severity == "error"]
    if errors:
        first = errors[0]
        raise ProofError(
            f"the lint rejects the quantised graph ({len(errors)} errors): "
            f"{first.node}: {first.message}",
            expected="Q/DQ that TensorRT runs in INT8",
            fix=first.fix,
        )


def _summary(
    table: CalibrationTable, plan: PrecisionPlan, placed: Placement, float_type: Precision
) -> Json:
    """Return what the file says about its own making."""
    return {
        "float_type": float_type.value,
        "observer": table.observer,
        "samples_sha256": table.samples_sha256,
        "table_sha256": digest([json.dumps(table.to_json(), sort_keys=True)]),
        "default": plan.default.value,
        "plan": {name: precision.value for name, precision in sorted(plan.layers.items())},
        "kept_float": dict(sorted(placed.kept.items())),
    }
