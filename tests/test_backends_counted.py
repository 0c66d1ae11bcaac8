"""Real engines of graphs that nobody here exported: each node is counted and told from others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit import pipeline
from deploykit.backends import BuildOptions, tensorrt_rtx
from deploykit.errors import ModelError
from deploykit.files import onnxfile
from deploykit.graph import cost, expanding
from deploykit.precision import lint
from deploykit.recipes import opened

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploykit.values import LayerPrecision

HERE = tensorrt_rtx.availability()
needs_builder = pytest.mark.skipif(not HERE.builds, reason=HERE.reason)
STEPS, WIDTH, HIDDEN = 8, 64, 32
OPSET = 19


class Graph:
    """Writes quantised convolutions on images[1, 3, 16, 16], and what comes behind them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.random = np.random.default_rng(0)

    def constant(self, value: object) -> str:
        array = np.asarray(value)
        self.weights.append(numpy_helper.from_array(array, f"w{len(self.weights)}"))
        return self.weights[-1].name

    def normal(self, *shape: int) -> str:
        return self.constant((self.random.standard_normal(shape) * 0.1).astype(np.float32))

    def node(self, op: str, inputs: Sequence[str], name: str = "", **attributes: Any) -> str:
        out = f"{op}_{len(self.nodes)}"
        made = helper.make_node(op, inputs, [out], name=name or f"n_{out}", **attributes)
        self.nodes.append(made)
        return out

    def qdq(self, value: str, scales: int = 1) -> str:
        scale = np.full(scales, 0.05, np.float32) if scales > 1 else np.float32(0.05)
        pair = [self.constant(scale), self.constant(np.zeros(np.shape(scale), np.int8))]
        axis: dict[str, Any] = {"axis": 0} if scales > 1 else {}
        quantized = self.node("QuantizeLinear", [value, *pair], **axis)
        return self.node("DequantizeLinear", [quantized, *pair], **axis)

    def conv(self, value: str, channels: int, name: str = "", group: int = 1) -> str:
        weights = self.qdq(self.normal(WIDTH, channels // group, 3, 3), WIDTH)
        bias = self.constant(np.full(WIDTH, 0.1, np.float32))
        window: dict[str, Any] = {"kernel_shape": [3, 3], "pads": [1] * 4, "group": group}
        return self.node("Conv", [self.qdq(value), weights, bias], name, **window)

    def save(self, path: Path, output: str, functions: Sequence[onnx.FunctionProto] = ()) -> Path:
        image = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 16, 16])
        results = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "g", [image], results, self.weights)
        domains = sorted({"", *(node.domain for node in self.nodes)})
        opsets = [helper.make_opsetid(d, 1 if d else OPSET) for d in domains]
        made = helper.make_model(
            graph, opset_imports=opsets, functions=list(functions), ir_version=10
        )
        onnx.save(made, path)
        return path


def build(path: Path) -> tuple[LayerPrecision, ...]:
    options = BuildOptions(sms=("86",))
    return tensorrt_rtx.build(opened.read(path), path.with_suffix(".engine"), options).layers


def multiplying(layers: Sequence[LayerPrecision]) -> dict[str, str]:
    return {layer.name: layer.precision for layer in layers if layer.macs}


@needs_builder
def test_a_convolution_whose_bias_is_a_float_kernel_of_its_own_is_int8(tmp_path: Path) -> None:
    graph = Graph()
    first = graph.node("Relu", [graph.conv("images", 3, "first")])
    layers = build(graph.save(tmp_path / "m.onnx", graph.conv(first, WIDTH, "last", group=2)))
    assert multiplying(layers) == {"first": "int8", "last": "int8"}
    named = [layer for layer in layers if layer.name == "last"]
    assert len(named) > 1, "its bias is added by a kernel that bears its name alone"


