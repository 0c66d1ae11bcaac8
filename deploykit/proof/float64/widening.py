"""A graph with every number in a wider type: float64, or float32 for those of FP16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterable

HALVES = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
_NARROW = (onnx.TensorProto.FLOAT, *HALVES)
_TYPES = ("to", "dtype")
"""Attributes that name an element type."""


@dataclass(frozen=True)
class _Types:
    """From which element types to which."""

    narrow: tuple[int, ...]
    wide: int
    array: type[np.floating[Any]]


_DOUBLE = _Types(_NARROW, onnx.TensorProto.DOUBLE, np.float64)
_SINGLE = _Types(HALVES, onnx.TensorProto.FLOAT, np.float32)


def widened(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with float64 for each narrower float; its functions too."""
    return _widened(proto, _DOUBLE)


def in_single(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a model with float32 for each narrower float; its functions too."""
    return _widened(proto, _SINGLE)


def _widened(proto: onnx.ModelProto, types: _Types) -> onnx.ModelProto:
    wide = onnx.ModelProto()
    wide.CopyFrom(proto)
    _widen_graph(wide.graph, types)
    for function in wide.functions:
        _widen_nodes(function.node, types)
        del function.value_info[:]
    return wide


def _widen_graph(graph: onnx.GraphProto, types: _Types) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor, types)
    _widen_nodes(graph.node, types)
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in types.narrow:
            value.type.tensor_type.elem_type = types.wide


def _widen_nodes(nodes: Iterable[onnx.NodeProto], types: _Types) -> None:
    for node in nodes:
        if node.op_type == "ConstantOfShape" and not node.attribute:
            zero = numpy_helper.from_array(np.zeros(1, types.array))
            node.attribute.append(helper.make_attribute("value", zero))
        for attribute in node.attribute:
            _widen_attribute(attribute, types, constant=node.op_type == "Constant")


def _widen_attribute(attribute: onnx.AttributeProto, types: _Types, *, constant: bool) -> None:
    if attribute.type == onnx.AttributeProto.TENSOR:
        _widen_tensor(attribute.t, types)
    elif attribute.type == onnx.AttributeProto.GRAPH:
        _widen_graph(attribute.g, types)
    elif attribute.name in _TYPES and attribute.i in types.narrow:
        attribute.i = types.wide
    elif constant and attribute.name in ("value_float", "value_floats"):
        value = attribute.f if attribute.name == "value_float" else list(attribute.floats)
        tensor = numpy_helper.from_array(np.array(value, types.array))
        attribute.CopyFrom(helper.make_attribute("value", tensor))


def _widen_tensor(tensor: onnx.TensorProto, types: _Types) -> None:
    if tensor.data_type in types.narrow:
        array = numpy_helper.to_array(tensor).astype(types.array)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
