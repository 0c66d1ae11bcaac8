"""Ops on integers (QOperator form, dynamic quantisation) taken apart: DQ, the float op, Q.

What other tools write so: ONNX Runtime with `QuantFormat.QOperator` or `quantize_dynamic`, and
older exporters. Source: the operators' definitions in ONNX and in ONNX Runtime's contrib ops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import constant, integer, is_op, new_weight, unique, value_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CONTRIB = "com.microsoft"
_DYNAMIC = ("ConvInteger", "MatMulInteger")
_STANDARD = ("QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear", *_DYNAMIC)
_MARKS = ("QLinear", "QGemm", "QAttention", "DynamicQuantize", "MatMulInteger")
"""How ops on integers begin that ONNX Runtime adds."""
_AXES_ARE_INPUTS = 18
"""Opset from which on ReduceMean has its axes as an input."""


@dataclass(frozen=True)
class _Form:
    """Where an op on integers has its inputs."""

    op: str
    """What it is in float."""
    data: tuple[int, ...]
    """Places of tensors; scale and zero point follow each."""
    result: int
    """Place of the result's scale; its zero point follows."""
    bias: int | None = None
    """Place of an int32 tensor in steps of the product of both scales."""
    drop: tuple[str, ...] = ("channels_last", "opset")
    """Attributes that the float op lacks."""


_FORMS: Mapping[str, _Form] = {
    "QLinearConv": _Form("Conv", (0, 3), 6, bias=8),
    "QLinearMatMul": _Form("MatMul", (0, 3), 6),
    "QGemm": _Form("Gemm", (0, 3), 7, bias=6),
    "QLinearAdd": _Form("Add", (0, 3), 6),
    "QLinearMul": _Form("Mul", (0, 3), 6),
    "QLinearSigmoid": _Form("Sigmoid", (0,), 3),
    "QLinearLeakyRelu": _Form("LeakyRelu", (0,), 3),
    "QLinearSoftmax": _Form("Softmax", (0,), 3),
    "QLinearGlobalAveragePool": _Form("GlobalAveragePool", (0,), 3),
    "QLinearAveragePool": _Form("AveragePool", (0,), 3),
    "QLinearReduceMean": _Form("ReduceMean", (0,), 3),
    "QLinearConcat": _Form("Concat", (), 0),
}


def expanded(model: ir.Model) -> int:
    """Return how many ops on integers became float ops between DQ and Q, in place.

    What cannot be taken apart stays: scales that are computed, channels last.
    """
    count = sum(_expanded(model, node) for node in list(model.graph) if node.op_type in _FORMS)
    return count + sum(
        _static(node) for node in list(model.graph) if is_op(node, "DynamicQuantizeLinear")
    )


def left(model: ir.Model) -> list[str]:
    """Return the kinds of ops on integers that a graph has, sorted."""
    own = {node.op_type for node in model.graph if is_op(node, *_STANDARD)}
    kinds = {node.op_type for node in model.graph if node.domain == _CONTRIB}
    return sorted(own | {kind for kind in kinds if kind.startswith(_MARKS)})


def _expanded(model: ir.Model, node: ir.Node) -> bool:
    form = _FORMS[node.op_type]
    data = form.data or tuple(range(2, len(node.inputs), 3))
    if integer(node, "channels_last", 0) or node.outputs[0].name is None:
        return False
    bias = None
    if form.bias is not None and (given := _at(node, form.bias)) is not None:
        bias = _bias(node, given, data)
        if bias is None:
            return False
    taken = value_names(model.graph)
    before: list[ir.Node] = []
    inputs: list[ir.Value | None] = list(node.inputs[: data[0]]) if form.data else []
    for place in data:
        before.append(_dequantized(node, place, taken))
        inputs.append(before[-1].outputs[0])
    inputs += [weight(model.graph, bias, taken)] if bias is not None else []
    attributes = [a for name, a in node.attributes.items() if name not in form.drop]
    if form.op == "ReduceMean" and model.opset_imports.get("", 0) >= _AXES_ARE_INPUTS:
        axes = node.attributes.get("axes")
        attributes = [a for a in attributes if a.name != "axes"]
        if axes is not None:
            inputs.append(weight(model.graph, np.array(axes.as_ints(), np.int64), taken))
    float_op = node_like(form.op, inputs, taken, node, attributes)
    _replace(node, (*before, float_op), form.result, taken)
    return True


def _at(node: ir.Node, place: int) -> ir.Value | None:
    return node.inputs[place] if place < len(node.inputs) else None


def _dequantized(node: ir.Node, place: int, taken: set[str]) -> ir.Node:
    """Return a DQ of the tensor at `place`; scales of several numbers are along an axis."""
    inputs = [_at(node, place + i) for i in range(3)]
    scales, axis = constant(inputs[1]), 0
    if node.op_type == "QGemm":
        axis = 0 if integer(node, "transB", 0) else 1
    elif node.op_type == "QLinearMatMul":
        axis = -1
    along = [ir.AttrInt64("axis", axis)] if scales is not None and scales.size > 1 else []
    return node_like("DequantizeLinear", inputs, taken, node, along)


