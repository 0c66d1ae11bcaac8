from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from deploykit.files import onnxfile
from deploykit.precision import lint
from deploykit.precision.lint.rules import RULES
from deploykit.values import LayerPrecision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir
    from numpy.typing import NDArray

    Graph = Callable[..., ir.Model]

HEAD = "(float[1,16,8,8] x) => (float[1,c,h,w] y)"
CONV = "Conv<kernel_shape=[1,1]>"
QDQ_X = "[q] xq = QuantizeLinear(x, s, z) [d] xd = DequantizeLinear(xq, s, z) "
DQ_W = "[dw] wd = DequantizeLinear<axis=0>(w, sw, zw) "
GOOD: dict[str, Any] = {
    "s": np.float32(0.1),
    "s2": np.float32(0.2),
    "z": np.int8(0),
    "w": np.ones((16, 16, 1, 1), np.int8),
    "sw": np.full(16, 0.1, np.float32),
    "zw": np.zeros(16, np.int8),
    "wf": np.ones((16, 16, 1, 1), np.float32),
}


def found(
    graph: Graph, body: str, opset: int = 19, sm: int | None = None, **weights: Any
) -> list[tuple[str, str, str]]:
    model = graph(f"{HEAD} {{ {body} }}", opset, **{**GOOD, **weights})
    return [(f.severity, f.rule, f.node) for f in lint.lint(model, target_sm=sm)]


def table(graph: Graph, body: str, **weights: Any) -> dict[str, str]:
    model = graph(f"{HEAD} {{ {body} }}", **{**GOOD, **weights})
    return {layer.name: layer.precision for layer in lint.precision_table(model)}


def test_a_good_graph_has_no_findings(graph: Graph) -> None:
    body = f"{QDQ_X} {DQ_W} [c] y = {CONV}(xd, wd)"
    assert found(graph, body) == []
    assert table(graph, body) == {"c": "int8"}


