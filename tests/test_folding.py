"""What is written or computed at every opset is what that opset means, by ONNX Runtime."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.graph import fusion, opsets
from deploykit.graph.passes import FOREIGN, constants, sequences

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

OPSETS = range(9, 26)
"""ONNX Runtime knows no opset above 25 as released."""
RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((2, 3, 4, 5)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.1)
ENDS = [0, 0, 1, 1, 0, 0, 2, 0]


class Case(NamedTuple):
    """An op on constants."""

    op: str
    inputs: Sequence[Any]
    attributes: dict[str, Any] = {}  # noqa: RUF012 - no case changes it
    first: int = 9
    last: int = 99


def ints(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def floats(*numbers: float) -> NDArray[np.float32]:
    return np.array(numbers, np.float32)


def normal(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


ALIKE = ("Abs", "Exp", "Log", "Sqrt", "Reciprocal", "Floor", "Ceil", "Sigmoid", "Elu", "Selu")
PAIRS = ("Add", "Sub", "Mul", "Div", "Pow", "Max", "Min")
REDUCED = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL2", "ReduceLogSumExp")
LATE = {"axes": [1, 2]}

CASES = (
    *(Case(op, [POSITIVE]) for op in ALIKE),
    *(Case(op, [POSITIVE, X[:, :1]]) for op in PAIRS),
    *(Case(op, [X], a) for op in ("Softmax", "LogSoftmax", "Hardmax") for a in ({}, {"axis": 2})),
    *(Case(op, [POSITIVE], LATE, last=17) for op in REDUCED),
    *(Case(op, [POSITIVE, ints(1, 2)], {"keepdims": 0}, 18) for op in REDUCED),
    Case("ReduceSum", [X], LATE, last=12),
    Case("ReduceSum", [X, ints(1)], {}, 13),
    Case("Squeeze", [X[:1]], {"axes": [0]}, last=12),
    Case("Squeeze", [X[:1], ints(0)], {}, 13),
    Case("Unsqueeze", [X], {"axes": [0, 2]}, last=12),
    Case("Unsqueeze", [X, ints(0, 2)], {}, 13),
    Case("Clip", [X], {"min": -0.5, "max": 0.5}, last=10),
    Case("Clip", [X, np.float32(-0.5)], {}, 11),
    Case("Pad", [X], {"pads": ENDS, "value": 3.0}, last=10),
    Case("Pad", [X, ints(*ENDS), np.float32(3)], {}, 11),
    Case("Pad", [X, ints(1, 2), None, ints(3)], {}, 18),
    Case("Slice", [X], {"starts": [1], "ends": [3], "axes": [2]}, last=9),
    Case("Slice", [X, ints(3), ints(0), ints(2), ints(-1)], {}, 10),
    Case("Upsample", [X, floats(1, 1, 2, 2)], {"mode": "linear"}, last=9),
    Case("Resize", [X, floats(1, 1, 2, 2)], {"mode": "linear"}, 10, 10),
    *(
        Case("Resize", [X, floats(), floats(1, 1, 2, 1.5)], {"mode": "linear", place: way}, 11)
        for place in ("coordinate_transformation_mode",)
        for way in ("half_pixel", "asymmetric", "align_corners")
    ),
    *(Case("LpNormalization", [X], {"p": p, "axis": 1}) for p in (1, 2)),
    Case("BatchNormalization", [X, *(np.abs(normal(3)) for _ in range(4))]),
    Case("InstanceNormalization", [X, normal(3), normal(3)]),
    Case("LayerNormalization", [X, normal(5)], {}, 17),
    Case("GroupNormalization", [normal(2, 4, 3), normal(2), normal(2)], {"num_groups": 2}, 18, 20),
    Case("GroupNormalization", [normal(2, 4, 3), normal(4), normal(4)], {"num_groups": 2}, 21),
    Case("RoiAlign", [X, floats(0, 0, 3, 3).reshape(1, 4), ints(0)], {"output_height": 2}, 10, 21),
    Case("LRN", [X], {"size": 3}),
    Case("Gelu", [X], {}, 20),
    Case("Dropout", [X], {"ratio": 0.9}, last=11),
    Case("Dropout", [X, np.float32(0.9)], {}, 12),
    Case("Reshape", [X, ints(0, -1)]),
    Case("Transpose", [X], {"perm": [1, 0, 3, 2]}),
    Case("Tile", [X, ints(1, 2, 1, 1)]),
    Case("Expand", [X[:1], ints(4, 1, 1, 1)]),
    Case("Gather", [X, ints(0, 1)], {"axis": 1}),
    Case("ScatterND", [X, ints(0, 1).reshape(1, 2), X[:1, 0]], {}, 11),
    Case("Where", [X > 0, X, POSITIVE]),
    Case("Equal", [ints(1, 2), ints(1, 3)]),
    Case("Cast", [X], {"to": TensorProto.INT64}),
    Case("Mod", [ints(5, -5), ints(3, 3)], {}, 10),
    Case("CumSum", [X, np.array(1, np.int64)], {"reverse": 1}, 11),
    Case("OneHot", [ints(1, -1), ints(4), floats(0, 1)], {}, 11),
    Case("Range", [np.int64(1), np.int64(7), np.int64(2)], {}, 11),
    Case("ArgMax", [X], {"axis": 1}),
    Case("MatMul", [X, normal(5, 2)]),
    Case("Gemm", [normal(2, 3), normal(4, 3), normal(4)], {"transB": 1, "alpha": 0.5}),
    Case("Conv", [X, normal(4, 3, 3, 3)], {"pads": [1] * 4}),
    Case("MaxPool", [X], {"kernel_shape": [3, 3], "pads": [1] * 4}),
    Case("AveragePool", [X], {"kernel_shape": [3, 3], "pads": [1] * 4}),
)


def run(model: onnx.ModelProto, feed: dict[str, Any]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return [np.asarray(array) for array in session.run(None, feed)]


def alone(case: Case, opset: int) -> onnx.ModelProto:
    """Return a model of an op on constants, whose result is the model's."""
    names = ["" if array is None else f"c{i}" for i, array in enumerate(case.inputs)]
    weights = [
        numpy_helper.from_array(np.asarray(array), name)
        for array, name in zip(case.inputs, names, strict=True)
        if name
    ]
    nodes = [
        helper.make_node(case.op, names, ["made"], name="node", **case.attributes),
        helper.make_node("Identity", ["made"], ["y"], name="end"),
    ]
    outputs = [helper.make_empty_tensor_value_info("y")]
    graph = helper.make_graph(nodes, "g", [], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("opset", OPSETS)
def test_constants_are_computed_as_the_runtime_computes_them_at_that_opset(opset: int) -> None:
    known = [case for case in CASES if case.first <= opset <= case.last]
    kinds = set[str]()
    for case in known:
        given = alone(case, opset)
        (expected,) = run(given, {})
        model = ir.from_proto(given)
        constants.PASS.apply(model)
        kinds.update(node.op_type for node in model.graph)
        (found,) = run(ir.to_proto(model), {})
        assert found.dtype == expected.dtype, case
        np.testing.assert_allclose(found, expected, 1e-4, 1e-5, err_msg=f"{case.op} {opset}")
    assert "Add" not in kinds
    assert "Reshape" not in kinds
    assert ("Softmax" in kinds) == (opset < 13)


def nodes(opset: int) -> list[onnx.NodeProto]:
    """Return a net that has something for each rewrite which makes nodes, at an opset."""

    def op(kind: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)

    made = [
        op("Conv", "x w", "c", pads=[1] * 4),
        op("BatchNormalization", "c one one one one", "n"),
        op("Relu", "n", "r"),
        op("Sum", "r r n", "s"),
        op("Softmax", "w", "soft", axis=2),
        op("Conv", "s soft", "d", pads=[1] * 4),
        op("Shape", "d", "shape"),
        op("Gather", "shape front", "sizes"),
        op("Concat", "sizes minus", "form", axis=0),
        op("Reshape", "d form", "y"),
    ]
    if opset < 11:
        return made
    split = [
        op("SplitToSequence", "r two", "parts", axis=1),
        op("SequenceAt", "parts last", "part"),
        op("SplitToSequence", "r uneven", "others", axis=-3, keepdims=0),
        op("SequenceAt", "others last", "other"),
        op("SplitToSequence", "r", "rows", axis=1, keepdims=0),
        op("SequenceAt", "rows last", "row"),
        op("SequenceConstruct", "part other", "both"),
        op("ConcatFromSequence", "both", "joined", axis=1),
        op("SequenceConstruct", "row row", "pair"),
        op("ConcatFromSequence", "pair", "stacked", axis=-3, new_axis=1),
    ]
    return [*made[:-1], *split, op("Reshape", "d form", "y")]


@pytest.mark.parametrize("opset", OPSETS)
def test_what_rewrites_make_is_legal_at_the_opset_and_computes_the_same(opset: int) -> None:
    image = TensorProto.FLOAT, [1, 3, 6, 6]
    later = ["joined", "stacked"] if opset >= 11 else []
    weights: dict[str, NDArray[Any]] = {
        "w": normal(3, 3, 3, 3),
        "one": np.ones(3, np.float32),
        "front": ints(0, 1),
        "minus": ints(-1),
        "two": np.array(2, np.int64),
        "uneven": ints(1, 2),
        "last": np.array(-1, np.int64),
    }
    graph = helper.make_graph(
        nodes(opset),
        "g",
        [helper.make_tensor_value_info("x", *image)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", *later)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    imports = [helper.make_opsetid("", opset)]
    given = helper.make_model(graph, opset_imports=imports, ir_version=10)
    model = ir.from_proto(onnx.shape_inference.infer_shapes(given))
    fusion.fuse(model, FOREIGN)
    made = ir.to_proto(model)
    onnx.checker.check_model(made, full_check=True)
    assert not {"Sum", "BatchNormalization"} & {node.op_type for node in model.graph}
    assert not [node.op_type for node in model.graph if "Sequence" in node.op_type]
    feed = {"x": normal(1, 3, 6, 6)}
    for ours, theirs in zip(run(made, feed), run(given, feed), strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, 1e-5, 1e-5)


def test_a_sequence_of_sizes_that_are_not_known_stays() -> None:
    text = """<ir_version: 10, opset_import: ["" : 13]>
    g (float[a, 4] x, int64 at) => (float[b, c] y) {
        parts = SplitToSequence(x, two)
        y = SequenceAt(parts, at)
    }"""
    given = onnx.parser.parse_model(text)
    given.graph.initializer.append(numpy_helper.from_array(np.array(2, np.int64), "two"))
    model = ir.from_proto(given)
    assert not sequences.PASS.apply(model)
    constants.PASS.apply(model)
    feed: dict[str, Any] = {"x": normal(5, 4), "at": np.array(2, np.int64)}
    made = ir.to_proto(model)
    assert [node.op_type for node in made.graph.node] == ["SplitToSequence", "SequenceAt"]
    np.testing.assert_array_equal(run(made, feed)[0], feed["x"][4:])


def test_the_names_of_a_split_sequence_are_free_ones() -> None:
    text = """<ir_version: 10, opset_import: ["" : 13]> g (float[4, 2] x) => (float[b, c] y) {
        [cut] parts = SplitToSequence(x, two)
        y = SequenceAt(parts, one)
    }"""
    given = onnx.parser.parse_model(text)
    weights: dict[str, Any] = {
        "two": np.array(2, np.int64),
        "one": np.array(1, np.int64),
        "cut.split": ints(7),
    }
    given.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in weights.items())
    model = ir.from_proto(given)
    assert sequences.PASS.apply(model)
    names = [*model.graph.initializers, *chain(*([v.name for v in n.outputs] for n in model.graph))]
    assert len(set(names)) == len(names)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("factor", [0.5, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize(("op", "opset"), [("Upsample", 9), ("Resize", 10)])
def test_a_raised_opset_leaves_samples_where_they_were(
    op: str, opset: int, mode: str, factor: float
) -> None:
    if op == "Upsample" and factor < 1:
        factor = 2.5
    text = f"""<ir_version: 7, opset_import: ["" : {opset}]>
    g (float[1, 2, 6, 6] x) => (float[1, 2, h, w] y) {{ y = {op}<mode = "{mode}">(x, scales) }}"""
    given = onnx.parser.parse_model(text)
    given.graph.initializer.append(numpy_helper.from_array(floats(1, 1, factor, factor), "scales"))
    raised = ir.to_proto(opsets.raised(ir.from_proto(given), 19))
    onnx.checker.check_model(raised, full_check=True)
    feed = {"x": normal(1, 2, 6, 6)}
    np.testing.assert_allclose(run(raised, feed)[0], run(given, feed)[0], 1e-6, 1e-6)