def _bias(node: ir.Node, given: ir.Value, data: Sequence[int]) -> np.ndarray | None:
    """Return the bias in float32; None where a part of it is computed."""
    parts = [constant(given), *(constant(_at(node, place + 1)) for place in data)]
    if any(part is None for part in parts):
        return None
    levels, *scales = (np.asarray(part) for part in parts)
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    step = np.prod(np.broadcast_arrays(*(s.reshape(-1) for s in scales)), axis=0) * alpha
    found: np.ndarray = (levels * step).astype(np.float32)
    return found


def node_like(
    op: str,
    inputs: Sequence[ir.Value | None],
    taken: set[str],
    like: ir.Node,
    attributes: Sequence[ir.Attr] = (),
) -> ir.Node:
    """Return a new float node, named after another."""
    name = unique(f"{like.name or like.op_type}_{op}", taken)
    made = ir.Node("", op, inputs, attributes, num_outputs=1, name=name)
    made.outputs[0].name = unique(f"{name}_out", taken)
    made.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return made


def weight(graph: ir.Graph, array: np.ndarray, taken: set[str]) -> ir.Value:
    """Return a new weight of a graph."""
    return new_weight(graph, array, "constant", taken)


def _replace(node: ir.Node, made: Sequence[ir.Node], scale: int, taken: set[str]) -> None:
    """Put nodes in the place of one, whose result is quantised where it has a scale for it."""
    graph, output = node.graph, node.outputs[0]
    assert graph is not None  # it is a part of one
    fresh = made[-1].outputs[0]
    fresh.shape = output.shape
    if _at(node, scale) is not None:
        inputs = [fresh, _at(node, scale), _at(node, scale + 1)]
        made = (*made, node_like("QuantizeLinear", inputs, taken, node))
        made[-1].outputs[0].type = output.type
        fresh = made[-1].outputs[0]
        fresh.shape = output.shape
    graph.insert_before(node, made)
    _take_over(output, fresh)
    graph.remove(node, safe=True)


def _take_over(output: ir.Value, fresh: ir.Value) -> None:
    """Let a value be read, and returned by the model, in the place and by the name of another."""
    if output.is_graph_output():
        fresh.name, output.name = output.name, None
    output.replace_all_uses_with(fresh, replace_graph_outputs=True)


def _static(node: ir.Node) -> bool:
    """Return whether the readers of what is quantised as it comes could be made float.

    y = x / s + z, so that a product of y - z with levels is the product of x with them over s,
    which its readers multiply with s: s becomes 1, and y what it was made from.
    """
    x, graph = node.inputs[0], node.graph
    levels, scale, zero = node.outputs
    readers = [reader for reader, _ in levels.uses()]
    if x is None or graph is None or any(value.is_graph_output() for value in node.outputs):
        return False
    if not all(is_op(reader, *_DYNAMIC) and _plain(reader, levels, zero) for reader in readers):
        return False
    if any(reader not in readers for reader, _ in zero.uses()):
        return False
    assert isinstance(graph, ir.Graph)  # the caller gives nodes of the main graph
    taken = value_names(graph)
    for reader in readers:
        whole, shift = constant(reader.inputs[1]), constant(_at(reader, 3))
        assert whole is not None  # `_plain` has looked
        weights = whole.astype(np.float32)
        if shift is not None:
            weights -= _along(reader, shift, whole.ndim)
        inputs = [x, weight(graph, weights, taken)]
        op = reader.op_type.removesuffix("Integer")
        made = node_like(op, inputs, taken, reader, list(reader.attributes.values()))
        made.outputs[0].shape = reader.outputs[0].shape
        graph.insert_before(reader, made)
        _take_over(reader.outputs[0], made.outputs[0])
        graph.remove(reader, safe=True)
    scale.replace_all_uses_with(weight(graph, np.array(1, np.float32), taken))
    graph.remove(node, safe=True)
    return True


def _plain(reader: ir.Node, levels: ir.Value, zero: ir.Value) -> bool:
    """Return whether an op multiplies `levels` with constants, and its result is made float."""
    casts = all(is_op(each, "Cast") for each, _ in reader.outputs[0].uses())
    late = _at(reader, 3) is not None and constant(_at(reader, 3)) is None
    own = reader.inputs[0] is levels and _at(reader, 2) in (zero, None)
    return casts and own and not late and constant(reader.inputs[1]) is not None


def _along(reader: ir.Node, shift: np.ndarray, rank: int) -> np.ndarray:
    """Return zero points in a shape that is subtracted from weights of that rank."""
    if reader.op_type == "ConvInteger" and shift.size > 1:
        shift = shift.reshape(-1, *[1] * (rank - 1))
    return shift.astype(np.float32)
