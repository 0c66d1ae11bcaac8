"""A graph as a torch module computes, operator by operator, what ONNX Runtime computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit.errors import ModelError, OptionError
from deploykit.training import graphs
from deploykit.training.graphs.interpreting import OPS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Graph = Callable[..., ir.Model]

OPSET = 21


def made(op: str, arrays: list[Any], outputs: int = 1, **attributes: Any) -> onnx.ModelProto:
    """Return a model of one node; a tuple is the shape of an input, an array a constant."""
    names = [f"i{k}" if given is not None else "" for k, given in enumerate(arrays)]
    results = [f"o{k}" for k in range(outputs)]
    node = helper.make_node(op, names, results, name="the node", **attributes)
    inputs, weights = [], []
    for name, given in zip(names, arrays, strict=True):
        if isinstance(given, tuple):
            inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, given))
        elif given is not None:
            weights.append(numpy_helper.from_array(np.asarray(given), name))
    values = [helper.make_empty_tensor_value_info(name) for name in results]
    graph = helper.make_graph([node], "one", inputs, values, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def f(*shape: int) -> NDArray[np.float32]:
    """Return weights."""
    rng = np.random.default_rng(len(shape) + sum(shape))
    return rng.normal(0, 0.5, shape).astype(np.float32)


def i(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def s(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32)


X = (2, 4, 9, 7)
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "conv": ("Conv", [X, f(6, 4, 3, 3), f(6)], {"pads": [1, 1, 1, 1]}),
    "conv with uneven pads, dilated, in groups": (
        "Conv",
        [X, f(6, 2, 3, 2)],
        {"pads": [2, 0, 1, 3], "dilations": [2, 1], "strides": [1, 2], "group": 2},
    ),
    "conv padded by itself": (
        "Conv",
        [X, f(6, 4, 4, 3)],
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    ),
    "conv padded below": ("Conv", [X, f(6, 4, 4, 2)], {"auto_pad": "SAME_LOWER"}),
    "conv without pads": ("Conv", [X, f(6, 4, 2, 2)], {"auto_pad": "VALID"}),
    "conv of a line": ("Conv", [(2, 4, 9), f(6, 4, 3)], {"pads": [1, 0]}),
    "conv of a volume": ("Conv", [(1, 2, 5, 4, 6), f(3, 2, 2, 3, 2)], {"pads": [1, 0, 1, 0, 1, 1]}),
    "transposed conv": (
        "ConvTranspose",
        [X, f(4, 3, 3, 3), f(6)],
        {"strides": [2, 3], "pads": [1, 0, 0, 2], "output_padding": [1, 2], "group": 2},
    ),
    "transposed conv with even pads": (
        "ConvTranspose",
        [X, f(4, 3, 4, 4)],
        {"strides": [2, 2], "pads": [1] * 4},
    ),
    "transposed conv to a size": (
        "ConvTranspose",
        [X, f(4, 3, 3, 3)],
        {"strides": [2, 2], "output_shape": [18, 15]},
    ),
    "transposed conv, dilated": ("ConvTranspose", [X, f(4, 3, 3, 3)], {"dilations": [2, 1]}),
    "max pool": ("MaxPool", [X], {"kernel_shape": [5, 5], "pads": [2] * 4}),
    "max pool, ceil": (
        "MaxPool",
        [(1, 2, 10, 7)],
        {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [0, 1, 1, 0], "ceil_mode": 1},
    ),
    "max pool, dilated": (
        "MaxPool",
        [X],
        {"kernel_shape": [2, 3], "dilations": [2, 2], "pads": [1, 1, 0, 1]},
    ),
    "average pool": (
        "AveragePool",
        [X],
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1]},
    ),
    "average pool with pads": (
        "AveragePool",
        [X],
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1, "strides": [2, 2]},
    ),
    "average pool, ceil": (
        "AveragePool",
        [(1, 2, 10, 8)],
        {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1},
    ),
    "global average": ("GlobalAveragePool", [X], {}),
    "global max": ("GlobalMaxPool", [X], {}),
    "gemm": ("Gemm", [(4, 3), f(4, 5), f(5)], {"alpha": 0.5, "beta": 2.0, "transA": 1}),
    "gemm of transposed weights": ("Gemm", [(4, 3), f(5, 3), f(5)], {"transB": 1}),
    "product": ("MatMul", [(2, 3, 4), f(4, 5)], {}),
    "product of two": ("MatMul", [(2, 3, 4), (2, 4, 3)], {}),
    "einsum": ("Einsum", [(2, 3, 4), (2, 5, 4)], {"equation": "bik,bjk->bij"}),
    "softmax": ("Softmax", [X], {"axis": 1}),
    "log softmax": ("LogSoftmax", [X], {"axis": 2}),
    "layer norm": ("LayerNormalization", [X, f(9, 7), f(9, 7)], {"axis": 2, "epsilon": 1e-3}),
    "layer norm of the last": ("LayerNormalization", [(2, 5, 8), f(8)], {}),
    "instance norm": ("InstanceNormalization", [X, f(4), f(4)], {"epsilon": 1e-3}),
    "group norm": ("GroupNormalization", [X, f(4), f(4)], {"num_groups": 2, "epsilon": 1e-3}),
    "batch norm": (
        "BatchNormalization",
        [X, f(4), f(4), f(4), np.abs(f(4)) + s(0.1)],
        {"epsilon": 1e-3},
    ),
    "local norm": ("LRN", [X], {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0}),
    "running sum": ("CumSum", [X, np.array(1)], {}),
    "running sum backwards": ("CumSum", [X, np.array(-1)], {"exclusive": 1, "reverse": 1}),
    "lp norm": ("LpNormalization", [X], {"axis": 1, "p": 1}),
    "mean": ("ReduceMean", [X, i(-1, 1)], {"keepdims": 0}),
    "mean of all": ("ReduceMean", [X], {}),
    "sum of nothing": ("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    "sum": ("ReduceSum", [X, i(2)], {}),
    "max": ("ReduceMax", [X, i(1)], {"keepdims": 0}),
    "min": ("ReduceMin", [X, i(1, 2)], {}),
    "l1": ("ReduceL1", [X, i(1)], {}),
    "l2": ("ReduceL2", [X, i(1, -1)], {"keepdims": 0}),
    "log of sums": ("ReduceLogSumExp", [X, i(3)], {}),
    "prod": ("ReduceProd", [(2, 3, 4), i(0, 2)], {"keepdims": 0}),
    "squares": ("ReduceSumSquare", [X, i(1)], {}),
    "arg max": ("ArgMax", [X], {"axis": 1, "keepdims": 0}),
    "arg min": ("ArgMin", [X], {"axis": -1}),
    "reshape": ("Reshape", [X, i(0, -1, 3)], {}),
    "reshape to one number": ("Reshape", [(1, 1), i()], {}),
    "transpose": ("Transpose", [X], {"perm": [0, 2, 3, 1]}),
    "transpose by default": ("Transpose", [X], {}),
    "slice": ("Slice", [X, i(1, -2), i(-1, 100), i(2, -3), i(2, 1)], {}),
    "slice backwards": ("Slice", [X, i(-1), i(-100), i(2), i(-2)], {}),
    "concat": ("Concat", [X, f(2, 1, 9, 7), X], {"axis": 1}),
    "gather": ("Gather", [X, np.array([[0, -1], [2, 1]])], {"axis": 2}),
    "gather one": ("Gather", [X, np.array(1)], {"axis": -1}),
    "gather elements": ("GatherElements", [(2, 3), np.array([[0, -1, 1]])], {"axis": 0}),
    "expand": ("Expand", [(3, 1), i(2, 1, 4)], {}),
    "tile": ("Tile", [(2, 3), i(2, 1)], {}),
    "unsqueeze": ("Unsqueeze", [(2, 3), i(-1, 0)], {}),
    "squeeze": ("Squeeze", [(1, 2, 1), i(0)], {}),
    "squeeze all": ("Squeeze", [(1, 2, 1)], {}),
    "flatten": ("Flatten", [X], {"axis": 2}),
    "flatten to a row": ("Flatten", [X], {"axis": 0}),
    "shape": ("Shape", [X], {"start": 1, "end": -1}),
    "size": ("Size", [X], {}),
    "pad": ("Pad", [X, i(1, -1, 0, 2), s(0.5).reshape(()), i(2, 1)], {}),
    "pad by mirror": ("Pad", [X, i(0, 0, 2, 3, 0, 0, 1, 4)], {"mode": "reflect"}),
    "pad by edge": ("Pad", [X, i(0, 0, 2, 3, 0, 0, 1, 4)], {"mode": "edge"}),
    "pad by wrap": ("Pad", [X, i(0, 0, 2, 3, 0, 0, 1, 4)], {"mode": "wrap"}),
    "depth to space": ("DepthToSpace", [(1, 8, 2, 3)], {"blocksize": 2}),
    "depth to space by column": ("DepthToSpace", [(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    "space to depth": ("SpaceToDepth", [(1, 2, 4, 6)], {"blocksize": 2}),
    "upper triangle": ("Trilu", [(4, 4), np.array(1)], {}),
    "lower triangle": ("Trilu", [(4, 4)], {"upper": 0}),
    "identity": ("Identity", [X], {}),
    "dropout": ("Dropout", [X], {}),
    "constant of a shape": ("ConstantOfShape", [i(2, 3)], {"value": numpy_helper.from_array(s(3))}),
    "range": ("Range", [np.array(2), np.array(11), np.array(3)], {}),
    "clip": ("Clip", [X, s(-0.5).reshape(()), s(0.75).reshape(())], {}),
    "clip above": ("Clip", [X, None, s(0.75).reshape(())], {}),
    "power": ("Pow", [X, s(2)], {}),
    "where": ("Where", [f(9, 7) > 0, X, s(0.25)], {}),
    "cast": ("Cast", [X], {"to": int(ir.DataType.INT64)}),
    "cast like": ("CastLike", [X, i(1)], {}),
    "prelu": ("PRelu", [X, f(4, 1, 1)], {}),
    "leaky relu": ("LeakyRelu", [X], {"alpha": 0.3}),
    "elu": ("Elu", [X], {"alpha": 0.3}),
    "celu": ("Celu", [X], {"alpha": 0.3}),
    "hard sigmoid": ("HardSigmoid", [X], {"alpha": 0.3, "beta": 0.4}),
    "gelu": ("Gelu", [X], {}),
    "gelu by tanh": ("Gelu", [X], {"approximate": "tanh"}),
    "mod of whole numbers": ("Mod", [i(7, -7), i(4, 4)], {}),
    "mod of numbers": ("Mod", [X, s(0.3)], {"fmod": 1}),
    "whole division": ("Div", [i(7, -7), i(2, 2)], {}),
    **{op: (op, [X, f(9, 1)], {}) for op in ("Add", "Sub", "Mul", "Div", "Max", "Min")},
    **{op: (op, [X, f(9, 1)], {}) for op in ("Greater", "Less", "Equal")},
    **{op: (op, [X, f(9, 1)], {}) for op in ("GreaterOrEqual", "LessOrEqual")},
    **{op: (op, [f(5) > 0, f(1) > 0], {}) for op in ("And", "Or", "Xor")},
    **{
        op: (op, [X], {})
        for op in (
            *("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Mish", "Neg", "Relu"),
            *("Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh"),
        )
    },
    "Not": ("Not", [f(5) > 0], {}),
    "Reciprocal": ("Reciprocal", [X], {}),
    "Sum": ("Sum", [X, X, f(7)], {}),
}
RESIZES: dict[str, dict[str, Any]] = {
    "nearest": {
        "mode": "nearest",
        "coordinate_transformation_mode": "asymmetric",
        "nearest_mode": "floor",
    },
    "nearest by default": {},
    "nearest, ceil": {"coordinate_transformation_mode": "align_corners", "nearest_mode": "ceil"},
    "nearest, up": {"nearest_mode": "round_prefer_ceil"},
    "linear": {"mode": "linear"},
    "linear, torch": {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    "linear, corners": {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    "linear, symmetric": {
        "mode": "linear",
        "coordinate_transformation_mode": "half_pixel_symmetric",
    },
    "linear, asymmetric": {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    "cubic": {"mode": "cubic", "cubic_coeff_a": -0.5},
    "cubic, inside": {"mode": "cubic", "exclude_outside": 1},
}


def check(model: onnx.ModelProto, *, runtime: bool = True, rtol: float = 1e-5) -> None:
    """Compare a model's outputs with those of ONNX Runtime, or of the reference evaluator."""
    rng = np.random.default_rng(0)
    feeds = {
        value.name: rng.normal(
            0, 1, [d.dim_value for d in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
    }
    if runtime:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(model.SerializeToString(), options)
        expected = session.run(None, feeds)
    else:
        expected = ReferenceEvaluator(model).run(None, feeds)
    network = graphs.module(ir.from_proto(model))
    found = network({name: torch.from_numpy(array) for name, array in feeds.items()})
    for (name, tensor), array in zip(found.items(), expected, strict=True):
        assert tensor.detach().numpy().dtype == array.dtype, name
        np.testing.assert_allclose(tensor.detach().numpy(), array, rtol=rtol, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_an_operator_computes_what_onnx_runtime_does(case: str) -> None:
    op, arrays, attributes = CASES[case]
    check(made(op, arrays, **attributes))


@pytest.mark.parametrize("sizes", [(1.5, 2.0), (0.6, 3.0)])
@pytest.mark.parametrize("case", RESIZES)
def test_resize_computes_what_onnx_runtime_does(case: str, sizes: tuple[float, float]) -> None:
    check(made("Resize", [(1, 2, 5, 7), None, s(1, 1, *sizes)], **RESIZES[case]))


def test_resize_to_a_size_along_two_axes() -> None:
    check(made("Resize", [(1, 2, 5, 7), None, None, i(9, 3)], mode="linear", axes=[2, 3]))


def test_parts_of_a_tensor() -> None:
    check(made("Split", [X, i(1, 3)], outputs=2, axis=1))
    check(made("Split", [X], outputs=2, axis=2, num_outputs=2))
    check(made("TopK", [X, i(2)], outputs=2, axis=1, largest=0))


def test_every_operator_has_a_case() -> None:
    seen = {op for op, _, _ in CASES.values()} | {"Resize", "Split", "TopK"}
    assert {*OPS} - seen == {"Log", "Sqrt", "Swish"}


def test_operators_of_positive_numbers() -> None:
    for op in ("Log", "Sqrt"):
        check(made(op, [np.abs(f(3)) + s(0.1)]))


NET = (
    "(float[N,3,8,8] x) => (float[N,4,1,1] y) { [c1] a = Conv<pads=[1,1,1,1]>(x, w1, b1) "
    "[r] b = Relu(a) [c2] c = Conv(b, w2) [add] d = Add(b, c) "
    "[gap] e = GlobalAveragePool(d) [c3] y = Conv(e, ones) }"
)
WEIGHTS: dict[str, Any] = {"w1": (4, 3, 3, 3), "b1": (4,), "w2": (4, 4, 1, 1)}


@pytest.fixture
def net(graph: Graph) -> graphs.GraphModule:
    return graphs.module(graph(NET, **WEIGHTS, ones=np.ones((4, 4, 1, 1), np.float32)))


def test_weights_are_parameters_by_their_own_names(net: graphs.GraphModule) -> None:
    assert [name for name, _ in net.named_parameters()] == ["w1", "b1", "w2"]
    assert "ones" in dict(net.named_buffers()), "whole numbers were set by hand"


def test_the_bias_behind_a_product_learns_and_a_constant_factor_does_not(graph: Graph) -> None:
    text = (
        "(float[N,4] x) => (float[N,4] y) { [m] a = MatMul(x, w) [b] b = Add(bias, a) "
        "[s] y = Mul(b, factor) }"
    )
    net = graphs.module(graph(text, w=(4, 4), bias=(4,), factor=(4,)))
    assert {name for name, _ in net.named_parameters()} == {"w", "bias"}


def test_inner_tensors_are_given_by_name(net: graphs.GraphModule) -> None:
    x = torch.rand(2, 3, 8, 8)
    found = net.tensors(x, names=("b", "c", "x", "w2"))
    assert torch.equal(found["c"], torch.nn.functional.conv2d(found["b"], found["w2"]))
    assert torch.equal(found["x"], x)
    with pytest.raises(OptionError, match=r"unknown tensor 'bb'[\s\S]*did you mean b"):
        net.tensors(x, names=("bb",))


def test_a_function_stands_before_the_readers_that_it_is_for(net: graphs.GraphModule) -> None:
    x = torch.rand(2, 3, 8, 8)
    before = net.tensors(x, names=("b", "c", "d"))
    net.insert("b", [("c2", 0)], lambda tensor: 2 * tensor)
    net.insert("w2", [("c2", 1)], lambda tensor: 3 * tensor)
    after = net.tensors(x, names=("b", "c", "d"))
    torch.testing.assert_close(after["c"], 6 * before["c"])
    torch.testing.assert_close(after["d"], before["b"] + 6 * before["c"])
    with pytest.raises(OptionError, match=r"unknown reader of b 'c3 0'[\s\S]*one of add 0, c2 0"):
        net.insert("b", [("c3", 0)], torch.relu)


def test_a_function_is_called_once_for_all_its_readers(net: graphs.GraphModule) -> None:
    seen = []

    def kept(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor)
        return tensor

    net.insert("b", [("c2", 0), ("add", 0)], kept)
    net(torch.rand(1, 3, 8, 8))
    assert len(seen) == 1


def test_gradients_are_those_of_the_same_network_in_torch(net: graphs.GraphModule) -> None:
    x = torch.rand(2, 3, 8, 8)
    torch.autograd.backward(net(x)["y"].square().sum())
    w1, b1, w2 = (p.detach().clone().requires_grad_() for p in net.parameters())
    b = torch.nn.functional.conv2d(x, w1, b1, padding=1).relu()
    e = (b + torch.nn.functional.conv2d(b, w2)).mean((2, 3), keepdim=True)
    y = torch.nn.functional.conv2d(e, torch.ones(4, 4, 1, 1))
    torch.autograd.backward(y.square().sum())
    for ours, theirs in zip(net.parameters(), (w1, b1, w2), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_a_node_that_is_not_known_is_named(graph: Graph) -> None:
    text = "(float[N,4] x) => (int64[a,b] y) { [odd one] y = NonZero(x) }"
    text = text.replace("odd one", "odd")
    with pytest.raises(ModelError, match=r"'odd' is a NonZero[\s\S]*to fix: "):
        graphs.module(graph(text))


def test_an_old_opset_is_refused(graph: Graph) -> None:
    with pytest.raises(ModelError, match=r"opset 12"):
        graphs.module(graph("(float[N,4] x) => (float[N,4] y) { [r] y = Relu(x) }", opset=12))


def test_wrong_inputs_are_refused(net: graphs.GraphModule) -> None:
    with pytest.raises(OptionError, match=r"unknown input 'z'"):
        net({"z": torch.rand(1)})


def test_an_exported_detector_computes_what_onnx_runtime_does(model: Path) -> None:
    network = graphs.module(ir.load(model))
    x = np.random.default_rng(0).random((2, 3, 64, 64), np.float32)
    (expected,) = ort.InferenceSession(model).run(None, {"images": x})
    found = network(torch.from_numpy(x))["outputs"]
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-4, atol=1e-4)