# rule -> a graph with that fault, its severity and node, and whether the layer is INT8 all the same
FAULTS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "zero-point": (f"{QDQ_X} {DQ_W} [c] y = {CONV}(xd, wd)", {"z": np.int8(3)}, "error", "q"),
    "unsigned": (f"{QDQ_X} {DQ_W} [c] y = {CONV}(xd, wd)", {"z": np.uint8(0)}, "warning", "q"),
    "scale": (f"{QDQ_X} {DQ_W} [c] y = {CONV}(xd, wd)", {"s": np.float32(0)}, "error", "q"),
    "int32-bias": (
        f"{QDQ_X} {DQ_W} [db] b = DequantizeLinear(b8, s) [c] y = {CONV}(xd, wd, b)",
        {"b8": np.zeros(16, np.int32)},
        "error",
        "db",
    ),
    "quantized-op": (
        (
            "[q] xq = QuantizeLinear(x, s, z) [c] yq = QLinearConv(xq, s, z, w, s, z, s, z) "
            "[d] y = DequantizeLinear(yq, s, z)"
        ),
        {},
        "error",
        "c",
    ),
    "per-channel-activation": (
        (
            "[q] xq = QuantizeLinear<axis=1>(x, sw, zw) "
            f"[d] xd = DequantizeLinear<axis=1>(xq, sw, zw) {DQ_W} [c] y = {CONV}(xd, wd)"
        ),
        {},
        "error",
        "q",
    ),
    "weight-axis": (
        f"{QDQ_X} [dw] wd = DequantizeLinear<axis=1>(w, sw, zw) [c] y = {CONV}(xd, wd)",
        {},
        "error",
        "c",
    ),
    "float-weights": (f"{QDQ_X} [c] y = {CONV}(xd, wf)", {}, "error", "c"),
    "float-input": (f"{DQ_W} [c] y = {CONV}(x, wd)", {}, "error", "c"),
    "resize-unclosed": (
        f'{QDQ_X} {DQ_W} [up] u = Resize<mode="nearest">(xd, , two) [c] y = {CONV}(u, wd)',
        {"two": np.array([1, 1, 2, 2], np.float32)},
        "error",
        "up",
    ),
    "kernel-shape": (f"{QDQ_X} {DQ_W} [c] y = Conv(xd, wd)", {}, "error", "c"),
    "split-fusion": (
        (
            f"{QDQ_X} {DQ_W} [c] a = {CONV}(xd, wd) [q2] aq = QuantizeLinear(a, s, z) "
            "[d2] ad = DequantizeLinear(aq, s, z) [r] y = Relu(ad)"
        ),
        {},
        "warning",
        "r",
    ),
    "concat-scales": (
        (
            f"{QDQ_X} [q2] bq = QuantizeLinear(x, s2, z) [d2] bd = DequantizeLinear(bq, s2, z) "
            "[k] y = Concat<axis=1>(xd, bd)"
        ),
        {},
        "warning",
        "k",
    ),
    "moved-scales": (
        (
            f"{QDQ_X} [p] a = MaxPool<kernel_shape=[1,1]>(xd) [q2] bq = QuantizeLinear(a, s2, z) "
            "[d2] y = DequantizeLinear(bq, s2, z)"
        ),
        {},
        "warning",
        "p",
    ),
    "float-skip": (
        f"{QDQ_X} {DQ_W} [c] a = {CONV}(xd, wd) [add] y = Add(a, x)",
        {},
        "warning",
        "add",
    ),
    "float-copy": (
        f"{QDQ_X} {DQ_W} [c] a = {CONV}(xd, wd) [m] b = Mul(x, s) [add] y = Add(a, b)",
        {},
        "info",
        "q",
    ),
    "group-channels": (
        f"{QDQ_X} {DQ_W} [c] y = Conv<group=16, kernel_shape=[1,1]>(xd, wd)",
        {"w": np.ones((16, 1, 1, 1), np.int8)},
        "info",
        "c",
    ),
    "transposed": (
        f"{QDQ_X} {DQ_W} [c] y = ConvTranspose<kernel_shape=[1,1]>(xd, wd)",
        {},
        "warning",
        "c",
    ),
    "few-channels": (
        f"{QDQ_X} {DQ_W} [c] y = {CONV}(xd, wd)",
        {"w": np.ones((8, 16, 1, 1), np.int8), "sw": np.ones(8, "f4"), "zw": np.zeros(8, "i1")},
        "info",
        "c",
    ),
    "scale-type": (
        (
            "[h] xh = Cast<to=10>(x) [q] xq = QuantizeLinear(xh, s, z) "
            "[d] y = DequantizeLinear(xq, s, z)"
        ),
        {},
        "error",
        "q",
    ),
}


@pytest.mark.parametrize("rule", sorted(FAULTS))
def test_each_fault_is_found_at_its_node(graph: Graph, rule: str) -> None:
    body, weights, severity, node = FAULTS[rule]
    findings = found(graph, body, **weights)
    assert (severity, rule, node) in findings
    consequences = {"resize-unclosed": {"float-input"}}.get(rule, set())
    assert {name for _, name, _ in findings} == {rule, *consequences}


SILENT = ("per-channel-activation", "weight-axis", "float-weights", "float-input", "zero-point")


@pytest.mark.parametrize("rule", [*SILENT, "resize-unclosed", "transposed"])
def test_a_layer_that_falls_back_is_float_in_the_precision_table(graph: Graph, rule: str) -> None:
    body, weights, _, _ = FAULTS[rule]
    assert table(graph, body, **weights) == {"c": "fp32"}


@pytest.mark.parametrize("rule", ["group-channels", "few-channels", "kernel-shape"])
def test_a_fault_that_only_costs_time_leaves_the_layer_int8(graph: Graph, rule: str) -> None:
    body, weights, _, _ = FAULTS[rule]
    assert table(graph, body, **weights) == {"c": "int8"}


