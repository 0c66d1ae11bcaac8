"""A float graph in which each layer stands twice: as it is, and computed from INT8 alone.

The second copy reads the tensors that the float layer reads, rounded to INT8, and the rounded
weights; nothing behind it reads what it gives. So one run over the images tells of every layer what
INT8 does to its result while everything else is float. Compared is the result behind the layer's
activation function, and only sums leave the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx_ir as ir

from deploykit.graph.editing import is_op
from deploykit.precision.appending import Appended
from deploykit.precision.placement.rules import constant
from deploykit.precision.probing import Stored
from deploykit.precision.quality import readers
from deploykit.precision.quantization.writing import rounded_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.precision.placement import Placement
    from deploykit.values import CalibrationTable

_FUNCTIONS = (
    "Clip",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Mish",
    "PRelu",
    "Relu",
    "Sigmoid",
    "Softplus",
    "Swish",
    "Tanh",
)
"""Ops that a layer's result passes through before anyone else reads it."""
_GATES = ("Sigmoid", "HardSigmoid")
_CHANNELS_FIRST = ("Conv", "ConvTranspose")


class Names(NamedTuple):
    """The outputs that tell of one layer; each is float32[images, channels], or of channels."""

    error: str
    """Energy of what INT8 changes, per channel: the sum of squares."""
    signal: str
    """Energy of the float result."""
    changed: str
    """Energy of the result from INT8."""
    size: str
    """int64: how many values the result has."""


@dataclass(frozen=True)
class Doubled:
    """A graph with every layer twice."""

    model: ir.Model
    layers: Mapping[str, Names]
    """Node name -> its outputs, in the graph's order."""


def doubled(model: ir.Model, placed: Placement, table: CalibrationTable) -> Doubled:
    """Return `model`, which is changed in place, with each INT8 layer of `placed` twice.

    Raises: InputError where the table lacks a range; ModelError for weights that are not finite.
    """
    graph = model.graph
    values = {str(v.name): v for v in graph.inputs}
    values |= {str(v.name): v for node in graph for v in node.outputs}
    weights = {weight.node: rounded_weights(graph, weight) for weight in placed.weights}
    reads: dict[str, dict[int, Stored]] = {}
    for (name, index), read in readers(placed, table).items():
        reads.setdefault(name, {})[index] = read
    add, stored, found = Appended(graph, "twice"), dict[Stored, ir.Value](), {}
    layers = [node for node in graph if node.name in weights or _multiplies(node, reads)]
    for node in layers:
        name = str(node.name)
        inputs = list(node.inputs)
        for index, read in reads.get(name, {}).items():
            if read not in stored:
                stored[read] = add.stored(values[read.tensor], read.step)
            inputs[index] = stored[read]
        if name in weights:
            inputs[1] = add.constant(f"{name}.weights", weights[name])
        first, second = _behind(add, node, add.again(node, inputs))
        found[name] = _sums(add, node, first, second)
    return Doubled(model, found)


def _multiplies(node: ir.Node, reads: Mapping[str, Mapping[int, Stored]]) -> bool:
    """Return whether a node is a product of two tensors in INT8."""
    return is_op(node, "MatMul", "Gemm") and len(reads.get(str(node.name), ())) > 1


def _behind(add: Appended, node: ir.Node, twin: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return a layer's result and its twin behind the bias and the activation function."""
    value = node.outputs[0]
    while not value.is_graph_output():
        users = [user for user, _ in value.uses() if not str(user.name).startswith("twice.")]
        if len(users) == 1 and _is_function(users[0], value):
            (user,) = users
            inputs = [twin if each is value else each for each in user.inputs]
            value, twin = user.outputs[0], add.again(user, inputs)
            continue
        gate = _gate(users)
        if gate is None:
            break
        sigmoid, product = gate
        opened = add.again(sigmoid, [twin, *sigmoid.inputs[1:]])
        twin = add.again(product, [twin, opened])
        value = product.outputs[0]
    return value, twin


def _is_function(node: ir.Node, value: ir.Value) -> bool:
    """Return whether a node reads `value` and constants alone, as a bias or an activation."""
    others = [each for each in node.inputs if each is not None and each is not value]
    fixed = all(constant(each) is not None for each in others)
    return fixed and len(node.outputs) == 1 and is_op(node, "Add", *_FUNCTIONS)


def _gate(users: list[ir.Node]) -> tuple[ir.Node, ir.Node] | None:
    """Return f and * of x * f(x), where they are all that reads x."""
    functions = [node for node in users if is_op(node, *_GATES)]
    products = [node for node in users if is_op(node, "Mul")]
    if len(users) != 2 or len(functions) != 1 or len(products) != 1:
        return None
    (function,), (product,) = functions, products
    read = function.outputs[0].uses()
    alone = len(read) == 1 and not function.outputs[0].is_graph_output()
    return (function, product) if alone and product in function.outputs[0].consumers() else None


def _sums(add: Appended, node: ir.Node, value: ir.Value, twin: ir.Value) -> Names:
    """Return outputs with the energies per channel: sums over more lose digits in float32."""
    rank = None if value.shape is None else len(value.shape)
    if is_op(node, *_CHANNELS_FIRST):
        axes = list(range(2, 4 if rank is None else rank))
    else:
        axes = list(range(-2, -(rank or 2), -1)) or [0]  # the channels are last
    over = add.constant(f"axes {axes}", np.array(axes, np.int64))
    error = add.node("Sub", twin, value)
    size = add.node("Size", value, dtype=ir.DataType.INT64)
    energies = [
        add.answer(add.node("ReduceSumSquare", each, over, keepdims=0), rank=2)
        for each in (error, value, twin)
    ]
    return Names(energies[0], energies[1], energies[2], add.answer(size))
