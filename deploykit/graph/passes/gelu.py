"""x * (0.5 * (1 + erf(x / sqrt 2))) -> (x * 0.5) * (1 + erf(...)): the GELU that runtimes know.

PyTorch's exporter writes the first form below opset 20; ONNX Runtime has one kernel for the second.
A product by a half is exact, so both round alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph.editing import constant, is_op, per_node, source

if TYPE_CHECKING:
    import onnx_ir as ir

HALF = 0.5


def rewrite(node: ir.Node) -> bool:
    """Return whether `node` was the last product of a GELU in the first form."""
    if not is_op(node, "Mul"):
        return False
    for place in (0, 1):
        x, halved = node.inputs[place], source(node.inputs[1 - place], "Mul")
        if x is None or halved is None:
            continue
        half = next((v for v in halved.inputs if _is(v, HALF)), None)
        if half is None:
            continue
        grown = halved.inputs[1 - halved.inputs.index(half)]
        if grown is not None and _is_error_function(grown, x):
            _swap(node, halved, (x, half, grown))
            return True
    return False


def _is_error_function(grown: ir.Value, x: ir.Value) -> bool:
    """Return whether a value is 1 + erf of a multiple of x."""
    added = source(grown, "Add")
    if added is None or not any(_is(value, 1.0) for value in added.inputs):
        return False
    erf = next((each for each in (source(v, "Erf") for v in added.inputs) if each), None)
    scaled = None if erf is None else source(erf.inputs[0], "Div", "Mul")
    return scaled is not None and x in scaled.inputs


def _is(value: ir.Value | None, number: float) -> bool:
    array = constant(value)
    return array is not None and array.size == 1 and float(array.reshape(-1)[0]) == number


def _swap(node: ir.Node, halved: ir.Node, parts: tuple[ir.Value, ir.Value, ir.Value]) -> None:
    """Let the inner product be of x and a half, the outer one of that and 1 + erf."""
    x, half, grown = parts
    for i, value in enumerate((x, half)):
        halved.replace_input_with(i, value)
    for i, value in enumerate((halved.outputs[0], grown)):
        node.replace_input_with(i, value)


PASS = per_node("gelu", rewrite)