@pytest.mark.parametrize(
    ("opset", "rule", "weights"),
    [
        (17, "fp16-scale-opset", {"s": np.float16(0.1)}),
        (12, "axis-opset", {}),
    ],
)
def test_what_an_old_opset_lacks_is_found(
    graph: Graph, opset: int, rule: str, weights: dict[str, Any]
) -> None:
    findings = found(graph, f"{QDQ_X} {DQ_W} [c] y = {CONV}(xd, wd)", opset, **weights)
    assert ("error", rule) in {(severity, name) for severity, name, _ in findings}


@pytest.mark.parametrize(("sm", "refused"), [(70, True), (75, False), (86, False)])
def test_int8_for_a_gpu_without_its_tensor_cores_is_an_error(
    graph: Graph, sm: int, *, refused: bool
) -> None:
    findings = found(graph, f"{QDQ_X} {DQ_W} [c] y = {CONV}(xd, wd)", sm=sm)
    assert (("error", "no-int8-cores", "q") in findings) == refused


def test_a_scale_computed_at_run_time_is_an_error(graph: Graph) -> None:
    body = f"[m] s9 = ReduceMax<keepdims=0>(x) [q] xq = QuantizeLinear(x, s9, z) {DQ_W} "
    body += f"[d] xd = DequantizeLinear(xq, s9, z) [c] y = {CONV}(xd, wd)"
    assert ("error", "scale", "q") in found(graph, body)
    assert table(graph, body) == {"c": "fp32"}


def test_a_concat_that_is_half_int8_is_found(graph: Graph) -> None:
    body = f"{QDQ_X} [r] b = Relu(x) [r2] a = Sigmoid(b) [k] y = Concat<axis=1>(xd, a)"
    assert ("warning", "concat-scales", "k") in found(graph, body)


def test_int8_passes_a_pool_and_a_concat_of_equal_scales_without_a_closing_q(graph: Graph) -> None:
    body = (
        f"{QDQ_X} {DQ_W} [p] a = MaxPool<kernel_shape=[1,1]>(xd) "
        f"[k] b = Concat<axis=1>(a, xd) [c] y = {CONV}(b, wd)"
    )
    wide = np.ones((16, 32, 1, 1), np.int8)
    assert found(graph, body, w=wide) == []
    assert table(graph, body, w=wide) == {"c": "int8"}


def test_weights_written_as_q_and_dq_of_a_float_constant_are_int8(graph: Graph) -> None:
    body = (
        f"{QDQ_X} [qw] wq = QuantizeLinear<axis=0>(wf, sw, zw) "
        f"[dw] wd = DequantizeLinear<axis=0>(wq, sw, zw) [c] y = {CONV}(xd, wd)"
    )
    assert found(graph, body) == []
    assert table(graph, body) == {"c": "int8"}


@pytest.mark.parametrize(
    ("op", "shape", "axis", "int8"),
    [
        ("Gemm<transB=1>", (32, 64), 0, True),
        ("Gemm<transB=1>", (32, 64), 1, False),
        ("Gemm", (64, 32), 1, True),
        ("MatMul", (64, 32), -1, True),
        ("MatMul", (64, 32), 0, False),
    ],
)
def test_products_want_their_scales_along_the_output_features(
    graph: Graph, op: str, shape: tuple[int, int], axis: int, *, int8: bool
) -> None:
    body = (
        "[q] xq = QuantizeLinear(x, s, z) [d] xd = DequantizeLinear(xq, s, z) "
        f"[dw] wd = DequantizeLinear<axis={axis}>(w, sw) [l] y = {op}(xd, wd)"
    )
    weights = {"w": np.ones(shape, np.int8), "sw": np.ones(shape[axis], np.float32)}
    model = graph(f"(float[8,64] x) => (float[8,32] y) {{ {body} }}", **{**GOOD, **weights})
    assert [layer.precision for layer in lint.precision_table(model)] == [
        "int8" if int8 else "fp32"
    ]
    assert [f.rule for f in lint.lint(model)] == ([] if int8 else ["weight-axis"])


