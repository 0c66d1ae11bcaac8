"""Odd graphs are refused before a library meets them, in a moment and by one message."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.backends import onnxruntime, watching
from deploykit.errors import ModelError
from deploykit.files import onnxfile

if TYPE_CHECKING:
    from pathlib import Path

SECONDS = 10
"""That any refusal may take; a loop that ran would take for ever."""


def model(nodes: list[Any], weights: tuple[Any, ...] = (), **more: Any) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    shape = more.pop("shape", ["n", 3, 8, 8])
    graph = helper.make_graph(
        nodes,
        "g",
        [info("x", TensorProto.FLOAT, shape)],
        [info("y", TensorProto.FLOAT, None)],
        list(weights),
    )
    opsets = more.pop("opset_imports", [helper.make_opsetid("", 19)])
    return helper.make_model(graph, opset_imports=opsets, ir_version=9, **more)


def node(op: str, inputs: str, outputs: str, **attributes: Any) -> onnx.NodeProto:
    attributes.setdefault("name", f"{op}_{outputs}")
    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def whole(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def weight(name: str = "w", dims: tuple[int, ...] = (4, 3, 3, 3), **more: Any) -> TensorProto:
    return TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims, **more)


def nested(depth: int) -> onnx.ModelProto:
    inner = node("Relu", "x", "z", name="leaf")
    for i in range(depth):
        out = helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, None)
        then = helper.make_graph([inner], f"then{i}", [], [out])
        other = helper.make_graph([node("Relu", "x", f"o{i}")], f"else{i}", [], [out])
        other.output[0].name = f"o{i}"
        name = "y" if i == depth - 1 else f"z{i}"
        inner = node("If", "yes", name, then_branch=then, else_branch=other, name=f"if{i}")
    return model([inner], (numpy_helper.from_array(np.array(True), "yes"),))


def tower(levels: int, *, itself: bool = False) -> onnx.ModelProto:
    """Return functions, each of which calls the one before twice."""
    opsets = [helper.make_opsetid("", 19), helper.make_opsetid("f", 1)]
    functions = []
    for i in range(levels):
        below = f"f{i - 1}" if i else "f0" if itself else ""
        calls = [helper.make_node("Relu", ["x"], ["y"])]
        if below:
            calls = [
                helper.make_node(below, ["x"], ["m"], domain="f"),
                helper.make_node(below, ["m"], ["y"], domain="f"),
            ]
        functions.append(helper.make_function("f", f"f{i}", ["x"], ["y"], calls, opsets))
    top = helper.make_node(f"f{levels - 1}", ["x"], ["y"], domain="f", name="top")
    return model([top], functions=functions, opset_imports=opsets)


def loop(more: str, *, rounds: bool) -> onnx.ModelProto:
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node(more, ["i", "far"] if more == "Less" else ["go"], ["again"]),
         node("Relu", "v", "w")],
        "body",
        [info("i", TensorProto.INT64, []), info("go", TensorProto.BOOL, []),
         info("v", TensorProto.FLOAT, None)],
        [info("again", TensorProto.BOOL, []), info("w", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(1 << 60), "far")],
    )  # fmt: skip
    limit = numpy_helper.from_array(np.array(1 << 62), "limit")
    first = ["limit" if rounds else "", "", "x"]
    return model([helper.make_node("Loop", first, ["y"], body=body)], (limit,))


DOUBLED = [node("Relu", "x", "v0")]
DOUBLED += [node("Concat", f"v{i} v{i}", f"v{i + 1}", axis=1) for i in range(60)]

ODD: dict[str, tuple[onnx.ModelProto, str]] = {
    "a circle": (
        model([node("Add", "x b", "a"), node("Relu", "a", "b"), node("Relu", "b", "y")]),
        r"run in a circle: .*Add_a",
    ),
    "a node of itself": (model([node("Add", "x y", "y")]), "run in a circle"),
    "made twice": (model([node("Relu", "x", "y"), node("Abs", "x", "y")]), "'y', which is there"),
    "an input made": (model([node("Relu", "x", "x"), node("Relu", "x", "y")]), "'x', which is"),
    "deep branches": (nested(9), "nested more than 8 deep"),
    "functions that double": (tower(60), "576460752303423488 nodes, functions written out"),
    "a function of itself": (tower(1, itself=True), "'f0' calls itself"),
    "doubling": (model([*DOUBLED, node("Relu", "v60", "y")]), r"makes 'v\d+' of shape"),
    "a huge input": (
        model([node("Relu", "x", "y")], shape=["n", 3, 1 << 20, 1 << 20]),
        "makes 'x'",
    ),
    "a huge range": (
        model(
            [node("Range", "a b c", "r"), node("Cast", "r", "y", to=1)],
            (whole("a", 0), whole("b", 1 << 50), whole("c", 1)),
        ),
        "told|makes",
    ),
    "a huge constant": (model([node("ConstantOfShape", "s", "y")], (whole("s", 1 << 40),)), "told"),
    "a huge expansion": (
        model([node("Expand", "x s", "y")], (whole("s", 1 << 40, 1, 1, 1),)),
        "told",
    ),
    "huge tiles": (
        model([node("Tile", "x s", "y")], (whole("s", 1, 1, 1 << 15, 1 << 15),)),
        "told",
    ),
    "huge padding": (model([node("Pad", "x s", "y")], (whole("s", *[0] * 7, 1 << 40),)), "told"),
    "a weight without data": (
        model([node("Conv", "x w", "y")], (weight(),)),
        "has 0 of 108 values",
    ),
    "a negative weight": (model([node("Conv", "x w", "y")], (weight(dims=(-4, 3)),)), r"\[-4, 3\]"),
    "a huge weight": (model([node("Conv", "x w", "y")], (weight(dims=(1 << 40, 3)),)), "values"),
    "too few inputs": (model([node("Conv", "x", "y")]), "has 1 inputs"),
    "no output": (
        model([helper.make_node("Relu", ["x"], []), node("Relu", "x", "y")]),
        "0 outputs",
    ),
    "text for a number": (
        model([node("Relu", "x", "a"), node("Softmax", "a", "y", axis="one")]),
        "axis of another type",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_graph_is_refused_at_once_by_name(name: str, tmp_path: Path) -> None:
    proto, message = ODD[name]
    path = tmp_path / "odd.onnx"
    path.write_bytes(proto.SerializeToString())
    started = time.perf_counter()
    with pytest.raises(ModelError, match=message):
        onnxfile.read_model(path)
    assert time.perf_counter() - started < SECONDS


def test_nodes_in_another_order_are_brought_into_theirs(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(model([node("Relu", "a", "y"), node("Abs", "x", "a")]).SerializeToString())
    assert [n.op_type for n in onnxfile.read_model(path).graph] == ["Abs", "Relu"]


def test_branches_loops_and_functions_of_a_usual_size_are_read(tmp_path: Path) -> None:
    for proto in (nested(3), tower(6), loop("Identity", rounds=True)):
        path = tmp_path / "m.onnx"
        path.write_bytes(proto.SerializeToString())
        assert len(onnxfile.read_model(path).graph) == 1


@pytest.mark.parametrize(("more", "rounds"), [("Identity", True), ("Less", False)])
def test_a_loop_without_an_end_is_stopped(
    more: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rounds: bool
) -> None:
    monkeypatch.setattr(watching, "PATIENCE", 0.5)
    path = tmp_path / "m.onnx"
    path.write_bytes(loop(more, rounds=rounds).SerializeToString())
    session = onnxruntime.open_session(path)
    with pytest.raises(ModelError, match=r"did not end within 0\.5 s"):
        session.run({"x": np.zeros((1, 3, 8, 8), np.float32)})


def test_data_beside_a_model_is_a_plain_file_wherever_it_is_used(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "data.bin")
    outside = weight(data_location=TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="data.bin")
    constant = node("Constant", "", "w", value=outside)
    constant.input[:] = []
    for proto in (
        model([node("Conv", "x w", "y")], (outside,)),
        model([constant, node("Conv", "x w", "y")]),
    ):
        path = tmp_path / "m.onnx"
        path.write_bytes(proto.SerializeToString())
        with pytest.raises(ModelError, match=r"data\.bin"):
            onnxfile.read_model(path)
