"""A graph in another precision must be the same graph, node by node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.errors import ProofError
from deploykit.precision import float16
from deploykit.proof import structure
from deploykit.values import Precision, PrecisionPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    Graph = Callable[..., ir.Model]

CONV = "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>"
TEXT = (
    "(float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,8] z) { "
    f"[c] a = {CONV}(x, w, b) [s] s = Sub(a, x) [e] e = Exp(s) [d] y = {CONV}(e, v) "
    "[n] z = Neg(a) }"
)
WEIGHTS: dict[str, Any] = {"w": (4, 4, 3, 3), "b": (4,), "v": (4, 4, 3, 3)}


@pytest.fixture
def pair(graph: Graph) -> tuple[ir.Model, ir.Model]:
    """A model, and itself in FP16."""
    model = graph(TEXT, **WEIGHTS)
    return model, float16.to_float16(
        ir.from_proto(ir.to_proto(model)), PrecisionPlan(Precision.INT8)
    )


def node(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def test_the_model_in_fp16_is_the_model(pair: tuple[ir.Model, ir.Model]) -> None:
    model, half = pair
    assert {n.op_type for n in half.graph} > {n.op_type for n in model.graph}
    structure.check(half, model)


def swapped_inputs(half: ir.Model) -> None:
    found = node(half, "s")
    first, second = found.inputs
    found.replace_input_with(0, second)
    found.replace_input_with(1, first)


def dropped_bias(half: ir.Model) -> None:
    node(half, "c").replace_input_with(2, None)


def one_bias(half: ir.Model) -> None:
    value = node(half, "c").inputs[2]
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[1] = 0
    value.const_value = ir.tensor(array, name=value.name)


def exchanged_weights(half: ir.Model) -> None:
    first, second = node(half, "c"), node(half, "d")
    a, b = first.inputs[1], second.inputs[1]
    first.replace_input_with(1, b)
    second.replace_input_with(1, a)


def other_padding(half: ir.Model) -> None:
    node(half, "c").attributes["pads"] = ir.AttrInt64s("pads", [0, 0, 2, 2])


def other_source(half: ir.Model) -> None:
    node(half, "n").replace_input_with(0, node(half, "c").inputs[0])


def another_op(half: ir.Model) -> None:
    node(half, "n").op_type = "Abs"


def exchanged_outputs(half: ir.Model) -> None:
    outputs = half.graph.outputs
    outputs[0], outputs[1] = outputs[1], outputs[0]


def another_node(half: ir.Model) -> None:
    source = node(half, "n").inputs[0]
    assert source is not None
    half.graph.append(ir.node("Relu", [source], name="more"))


def a_node_less(half: ir.Model) -> None:
    found = node(half, "e")
    source = found.inputs[0]
    assert source is not None
    found.outputs[0].replace_all_uses_with(source)
    half.graph.remove(found, safe=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (swapped_inputs, r"input 0 of node 's' \(Sub\) is another one"),
        (dropped_bias, r"input 2 of node 'c' \(Conv\) is another one"),
        (one_bias, r"input 2 of node 'c' \(Conv\) is another one"),
        (exchanged_weights, r"input 1 of node 'c' \(Conv\) is another one"),
        (other_padding, r"node 'c' \(Conv\) has other attributes"),
        (other_source, r"input 0 of node 'n' \(Neg\) is another one"),
        (another_op, r"'n' \(Abs\) is where node 'n' was"),
        (exchanged_outputs, "output 'y' is another tensor"),
        (another_node, r"node 'more' \(Relu\) was added"),
        (a_node_less, r"'d' \(Conv\) is where node 'e' was"),
    ],
)
def test_what_is_another_graph_is_named(
    pair: tuple[ir.Model, ir.Model], damage: Callable[[ir.Model], None], message: str
) -> None:
    model, half = pair
    damage(half)
    with pytest.raises(ProofError, match=message):
        structure.check(half, model)


@pytest.mark.parametrize(("level", "right"), [(0, True), (1, False)])
def test_weights_in_int8_are_within_half_a_step(graph: Graph, level: int, *, right: bool) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 4, 1, 1)).astype(np.float32)
    steps = (np.abs(weights).max((1, 2, 3)) / 127).astype(np.float32)
    levels = np.rint(weights / steps.reshape(-1, 1, 1, 1)).astype(np.int8)
    levels[2, 1] += np.int8(level if levels[2, 1] < 0 else -level)
    head = "(float[N,4,8,8] x) => (float[N,4,8,8] y)"
    model = graph(f"{head} {{ [c] y = Conv(x, w) }}", w=weights)
    body = "[q] w = DequantizeLinear<axis=0>(i, s, z) [c] y = Conv(x, w)"
    int8 = graph(f"{head} {{ {body} }}", i=levels, s=steps, z=np.zeros(4, np.int8))
    if right:
        structure.check(int8, model)
        return
    with pytest.raises(ProofError, match=r"input 1 of node 'c' \(Conv\)"):
        structure.check(int8, model)
