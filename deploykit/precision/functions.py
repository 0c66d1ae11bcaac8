"""What follows a layer before anyone else reads its result: its bias and activation function."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import is_op
from deploykit.precision.placement.weighted import constant

if TYPE_CHECKING:
    from collections.abc import Sequence

    import onnx_ir as ir

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
_GATES = ("Sigmoid", "HardSigmoid")
_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Abs", "Exp", "Sqrt")


def behind(layer: ir.Node) -> tuple[ir.Node, ...]:
    """Return the nodes that only carry a layer's result on, in order: `Add` of a constant, ReLU.

    x * sigmoid(x) counts as one function, with its two nodes. The last one gives the result.
    """
    value = layer.outputs[0]
    found: list[ir.Node] = []
    while not value.is_graph_output():
        readers = [node for node, _ in value.uses()]
        if len(readers) == 1 and _is_function(readers[0], value):
            found += readers
        elif gate := _gate(readers):
            found += gate
        else:
            break
        value = found[-1].outputs[0]
    return tuple(found)


def result(layer: ir.Node) -> ir.Value:
    """Return a layer's result behind its bias and activation function."""
    return (layer, *behind(layer))[-1].outputs[0]


def _is_function(node: ir.Node, value: ir.Value) -> bool:
    """Return whether a node reads `value` and constants alone, as a bias or an activation."""
    others = [each for each in node.inputs if each is not None and each is not value]
    fixed = all(constant(each) is not None for each in others)
    return fixed and len(node.outputs) == 1 and is_op(node, "Add", *_FUNCTIONS)


def _gate(readers: Sequence[ir.Node]) -> tuple[ir.Node, ...]:
    """Return f and * of x * f(x), where they are all that reads x; else nothing."""
    functions = [node for node in readers if is_op(node, *_GATES)]
    products = [node for node in readers if is_op(node, "Mul")]
    if len(readers) != 2 or len(functions) != 1 or len(products) != 1:
        return ()
    output = functions[0].outputs[0]
    alone = len(output.uses()) == 1 and not output.is_graph_output()
    return (functions[0], products[0]) if alone and products[0] in output.consumers() else ()


def is_positive(node: ir.Node) -> bool:
    """Return whether a node's results are at least 0, whatever it reads."""
    if not is_op(node, "Clip"):
        return is_op(node, *_POSITIVE)
    lowest = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    return lowest is not None and bool((lowest.numpy() >= 0).all())