@needs_builder
def test_of_two_equal_convolutions_the_engine_has_one_and_both_are_read_back(
    tmp_path: Path,
) -> None:
    graph = Graph()
    weights = graph.normal(16, 3, 3, 3)
    for name in ("one", "two"):  # each with Q/DQ of its own
        inputs = [graph.qdq("images"), graph.qdq(weights, 16)]
        graph.node("Conv", inputs, name, kernel_shape=[3, 3], pads=[1] * 4)
    both = [node.output[0] for node in graph.nodes if node.op_type == "Conv"]
    output = graph.node("Mul", [both[0], graph.node("Sigmoid", both[1:])])
    layers = build(graph.save(tmp_path / "m.onnx", output))
    assert multiplying(layers) == {"one": "int8", "two": "int8"}


NAMES = (
    'say "hi"',
    "say _hi_",
    "back\\slash",
    "two\nlines",
    "a} name={",
    "x + y",
    "é|ü",
    "n" * 5000,
)


@needs_builder
def test_whatever_nodes_are_called_each_is_read_back_under_its_name(tmp_path: Path) -> None:
    graph = Graph()
    value, channels = "images", 3
    for name in NAMES:
        value = graph.node("Relu", [graph.conv(value, channels, name)])
        channels = WIDTH
    path = graph.save(tmp_path / "m.onnx", value)
    assert multiplying(build(path)) == dict.fromkeys(NAMES, "int8")


def block() -> onnx.FunctionProto:
    """A local function with a convolution that the graph quantises."""
    quantize = [
        helper.make_node(
            "Constant", [], ["s"], value=numpy_helper.from_array(np.array(0.05, np.float32))
        ),
        helper.make_node(
            "Constant", [], ["z"], value=numpy_helper.from_array(np.array(0, np.int8))
        ),
        *(
            helper.make_node(op, [source, "s", "z"], [target], name=f"{target}.made")
            for side in "xw"
            for op, source, target in (
                ("QuantizeLinear", side, f"{side}q"),
                ("DequantizeLinear", f"{side}q", f"{side}d"),
            )
        ),
        helper.make_node("Conv", ["xd", "wd"], ["y"], name="inner", kernel_shape=[1, 1]),
    ]
    return helper.make_function(
        "other", "Block", ["x", "w"], ["y"], quantize, [helper.make_opsetid("", OPSET)]
    )


@needs_builder
def test_the_convolutions_of_a_function_are_read_back_for_every_call(tmp_path: Path) -> None:
    graph = Graph()
    value, weights = graph.conv("images", 3, "stem"), graph.normal(WIDTH, WIDTH, 1, 1)
    for _ in range(2):
        value = graph.node("Block", [value, weights], domain="other")
    path = graph.save(tmp_path / "m.onnx", value, [block()])
    assert multiplying(build(path)) == dict.fromkeys(("stem", "inner", "inner_2"), "int8")
    assert {n.name: n.macs for n in build(path) if n.macs}["inner_2"] == 16 * 16 * WIDTH * WIDTH


def recurrent() -> tuple[Graph, str]:
    """A quantised convolution of few MACs, and a recurrence of many."""
    graph = Graph()
    pooled = graph.node(
        "Reshape", [graph.conv("images", 3, "stem"), graph.constant([WIDTH, 1, -1])]
    )
    inputs = [pooled, graph.normal(1, 4 * HIDDEN, 256), graph.normal(1, 4 * HIDDEN, HIDDEN)]
    return graph, graph.node("LSTM", inputs, "recurrence", hidden_size=HIDDEN)


@needs_builder
def test_what_an_lstm_multiplies_is_part_of_the_share(tmp_path: Path) -> None:
    graph, output = recurrent()
    path = graph.save(tmp_path / "m.onnx", output)
    made = pipeline.build(path, tmp_path / "m.engine", "tensorrt_rtx", BuildOptions(sms=("86",)))
    stem, recurrence = 16 * 16 * WIDTH * 27, WIDTH * 4 * HIDDEN * (256 + HIDDEN)
    share = stem / (stem + recurrence)
    assert made.artifact.made_by["precision"]["int8"] == pytest.approx(share)
    assert pipeline.inspect(path).shares["int8"] == pytest.approx(share)


# --- what is counted, without a builder ----------------------------------------------------------


