"""The Casts of an FP16 graph: a node's inputs get the type it computes in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit import ops
from deploykit.errors import ModelError
from deploykit.graph.editing import is_op, unique, value_names
from deploykit.precision.float16 import ranges
from deploykit.precision.float16.rules import (
    HALF,
    SINGLE,
    dtype,
    is_float,
    may_be_half,
    only_single,
    wide_nodes,
)
from deploykit.precision.lint.rules import INTEGER_OPS
from deploykit.precision.placement import default_plan
from deploykit.precision.placement.weighted import constant

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

    from deploykit.precision.float16.rules import Wide
    from deploykit.recipes.opened import Opened
    from deploykit.values import PrecisionPlan

_INTEGER = ("DynamicQuantizeLinear", *INTEGER_OPS)
_INDIFFERENT = ("Cast", "Constant", "Shape", "Size")
"""Ops that take any type as it is, and whose output's type is not their input's."""


def cast(model: Opened, reached: Mapping[str, float]) -> tuple[ir.Model, Wide]:
    """Return the FP16 version of a float model, and its nodes that stay in FP32, with the reasons.

    What the model's card marks as FP32 stays so. reached: the largest magnitude of each tensor,
    see `ranges.reach`. Raises: ModelError.
    """
    graph = model.copy()
    if any(is_op(node, "QuantizeLinear", *_INTEGER) for node in graph.graph):
        raise ModelError(
            "the model is quantised, and FP16 scales would change its INT8 weights",
            fix="quantize the float model with --float-type fp16, which casts the rest",
        )
    unfit = ranges.unfit(graph.graph, reached)
    wide = wide_nodes(graph, default_plan(graph, model.card), unfit)
    _rewrite(graph, wide)
    ops.attach(graph)
    return graph, wide


def to_float16(model: ir.Model, plan: PrecisionPlan, unfit: Wide | None = None) -> ir.Model:
    """Return `model`, changed in place: FP16 inside, FP32 where `wide_nodes` says so.

    unfit: nodes whose tensors do not fit into FP16; with the pairs of Q/DQ that they read.

    Names of nodes and tensors stay; a Cast is called after the tensor it casts.

    Raises: ModelError where a tensor has no known type.
    """
    _rewrite(model, wide_nodes(model, plan, ranges.with_int8(model.graph, unfit or {})))
    return model


def _rewrite(model: ir.Model, wide: Wide) -> None:
    _check_types(model)
    casts = _Casts(model.graph, value_names(model.graph))
    half = {value for value in model.graph.outputs if value.dtype is HALF}
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type not in _INDIFFERENT:
            _set_types(node, casts, model, half=_computes_half(node, wide, model))
    casts.finish(half)


def _computes_half(node: ir.Node, wide: Wide, model: ir.Model) -> bool:
    """Return whether a node computes in FP16. A QuantizeLinear takes what is there."""
    if node.graph is not model.graph or str(node.name) in wide:
        return False
    if is_op(node, "QuantizeLinear"):
        return dtype(node.inputs[0]) is HALF
    return is_float(*node.inputs)


def _set_types(node: ir.Node, casts: _Casts, model: ir.Model, *, half: bool) -> None:
    """Give `node` its float inputs in the type it computes in, and its outputs that type."""
    for index, value in enumerate(node.inputs):
        if is_float(value):
            single = not half or only_single(node, index, model)
            casts.feed(node, index, SINGLE if single else HALF)
    for index, value in enumerate(node.outputs):
        if half and value.dtype is SINGLE and may_be_half(node, index, model):
            value.dtype = HALF


def _check_types(model: ir.Model) -> None:
    for node in model.graph:
        for value in node.outputs:
            if value.name and value.type is None and value.uses():
                raise ModelError(
                    f"the type of {value.name!r}, which node {node.name!r} computes, is unknown",
                    expected="a model whose tensors' types ONNX can infer",
                    fix="write value_info for the outputs of custom ops",
                )


@dataclass
class _Casts:
    """Gives nodes their inputs in the wanted type; no tensor is cast twice."""

    graph: ir.Graph
    taken: set[str]
    made: dict[tuple[ir.Value, ir.DataType], ir.Value] = field(default_factory=dict)
    halved: dict[ir.Value, list[tuple[ir.Node, int]]] = field(default_factory=dict)
    """Constant -> its readers that want FP16."""

    def feed(self, node: ir.Node, index: int, wanted: ir.DataType) -> None:
        """Make input `index` of `node` have the type `wanted`."""
        value = node.inputs[index]
        assert value is not None  # the caller looked
        if dtype(value) is wanted:
            return
        if constant(value) is not None and wanted is HALF:
            self.halved.setdefault(value, []).append((node, index))
        elif self._local(value):
            node.replace_input_with(index, self._cast(value, wanted))

    def finish(self, half: Collection[ir.Value]) -> None:
        """Convert the constants, and cast the model's outputs back to FP32.

        half: those that were FP16 before, and stay so.
        """
        for value, readers in self.halved.items():
            self._convert(value, readers)
        for index, value in enumerate(self.graph.outputs):
            if value.dtype is HALF and value not in half:
                self._widen_output(index, value)

    def _local(self, value: ir.Value) -> bool:
        """Return whether the main graph computes `value`; subgraphs stay FP32 throughout."""
        node = value.producer()
        return node is None or node.graph is self.graph

    def _cast(self, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        if (value, wanted) not in self.made:
            name = unique(f"{value.name}.{'fp16' if wanted is HALF else 'fp32'}", self.taken)
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
            half.name, value.const_value, value.dtype = value.name, half, HALF
            return
        name = unique(f"{value.name}.fp16", self.taken)
        half.name = name
        copy = ir.Value(name=name, shape=value.shape, type=ir.TensorType(HALF), const_value=half)
        self.graph.register_initializer(copy)
        for node, index in readers:
            node.replace_input_with(index, copy)

    def _widen_output(self, index: int, value: ir.Value) -> None:
        """Cast output `index` back to FP32, under the name it had."""
        name = str(value.name)
        value.name = unique(f"{name}.fp16", self.taken)
        self.graph.outputs[index] = self._add_cast(value, SINGLE, name)


def _half(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    array: NDArray[np.float16] = tensor.numpy().astype(np.float16)
    return ir.tensor(array)