def test_every_finding_says_what_to_do_and_the_gravest_comes_first(graph: Graph) -> None:
    body = (
        f"{QDQ_X} [c] a = {CONV}(xd, wf) [q2] aq = QuantizeLinear(a, s, z) "
        "[d2] ad = DequantizeLinear(aq, s, z) [r] b = Relu(ad) [m] m = Mul(x, s) "
        "[add] y = Add(b, m)"
    )
    model = graph(f"{HEAD} {{ {body} }}", **GOOD)
    findings = lint.lint(model)
    assert [f.severity for f in findings] == ["error", "warning", "info"]
    assert all(f.message and f.fix for f in findings)


def test_rules_have_ids_of_their_own() -> None:
    ids = [rule.id for rule in RULES]
    assert len(ids) == len(set(ids))
    elsewhere = {"plugin-namespace", "branches", "dynamic-result", "roi-align", "roi-pool"}
    assert {*FAULTS, *elsewhere, "axis-opset", "fp16-scale-opset", "no-int8-cores"} == set(ids)


def test_the_share_of_int8_is_weighted_by_multiply_accumulates(graph: Graph) -> None:
    body = f"{QDQ_X} {DQ_W} [c] a = {CONV}(xd, wd) [r] b = Relu(a) [h] y = {CONV}(b, v)"
    model = graph(f"{HEAD} {{ {body} }}", **GOOD, v=np.ones((4, 16, 1, 1), np.float32))
    layers = lint.precision_table(model)
    assert layers == (
        LayerPrecision("c", "Conv", "int8", 16 * 16 * 64),
        LayerPrecision("h", "Conv", "fp32", 4 * 16 * 64),
    )
    assert lint.int8_share(layers) == 0.8
    assert lint.int8_share(()) == 0.0


class _Zeros(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    def __init__(self) -> None:
        self._feeds = iter(
            [{"x": np.random.default_rng(0).normal(size=(1, 16, 8, 8)).astype("f4")}]
        )

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._feeds, None)


def test_a_file_from_onnxruntimes_own_quantiser_shows_its_known_faults(
    graph: Graph, tmp_path: Path
) -> None:
    body = f"[c1] a = {CONV}(x, wf, b) [r] r = Relu(a) [c2] y = {CONV}(r, wf)"
    model = graph(f"{HEAD} {{ {body} }}", **GOOD, b=np.ones(16, np.float32))
    path, out = tmp_path / "m.onnx", tmp_path / "q.onnx"
    onnxfile.write_model(model, path)
    quantize_static(
        path,
        out,
        _Zeros(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    rules = {f.rule for f in lint.lint(onnxfile.read_model(out)) if f.severity == "error"}
    assert {"zero-point", "int32-bias"} <= rules


@pytest.mark.parametrize(
    ("scaled", "precision"),
    [
        ("[m] t = Mul(xd, half)", "int8"),
        ("[m] t = Mul(half, xd)", "int8"),
        ("[h] n = Size(xd) [f] k = Cast<to=1>(n) [r] v = Sqrt(k) [m] t = Div(xd, v)", "int8"),
        ("[m] t = Mul(xd, row)", "fp32"),
        ("[a] v = ReduceMax<keepdims=0>(xd) [m] t = Mul(xd, v)", "fp32"),
    ],
)
def test_int8_passes_a_product_with_one_number_that_no_image_changes(
    graph: Graph, scaled: str, precision: str
) -> None:
    found = table(
        graph,
        f"{QDQ_X} {DQ_W} {scaled} [c] y = {CONV}(t, wd)",
        half=np.float32(0.5),
        one=np.int64(1),
        row=np.full((1, 16, 1, 1), 0.5, np.float32),
    )
    assert found["c"] == precision