def test_an_einsum_of_dequantised_operands_is_int8_and_counted(tmp_path: Path) -> None:
    graph = Graph()
    rows = graph.node("Reshape", [graph.conv("images", 3, "stem"), graph.constant([1, WIDTH, -1])])
    operands = [graph.qdq(rows), graph.qdq(graph.normal(256, 10))]
    out = graph.node("Einsum", operands, "mix", equation="bsc,co->bso")
    table = lint.precision_table(onnxfile.read_model(graph.save(tmp_path / "m.onnx", out)))
    assert [(n.name, n.precision, n.macs) for n in table[1:]] == [("mix", "int8", WIDTH * 256 * 10)]


def test_a_node_of_a_foreign_domain_is_declared_and_not_taken_for_nothing(tmp_path: Path) -> None:
    graph = Graph()
    out = graph.node("Secret", [graph.conv("images", 3, "stem")], "hidden", domain="other")
    found = pipeline.inspect(graph.save(tmp_path / "m.onnx", out))
    assert found.shares == {"int8": 1.0}
    assert found.remarks == ("hidden (Secret): what other::Secret computes is not known",)


FLOWS = """<ir_version: 10, opset_import: ["" : 19]>
g (float[2, 8] x, bool c) => (float[2, 8] y)
<float[8, 8] w = {0}, int64 five = {5}, bool on = {1}, int64 never = {4611686018427387904}>
{
    [loop] a = Loop (five, on, x) <body = b (int64 i, bool k, float[2, 8] s)
        => (bool k2, float[2, 8] t) { k2 = Identity(k) [inside] t = MatMul(s, w) }>
    [once] d = Loop (never, on, a) <body = b2 (int64 i, bool k, float[2, 8] s)
        => (bool k3, float[2, 8] t2) { k3 = Identity(k) [deep] t2 = MatMul(s, w) }>
    [choose] y = If (c) <
        then_branch = g1 () => (float[2, 8] p) { [small] p = MatMul(x, w) },
        else_branch = g2 () => (float[2, 8] q) { [l1] m = MatMul(x, w) [l2] q = MatMul(m, w) }>
}"""


def test_loops_count_as_often_as_they_run_and_of_an_if_the_costlier_branch() -> None:
    model = onnx.parser.parse_model(FLOWS.replace("{0}", "{" + ", ".join(["1"] * 64) + "}"))
    works = {work.name: (work.macs, work.note) for work in cost.works(ir.from_proto(model))}
    one = 2 * 8 * 8
    assert works["inside"] == (5 * one, "")
    assert works["deep"] == (one, "counted once: how often 'once' runs is not known")
    assert works["l1"] == works["l2"] == (one, "")
    assert works["small"][0] == 0
    assert "the other branch of 'choose'" in works["small"][1]


def doubling(depth: int) -> ir.Model:
    """A model whose functions call one another twice each."""
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("other", 1)]
    functions = [
        helper.make_function(
            "other", "F0", ["x"], ["y"], [helper.make_node("Relu", "x", "y")], opsets
        )
    ]
    for level in range(1, depth):
        calls = [
            helper.make_node(f"F{level - 1}", [a], [b], domain="other")
            for a, b in (("x", "m"), ("m", "y"))
        ]
        functions.append(helper.make_function("other", f"F{level}", ["x"], ["y"], calls, opsets))
    call = helper.make_node(f"F{depth - 1}", ["x"], ["y"], domain="other")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy"]
    graph = helper.make_graph([call], "g", ends[:1], ends[1:])
    return ir.from_proto(
        helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=10)
    )


def test_functions_that_grow_without_end_are_refused_before_they_are_written_out() -> None:
    assert len(expanding.expanded(doubling(4)).graph) == 8
    with pytest.raises(ModelError, match=r"written out the model has 1099511627776 nodes"):
        cost.works(doubling(41))
    model = doubling(2)
    key = ("other", "F0", "")
    next(iter(model.functions[key])).op_type = "F1"
    next(iter(model.functions[key])).domain = "other"
    with pytest.raises(ModelError, match="call one another in a circle"):
        cost.works(model)
