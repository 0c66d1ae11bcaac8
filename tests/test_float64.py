"""Graphs in float64, against torch in float64 and onnx's own evaluator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional as F  # noqa: N812 - the name the field gives it

from deploykit.errors import BackendError
from deploykit.proof.float64 import Float64Session, widened
from deploykit.proof.float64.kernels import KERNELS

if TYPE_CHECKING:
    from numpy.typing import NDArray

RNG = np.random.default_rng(0)
NEAR: dict[str, Any] = {"rtol": 1e-12, "atol": 1e-12}


def doubles(*shape: int) -> NDArray[np.float64]:
    return RNG.standard_normal(shape)


def tensor(array: NDArray[np.float64]) -> torch.Tensor:
    return torch.from_numpy(array)


def run(proto: onnx.ModelProto, x: NDArray[Any], **options: Any) -> dict[str, NDArray[Any]]:
    return dict(Float64Session(proto).run({"x": x}, **options))


def model(text: str, **weights: NDArray[Any]) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 19]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(w, n) for n, w in weights.items())
    return proto


@pytest.mark.parametrize(
    ("channels", "shape", "options"),
    [
        ((3, 8), (8, 3, 3, 3), {"padding": 1}),
        ((3, 8), (8, 3, 3, 3), {"padding": (2, 0), "stride": 2, "dilation": (1, 2)}),
        ((6, 4), (4, 3, 1, 1), {"groups": 2}),
        ((6, 12), (12, 1, 3, 3), {"groups": 6, "padding": 1, "stride": 2}),
    ],
)
def test_a_convolution_is_torchs(
    channels: tuple[int, int], shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    x, w, b = doubles(2, channels[0], 9, 11), doubles(*shape), doubles(channels[1])

    def pair(name: str, default: int) -> list[int]:
        value = options.get(name, default)
        return list(value) if isinstance(value, tuple) else [value, value]

    attributes = {
        "strides": pair("stride", 1),
        "dilations": pair("dilation", 1),
        "pads": pair("padding", 0) * 2,
        "group": options.get("groups", 1),
    }
    found = KERNELS["Conv"](attributes, x, w, b)
    expected = F.conv2d(tensor(x), tensor(w), tensor(b), **options)
    np.testing.assert_allclose(found, expected.numpy(), **NEAR)


@pytest.mark.parametrize("mode", ["SAME_UPPER", "SAME_LOWER", "VALID"])
def test_padding_by_name_is_onnxs(mode: str) -> None:
    x, w = doubles(1, 3, 8, 7), doubles(4, 3, 3, 2)
    text = "g (double[1,3,8,7] x) => (double[1,4,a,b] y) {"
    proto = model(f'{text} y = Conv<auto_pad="{mode}", strides=[2, 2]>(x, w) }}', w=w)
    expected = onnx.reference.ReferenceEvaluator(proto).run(None, {"x": x})[0]  # type: ignore[index]
    found = KERNELS["Conv"]({"auto_pad": mode.encode(), "strides": [2, 2]}, x, w)
    np.testing.assert_allclose(found, expected, **NEAR)


def test_a_transposed_convolution_is_torchs() -> None:
    x, w, b = doubles(2, 6, 5, 4), doubles(6, 2, 3, 3), doubles(4)
    options: dict[str, Any] = {"stride": 2, "padding": 1, "output_padding": 1, "groups": 2}
    attributes = {"strides": [2, 2], "pads": [1] * 4, "output_padding": [1, 1], "group": 2}
    found = KERNELS["ConvTranspose"](attributes, x, w, b)
    expected = F.conv_transpose2d(tensor(x), tensor(w), tensor(b), **options)
    np.testing.assert_allclose(found, expected.numpy(), **NEAR)


@pytest.mark.parametrize("counted", [0, 1])
def test_an_average_pool_is_torchs(counted: int) -> None:
    x = doubles(2, 3, 8, 8)
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    found = KERNELS["AveragePool"]({**attributes, "count_include_pad": counted}, x)
    expected = F.avg_pool2d(torch.from_numpy(x), 3, 2, 1, count_include_pad=bool(counted))
    np.testing.assert_allclose(found, expected.numpy(), **NEAR)


@pytest.mark.parametrize("factor", [2.0, 1.5, 0.5])
@pytest.mark.parametrize(
    ("mode", "place", "options"),
    [
        ("nearest", "asymmetric", {"mode": "nearest"}),
        ("linear", "half_pixel", {"mode": "bilinear"}),
        ("linear", "align_corners", {"mode": "bilinear", "align_corners": True}),
    ],
)
def test_a_resize_is_torchs(mode: str, place: str, options: dict[str, Any], factor: float) -> None:
    x = doubles(1, 2, 6, 8)
    attributes = {"mode": mode, "coordinate_transformation_mode": place, "nearest_mode": "floor"}
    found = KERNELS["Resize"](attributes, x, None, np.array([1, 1, factor, factor], np.float32))
    expected = F.interpolate(torch.from_numpy(x), scale_factor=factor, **options)
    np.testing.assert_allclose(found, expected.numpy(), **NEAR)


def test_suppression_keeps_what_onnxs_evaluator_keeps() -> None:
    corner = RNG.uniform(0, 50, (2, 30, 2))
    boxes = np.concatenate([corner, corner + RNG.uniform(5, 30, (2, 30, 2))], 2)
    scores = RNG.random((2, 3, 30))
    text = (
        "g (float[2,30,4] b, float[2,3,30] s) => (int64[n,3] y) "
        "{ y = NonMaxSuppression(b, s, m, i, t) }"
    )
    limits = {
        "m": np.array([5]),
        "i": np.array([0.3], np.float32),
        "t": np.array([0.2], np.float32),
    }
    evaluator = onnx.reference.ReferenceEvaluator(model(text, **limits))
    narrow = {"b": boxes.astype(np.float32), "s": scores.astype(np.float32)}
    expected = evaluator.run(None, narrow)
    found = KERNELS["NonMaxSuppression"]({}, boxes, scores, *limits.values())
    np.testing.assert_array_equal(found, expected[0])  # type: ignore[index]


GRAPH = """
g (float[N,3,16,16] x) => (float[N,8] y, int64[N] k) {
    a = Conv<pads=[1,1,1,1]>(x, w)
    b = BatchNormalization(a, gamma, beta, mean, var)
    c = Sigmoid(b)
    half = Constant<value_float = 0.1>()
    d = Mul(c, half)
    e = GlobalAveragePool(d)
    y = Flatten(e)
    k = ArgMax<axis=1, keepdims=0>(y)
}
"""


def weights() -> dict[str, NDArray[np.float32]]:
    shapes = {"w": (8, 3, 3, 3), "gamma": (8,), "beta": (8,), "mean": (8,), "var": (8,)}
    found = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return {**found, "var": np.abs(found["var"]) + np.float32(0.1)}


def test_a_graph_runs_in_float64_and_keeps_integers() -> None:
    given = weights()
    x = RNG.random((2, 3, 16, 16), np.float32)
    found = run(model(GRAPH, **given), x)
    w, gamma, beta, mean, var = (
        torch.from_numpy(given[n]).double() for n in ("w", "gamma", "beta", "mean", "var")
    )
    a = F.conv2d(torch.from_numpy(x).double(), w, padding=1)
    b = F.batch_norm(a, mean, var, gamma, beta, eps=float(np.float32(1e-5)))
    y = (torch.sigmoid(b) * float(np.float32(0.1))).mean((2, 3))
    assert found["y"].dtype == np.float64
    np.testing.assert_allclose(found["y"], y.numpy(), **NEAR)
    np.testing.assert_array_equal(found["k"], y.argmax(1).numpy())


def test_a_watch_sees_every_tensor_and_may_change_it() -> None:
    seen: dict[str, float] = {}

    def watch(name: str, array: NDArray[Any]) -> NDArray[Any]:
        seen[name] = float(np.abs(array).max())
        return array * 0 if name == "d" else array

    found = run(model(GRAPH, **weights()), np.ones((1, 3, 16, 16), np.float32), watch=watch)
    assert {"x", "a", "b", "c", "d", "e", "y"} <= set(seen)
    assert not found["y"].any()


def test_subgraphs_and_functions_run_too() -> None:
    text = """
    g (float[N,4] x) => (float[N,4] y) {
        p = ReduceSum<keepdims=0>(x)
        q = Greater(p, zero)
        r = If(q) <
            then_branch = yes () => (float[N,4] t) { t = Mul(x, two) },
            else_branch = no () => (float[N,4] e) { e = Neg(x) }
        >
        y = local.Twice(r)
    }
    <domain: "local", opset_import: ["" : 19]> Twice (a) => (b) { b = Add(a, a) }
    """
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 19, "local" : 1]> {text}'
    )
    for name, value in (("zero", 0), ("two", 2)):
        proto.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_allclose(run(proto, x)["y"], x * 4)


def test_a_node_that_nothing_computes_is_named() -> None:
    proto = model("g (float[N,4] x) => (float[N,4] y) { [odd] y = foreign.Thing(x) }")
    with pytest.raises(BackendError, match=r"'odd' \(Thing\) does not run in float64"):
        Float64Session(proto).run({"x": np.ones((1, 4), np.float32)})


def test_widening_leaves_the_model_itself_alone() -> None:
    proto = model(GRAPH, **weights())
    before = proto.SerializeToString(deterministic=True)
    wide = widened(proto)
    assert proto.SerializeToString(deterministic=True) == before
    assert {t.data_type for t in wide.graph.initializer} == {onnx.TensorProto.DOUBLE}


@pytest.mark.parametrize("op", ["HardSigmoid", "HardSwish", "Selu"])
def test_hard_activations_are_torchs(op: str) -> None:
    x = np.random.default_rng(3).standard_normal((4, 5)) * 4
    theirs = {"HardSigmoid": F.hardsigmoid, "HardSwish": F.hardswish, "Selu": F.selu}[op](
        torch.from_numpy(x)
    )
    given = {"alpha": float(np.float32(1 / 6))} if op == "HardSigmoid" else {}
    np.testing.assert_allclose(KERNELS[op](given, x), theirs.numpy(), rtol=1e-15, atol=1e-15)


def test_normalisation_of_channels_is_torchs() -> None:
    x = doubles(2, 7, 3, 4) * 255
    text = "g (double[2, 7, 3, 4] x) => (double y) {{ y = LRN<size = {0}, alpha = 0.5>(x) }}"
    for size in (3, 5):
        # onnx's reference takes the number of images for that of channels
        expected = F.local_response_norm(tensor(x), size, alpha=0.5).numpy()
        np.testing.assert_allclose(run(model(text.format(size)), x)["y"], expected, **NEAR)


@pytest.mark.parametrize("op", ["GlobalLpPool", "MeanVarianceNormalization"])
def test_norms_of_channels_are_numpys(op: str) -> None:
    x = doubles(2, 7, 3, 4)
    off = x - x.mean((0, 2, 3), keepdims=True)
    expected = {
        "GlobalLpPool": np.sqrt((x**2).sum((2, 3), keepdims=True)),
        "MeanVarianceNormalization": off / x.std((0, 2, 3), keepdims=True),
    }
    found = run(model(f"g (double[2, 7, 3, 4] x) => (double y) {{ y = {op}(x) }}"), x)["y"]
    np.testing.assert_allclose(found, expected[op], 1e-8)


def test_what_onnxs_evaluator_computes_otherwise_is_refused() -> None:
    text = """<ir_version: 8, opset_import: ["" : 11]> g (double[2, 3, 4] x) => (double y) {
        [last] y = Hardmax(x)
    }"""
    with pytest.raises(BackendError, match=r"'last'.*computes it otherwise"):
        run(onnx.parser.parse_model(text), doubles(2, 3, 4))
