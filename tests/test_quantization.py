from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx.reference import ReferenceEvaluator

from deploykit import backends
from deploykit.backends import BuildOptions
from deploykit.errors import (
    DeployError,
    InputError,
    ModelError,
    OptionError,
    OutputError,
    ProofError,
    StaleTableError,
)
from deploykit.files import artifacts, onnxfile
from deploykit.pipeline.made import written
from deploykit.precision import lint, placement, quantization
from deploykit.precision.lint.graph import runs_int8
from deploykit.precision.placement.rules import PASS_THROUGH
from deploykit.precision.quantization.arithmetic import (
    MIN_SCALE,
    activation_scale,
    quantized,
    weight_scales,
)
from deploykit.proof import acceptance
from deploykit.recipes import opened
from deploykit.values import (
    DEAD_STEP,
    Artifact,
    CalibrationTable,
    Precision,
    PrecisionPlan,
    Range,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Graph = Callable[..., ir.Model]

INT8 = PrecisionPlan(Precision.INT8)
FP16, FP32 = Precision.FP16, Precision.FP32
CONV = "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>"
W = (16, 16, 3, 3)
HEAD = "(float[N,16,8,8] x) => (float[N,c,h,w] y)"
TWO = f"{HEAD} {{ [c1] a = {CONV}(x, w1, b1) [r1] b = Relu(a) [c2] y = {CONV}(b, w2) }}"
# One of everything that placement knows: residual, SiLU, concat, pool, nearest resize, upsampling
# by ConvTranspose, a strided convolution and a small head.
ZOO = (
    "(float[N,3,16,16] x) => (float[N,4,16,16] y) { "
    f"[stem] s0 = {CONV}(x, w0, b0) [sig] s1 = Sigmoid(s0) [silu] s2 = Mul(s0, s1) "
    f"[c1] t0 = {CONV}(s2, w1) [r1] t1 = Relu(t0) [c2] t2 = {CONV}(t1, w2) "
    "[scale] t3 = Mul(s2, alpha) [add] t4 = Add(t2, t3) [r2] t5 = Relu(t4) "
    "[down] d0 = Conv<kernel_shape=[3,3], pads=[1,1,1,1], strides=[2,2]>(t5, w3) "
    "[r3] d1 = Relu(d0) [pool] d2 = MaxPool<kernel_shape=[5,5], pads=[2,2,2,2]>(d1) "
    "[cat1] d3 = Concat<axis=1>(d1, d2) [c3] d4 = Conv<kernel_shape=[1,1]>(d3, w4) "
    '[r4] d5 = Relu(d4) [up1] u1 = Resize<mode="nearest">(d5, , twice) '
    "[up2] u2 = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(d5, w5) "
    "[cat2] u3 = Concat<axis=1>(u1, u2, t5) [c4] u4 = Conv<kernel_shape=[1,1]>(u3, w6) "
    "[r5] u5 = Relu(u4) [head] y = Conv<kernel_shape=[1,1]>(u5, w7) }"
)
ZOO_WEIGHTS: dict[str, Any] = {
    "w0": (16, 3, 3, 3),
    "b0": (16,),
    "w1": W,
    "w2": W,
    "w3": (32, 16, 3, 3),
    "w4": (32, 64, 1, 1),
    "w5": (32, 32, 2, 2),
    "w6": (16, 80, 1, 1),
    "w7": (4, 16, 1, 1),
    "alpha": np.float32(0.7),
    "twice": np.array([1, 1, 2, 2], np.float32),
}


MEETING = (
    "(float[N,16,8,8] x) => (float[N,c,h,w] y, float[N,c,h,w] z) { "
    f"[c1] a0 = {CONV}(x, w1) [r1] a = Relu(a0) [c2] b0 = {CONV}(x, w3) [m] b = Mul(b0, k) "
    f"[cat] t = Concat<axis=1>(a, b) [c3] y = {CONV}(t, w2) [c4] z = {CONV}(a, w1) }}"
)
MEETING_WEIGHTS = {"w1": W, "w3": W, "w2": (16, 32, 3, 3), "k": np.float32(200)}
ATTENTION = (
    "(float[N,16,16] x) => (float[N,16,48] y) { "
    "[qkv] a = MatMul(x, w1) [bias] b = Add(a, b1) [part] q, k, v = Split<axis=2>(b, thirds) "
    "[scale] s = Mul(q, k1) [turn] kt = Transpose<perm=[0,2,1]>(k) [qk] c = MatMul(s, kt) "
    "[soft] p = Softmax(c) [pv] o = MatMul(p, v) [out] y = MatMul(o, w2) }"
)
ATTENTION_WEIGHTS: dict[str, Any] = {
    "w1": (16, 48),
    "b1": (48,),
    "w2": (16, 48),
    "k1": np.float32(0.25),
    "thirds": np.array([16, 16, 16], np.int64),
}
BRANCHES = (
    "(float[N,16,8,8] x) => (float[N,c,h,w] y) { "
    f"[c1] a0 = {CONV}(x, w1) [r1] a = Relu(a0) "
    "[pool] p = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>(a) "
    f"[c2] b = {CONV}(p, w1) [turn] c = ConvTranspose<kernel_shape=[1,1]>(p, w3) "
    "[cat] y = Concat<axis=1>(b, c) }"
)
BRANCHES_WEIGHTS = {"w1": W, "w3": (16, 16, 1, 1)}


def saved(model: ir.Model, path: Path) -> Path:
    onnxfile.write_model(model, path)
    return path


EXACT = pytest.mark.skipif(
    ort.__version__.startswith("1.23"),
    reason="ONNX Runtime 1.23, the last for Python 3.10, rounds Q/DQ with FP16 scales wrongly",
)


def run(model: Path | bytes, x: NDArray[Any], *names: str) -> list[NDArray[Any]]:
    session = ort.InferenceSession(str(model) if not isinstance(model, bytes) else model)
    return [np.asarray(out) for out in session.run(list(names) or None, {"x": x})]


def table_of(path: Path, x: NDArray[Any], plan: PrecisionPlan = INT8) -> CalibrationTable:
    """Return the ranges of what placement wants, measured on one batch."""
    model = onnxfile.read_model(path)
    names = placement.activations(placement.place(model, plan))
    values = {value.name: value for node in model.graph for value in node.outputs}
    inner = [name for name in names if name != "x"]
    model.graph.outputs.extend(values[n] for n in inner if not values[n].is_graph_output())
    for value in values.values():
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
    found = dict(zip(inner, run(ir.to_proto(model).SerializeToString(), x, *inner), strict=False))
    found["x"] = x
    ranges = {
        name: Range(float(np.abs(a).max()), float(a.min()), float(a.max()))
        for name, a in found.items()
    }
    return CalibrationTable(artifacts.sha256(path), "minmax", ("a",), "0" * 64, ranges)


def quantize(
    path: Path, table: CalibrationTable, plan: PrecisionPlan, out: Path, *, float_type: Precision
) -> Artifact:
    subject = opened.read(path)
    graph, said = quantization.quantize(subject, table, plan, float_type=float_type)
    candidate = opened.made(graph, out)
    acceptance.accept(candidate, subject)
    return written(candidate, subject.origin(), said)


def images(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def fake_quantized(x: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.fake_quantize_per_tensor_affine(x, scale, 0, -128, 127)


@pytest.fixture
def two(graph: Graph, tmp_path: Path) -> Path:
    return saved(graph(TWO, w1=W, w2=W, b1=(16,)), tmp_path / "float.onnx")


def test_the_quantised_file_computes_what_pytorchs_fake_quantisation_computes(
    two: Path, tmp_path: Path
) -> None:
    x = images(2, 16, 8, 8)
    table = table_of(two, x)
    out = tmp_path / "int8.onnx"
    quantize(two, table, INT8, out, float_type=FP32)
    weights = {
        name: torch.from_numpy(value.const_value.numpy().copy())
        for name, value in onnxfile.read_model(two).graph.initializers.items()
        if value.const_value is not None
    }

    def layer(x: torch.Tensor, tensor: str, name: str, bias: torch.Tensor | None) -> torch.Tensor:
        w = weights[name]
        scales = w.abs().amax((1, 2, 3)) / 127
        zeros = torch.zeros(len(scales), dtype=torch.int32)
        w = torch.fake_quantize_per_channel_affine(w, scales, zeros, 0, -127, 127)
        x = fake_quantized(x, table.ranges[tensor].scale)
        return torch.nn.functional.conv2d(x, w, bias, padding=1)

    hidden = layer(torch.from_numpy(x), "x", "w1", weights["b1"]).relu()
    expected = layer(hidden, "b", "w2", None).numpy()
    (found,) = run(out, x)
    # A sum that lies next to a rounding boundary may fall to the other side.
    assert np.quantile(np.abs(found - expected), 0.98) < 1e-5
    assert np.abs(found - expected).max() < 3 * table.ranges["b"].scale


def test_weights_are_int8_the_bias_is_float_and_names_stay(two: Path, tmp_path: Path) -> None:
    out = tmp_path / "int8.onnx"
    artifact = quantize(two, table_of(two, images(1, 16, 8, 8)), INT8, out, float_type=FP16)
    model, before = onnxfile.read_model(out), onnxfile.read_model(two)
    kinds = {name: value.dtype for name, value in model.graph.initializers.items()}
    assert kinds["w1.int8"] is ir.DataType.INT8
    assert kinds["b1"] is ir.DataType.FLOAT16
    assert "w1" not in kinds
    new = [node.name for node in model.graph]
    assert [name for name in new if name in {n.name for n in before.graph}] == ["c1", "r1", "c2"]
    assert {"x.QuantizeLinear", "x.DequantizeLinear", "w1.DequantizeLinear"} <= set(new)
    assert str(artifact.inputs[0]) == "x: float32[N, 16, 8, 8]"
    assert artifact.outputs[0].name == "y"
    assert artifact.outputs[0].dtype == "float32"
    assert artifacts.read(out).parents == {"float.onnx": artifacts.sha256(two)}
    assert out.stat().st_size < two.stat().st_size


def test_the_file_says_how_it_was_made_and_keeps_what_it_said(graph: Graph, tmp_path: Path) -> None:
    model = graph(TWO, w1=W, w2=W, b1=(16,))
    model.metadata_props["deploykit"] = "untouched"
    path = saved(model, tmp_path / "float.onnx")
    plan = PrecisionPlan(Precision.INT8, {"c2": FP16}, {"c2": "sensitive"})
    table = table_of(path, images(1, 16, 8, 8))
    out = tmp_path / "int8.onnx"
    artifact = quantize(path, table, plan, out, float_type=FP16)
    said = onnxfile.read_model(out).metadata_props
    assert said["deploykit"] == "untouched"
    made = json.loads(said[quantization.METADATA_KEY])
    assert made["plan"] == {"c2": "fp16"}
    assert made["kept_float"] == {"c2": "sensitive"}
    assert made["observer"] == "minmax"
    assert len(made["table_sha256"]) == 64
    assert artifact.made_by["float_type"] == "fp16"


@pytest.mark.parametrize("float_type", [pytest.param(FP16, marks=EXACT), FP32])
def test_every_kind_of_layer_is_quantised_lints_clean_and_stays_close(
    graph: Graph, tmp_path: Path, float_type: Precision
) -> None:
    path = saved(graph(ZOO, **ZOO_WEIGHTS), tmp_path / "zoo.onnx")
    x = images(2, 3, 16, 16)
    out = tmp_path / "zoo.int8.onnx"
    quantize(path, table_of(path, x), INT8, out, float_type=float_type)
    model = onnxfile.read_model(out)
    assert {f.rule for f in lint.lint(model)} <= {"float-copy"}  # ConvTranspose reads float
    table = {layer.name: layer.precision for layer in lint.precision_table(model)}
    assert {name for name, kind in table.items() if kind != "int8"} == {"up2", "head"}
    assert table["up2"] == float_type.value
    (found,), (expected,) = run(out, x), run(path, x)
    noise = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert noise < 0.05


@pytest.mark.parametrize(
    ("body", "weights", "shape"),
    [
        (ZOO, ZOO_WEIGHTS, (1, 3, 16, 16)),
        (MEETING, MEETING_WEIGHTS, (1, 16, 8, 8)),
        (BRANCHES, BRANCHES_WEIGHTS, (1, 16, 8, 8)),
        (ATTENTION, ATTENTION_WEIGHTS, (1, 16, 16)),
        (
            ATTENTION.replace("[qk]", "[qk_int8]").replace("[pv]", "[pv_int8]"),
            ATTENTION_WEIGHTS,
            (1, 16, 16),
        ),
    ],
    ids=["one of everything", "two steps", "float readers", "attention", "INT8 attention"],
)
def test_the_real_builder_runs_in_int8_what_the_lint_says_it_will(
    graph: Graph, tmp_path: Path, body: str, weights: dict[str, Any], shape: tuple[int, ...]
) -> None:
    backend = backends.load("tensorrt_rtx")
    available = backend.availability()
    if not available.builds:
        pytest.skip(available.reason)
    path = saved(graph(body, **weights), tmp_path / "zoo.onnx")
    out = tmp_path / "zoo.int8.onnx"
    named = [name for name in ("qk_int8", "pv_int8") if name in body]
    plan = PrecisionPlan(Precision.INT8, dict.fromkeys(named, Precision.INT8))
    quantize(path, table_of(path, images(*shape), plan), plan, out, float_type=FP16)
    shapes = (shape,) * 3
    built = backend.build(
        opened.read(out), tmp_path / "zoo.engine", BuildOptions(sms=("86",), shapes={"x": shapes})
    )
    wanted = {layer.name: layer for layer in lint.precision_table(onnxfile.read_model(out))}
    found = {layer.name: layer for layer in built.layers if layer.name in wanted}
    if {layer.precision for layer in found.values()} == {"unknown"}:
        pytest.skip("this version of TensorRT-RTX does not tell its layers' precision")
    assert {n: layer.precision for n, layer in found.items()} == {
        n: layer.precision for n, layer in wanted.items()
    }


def scales_of(path: Path) -> dict[str, float]:
    """Return the step of every QuantizeLinear, by its name without that suffix."""
    found = {}
    for node in onnxfile.read_model(path).graph:
        if node.op_type == "QuantizeLinear" and node.inputs[1] is not None:
            tensor = node.inputs[1].const_value
            assert tensor is not None
            found[str(node.name).replace(".QuantizeLinear", "")] = float(tensor.numpy())
    return found


def test_tensors_that_meet_share_the_largest_scale(graph: Graph, tmp_path: Path) -> None:
    path = saved(graph(ZOO, **ZOO_WEIGHTS), tmp_path / "zoo.onnx")
    table = table_of(path, images(1, 3, 16, 16))
    out = tmp_path / "zoo.int8.onnx"
    quantize(path, table, INT8, out, float_type=FP32)
    scales = scales_of(out)
    group = ["d5", "t5", "u2", "u1", "u3"]
    assert len({scales[name] for name in group}) == 1
    largest = max(table.ranges[name].threshold for name in ("d5", "t5", "u2"))
    assert scales["d5"] == pytest.approx(largest / 127)
    assert scales["d1"] == scales["d2"] == scales["d3"] != scales["d5"]


def test_a_dead_channel_has_a_positive_scale_and_gives_its_bias(
    graph: Graph, tmp_path: Path
) -> None:
    weights = np.zeros(W, np.float32)
    weights[1:] = 0.1
    path = saved(graph(TWO, w1=weights, w2=np.zeros(W, np.float32), b1=(16,)), tmp_path / "m.onnx")
    out = tmp_path / "int8.onnx"
    quantize(path, table_of(path, images(1, 16, 8, 8)), INT8, out, float_type=FP16)
    value = onnxfile.read_model(out).graph.initializers["w1.scale"].const_value
    assert value is not None
    assert value.numpy()[0] == np.float16(DEAD_STEP) > 0
    assert not run(out, images(1, 16, 8, 8))[0].any()


def test_a_tensor_that_is_always_zero_has_a_positive_scale(two: Path, tmp_path: Path) -> None:
    table = table_of(two, np.zeros((1, 16, 8, 8), np.float32))
    out = tmp_path / "int8.onnx"
    quantize(two, table, INT8, out, float_type=FP16)
    value = onnxfile.read_model(out).graph.initializers["x.scale"].const_value
    assert value is not None
    assert float(value.numpy()) == MIN_SCALE[FP16]


def test_opset_17_takes_fp32_scales_and_no_fp16_ones(graph: Graph, tmp_path: Path) -> None:
    path = saved(graph(TWO, 17, w1=W, w2=W, b1=(16,)), tmp_path / "m.onnx")
    table = table_of(path, images(1, 16, 8, 8))
    out = tmp_path / "int8.onnx"
    with pytest.raises(OptionError, match="opset 17") as caught:
        quantize(path, table, INT8, out, float_type=FP16)
    assert "--opset 19" in caught.value.fix
    assert not out.exists()
    quantize(path, table, INT8, out, float_type=FP32)
    assert onnxfile.read_model(out).opset_imports[""] == 17


def changed(table: CalibrationTable, **fields: Any) -> CalibrationTable:
    return CalibrationTable.from_json(table.to_json() | fields)


def refused(
    path: Path, table: CalibrationTable, error: type[DeployError], plan: PrecisionPlan = INT8
) -> str:
    out = path.with_name("int8.onnx")
    with pytest.raises(error) as caught:
        quantize(path, table, plan, out, float_type=FP16)
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]  # nothing is left behind
    return str(caught.value)


def test_a_table_made_for_another_model_is_stale(two: Path) -> None:
    table = changed(table_of(two, images(1, 16, 8, 8)), model_sha256="1" * 64)
    assert "1" * 64 in refused(two, table, StaleTableError)


def test_a_missing_range_names_the_tensor(two: Path) -> None:
    table = table_of(two, images(1, 16, 8, 8))
    ranges = {name: vars(r) for name, r in table.ranges.items() if name != "b"}
    assert "'b'" in refused(two, changed(table, ranges=ranges), InputError)


def test_a_float_layer_whose_weights_fp16_does_not_hold_is_told(
    graph: Graph, tmp_path: Path
) -> None:
    tiny = np.full(W, 5e-10, np.float32)
    text = f"{HEAD} {{ [c1] a = {CONV}(x, w1) [c2] y = {CONV}(a, w2) }}"
    path = saved(graph(text, w1=W, w2=tiny), tmp_path / "tiny.onnx")
    table = table_of(path, images(2, 16, 8, 8))
    plan = PrecisionPlan(Precision.INT8, {"c2": FP16})
    made = quantize(path, table, plan, tmp_path / "int8.onnx", float_type=FP16)
    assert made.made_by["beyond_fp16"] == {"c2": "w2 is too small for FP16: values up to 5e-10"}
    weights = {each.name: each.data_type for each in onnx.load(made.path).graph.initializer}
    assert weights["w2"] == onnx.TensorProto.FLOAT


LARGE = (
    f"{HEAD} {{ [c1] a = {CONV}(x, w1) [up] b = Mul(a, k) [c2] c = {CONV}(b, w2) "
    f"[down] d = Mul(c, j) [r] e = Relu(d) [c3] y = {CONV}(e, w3) }}"
)


@pytest.mark.parametrize("factor", [4e4, 1e9])
def test_what_reads_or_writes_a_tensor_beyond_fp16_stays_in_fp32(
    graph: Graph, factor: float, tmp_path: Path
) -> None:
    """The oracle computes in numpy's half precision, which overflows as a GPU's does."""
    k, j = np.float32(factor), np.float32(1 / factor)
    path = saved(graph(LARGE, w1=W, w2=W, w3=W, k=k, j=j), tmp_path / "large.onnx")
    x = images(2, 16, 8, 8)
    table = table_of(path, x)
    assert table.ranges["b"].maximum > 65504
    made = quantize(path, table, INT8, tmp_path / "int8.onnx", float_type=FP16)
    reasons = made.made_by["beyond_fp16"]
    assert {"up", "c2"} <= reasons.keys()
    assert reasons.keys().isdisjoint({"c1", "c3"})
    assert "b reaches" in reasons["up"]
    with np.errstate(all="raise", under="ignore"):
        (found,) = ReferenceEvaluator(str(made.path)).run(None, {"x": x})
    (expected,) = run(path, x)
    error = np.square(found - expected).mean() / np.square(expected).mean()
    assert error < 1e-3
    layers = lint.precision_table(onnxfile.read_model(made.path))
    assert {one.name: one.precision for one in layers} == dict.fromkeys(("c1", "c2", "c3"), "int8")


def test_a_model_without_quantisable_layers_is_refused_with_their_reasons(two: Path) -> None:
    plan = PrecisionPlan(FP16, {}, {"c1": "too sensitive"})
    assert "c1: too sensitive" in refused(two, table_of(two, images(1, 16, 8, 8)), ModelError, plan)


def test_weights_that_are_not_finite_are_named(graph: Graph, tmp_path: Path) -> None:
    weights = np.ones(W, np.float32)
    weights[0, 0, 0, 0] = np.nan
    path = saved(graph(TWO, w1=W, w2=weights, b1=(16,)), tmp_path / "m.onnx")
    message = refused(path, table_of(path, images(1, 16, 8, 8)), ModelError)
    assert "'w2' of 'c2'" in message
    assert "NaN" in message


def test_a_quantised_model_is_not_quantised_again(two: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    folder.mkdir()
    again = folder / "model.onnx"
    quantize(two, table_of(two, images(1, 16, 8, 8)), INT8, again, float_type=FP32)
    artifacts.sidecar(again).unlink()
    table = CalibrationTable(artifacts.sha256(again), "minmax", (), "0" * 64, {})
    assert "quantised already" in refused(again, table, ModelError)


def test_a_graph_that_the_lint_rejects_is_not_written(graph: Graph, tmp_path: Path) -> None:
    body = "[c1] a = Conv<pads=[1,1,1,1]>(x, w1) [c2] y = Conv<pads=[1,1,1,1]>(a, w1)"
    path = saved(graph(f"{HEAD} {{ {body} }}", w1=W), tmp_path / "m.onnx")
    message = refused(path, table_of(path, images(1, 16, 8, 8)), ProofError)
    assert "kernel_shape" in message
    assert "deploykit fuse" in message


def test_int8_is_no_float_type_and_a_folder_is_no_output(two: Path, tmp_path: Path) -> None:
    table = table_of(two, images(1, 16, 8, 8))
    with pytest.raises(OptionError, match="float type int8"):
        quantize(two, table, INT8, tmp_path / "o.onnx", float_type=Precision.INT8)
    with pytest.raises(OutputError):
        quantize(two, table, INT8, tmp_path, float_type=FP32)


def test_weights_shared_by_two_layers_are_stored_once(graph: Graph, tmp_path: Path) -> None:
    body = f"[c1] a = {CONV}(x, w1) [r] b = Relu(a) [c2] y = {CONV}(b, w1)"
    path = saved(graph(f"{HEAD} {{ {body} }}", w1=W), tmp_path / "m.onnx")
    out = tmp_path / "int8.onnx"
    quantize(path, table_of(path, images(1, 16, 8, 8)), INT8, out, float_type=FP32)
    nodes = [n for n in onnxfile.read_model(out).graph if n.name == "w1.DequantizeLinear"]
    assert len(nodes) == 1
    assert len(nodes[0].outputs[0].uses()) == 2


def test_a_result_that_breaks_the_specification_is_not_accepted(two: Path, tmp_path: Path) -> None:
    model = onnxfile.read_model(two)
    next(iter(model.graph)).op_type = "NoSuchOp"
    with pytest.raises(ProofError, match="breaks the ONNX specification"):
        acceptance.accept(opened.read(saved(model, tmp_path / "bad.onnx")), opened.read(two))


def test_a_result_with_another_interface_is_not_accepted(
    graph: Graph, two: Path, tmp_path: Path
) -> None:
    other = saved(
        graph(f"(float[N,16,8,8] z) => (float[N,16,8,8] q) {{ [c] q = {CONV}(z, w1) }}", w1=W),
        tmp_path / "other.onnx",
    )
    with pytest.raises(ProofError, match="cannot run the rewritten model"):
        acceptance.accept(opened.read(other), opened.read(two))


FINITE = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=FINITE),
    st.sampled_from([0, 1, None]),
    st.sampled_from([FP16, FP32]),
)
def test_no_weight_is_off_by_more_than_half_a_step(
    weights: NDArray[Any], axis: int | None, float_type: Precision
) -> None:
    scales = weight_scales(weights, axis, float_type)
    levels = quantized(weights, scales, axis)
    assert (scales > 0).all()
    if float_type is FP16:
        assert (scales == scales.astype(np.float16)).all()
    shape = [-1 if i == axis else 1 for i in range(weights.ndim)] if axis is not None else ()
    step = scales.astype(np.float64).reshape(shape)
    error = np.abs(levels * step - weights.astype(np.float64))
    # The division is rounded to float32, which moves the boundary between levels by an ulp.
    assert (error <= step * (0.5 + 1e-5)).all()
    assert levels.min() >= -127


@given(st.floats(0, 1e6, width=32), st.sampled_from([FP16, FP32]))
def test_the_scale_of_an_activation_is_a_positive_number_of_its_type(
    threshold: float, float_type: Precision
) -> None:
    scale = activation_scale(threshold, float_type)
    assert scale >= MIN_SCALE[float_type]
    if float_type is FP16:
        assert np.float16(scale) == scale
        assert np.isfinite(np.float16(1) / np.float16(scale))
    if threshold / 127 >= MIN_SCALE[float_type]:
        assert float(scale) == pytest.approx(threshold / 127, rel=2**-10)


@EXACT
@pytest.mark.parametrize("float_type", [FP16, FP32])
@pytest.mark.parametrize("factor", [1e-9, 1e-6, 1e-3, 1e3, 1e6, 1e9])
def test_steps_of_any_size_add_no_more_noise(
    graph: Graph, tmp_path: Path, factor: float, float_type: Precision
) -> None:
    def noise(times: float) -> float:
        random = np.random.default_rng(0)
        w1, w2 = random.normal(size=(2, *W)).astype(np.float32) / 12
        body = (
            "(float[N,16,8,8] x) => (float[N,c,h,w] y) { "
            f"[c1] a = {CONV}(x, w1) [r1] b = Relu(a) [m] c = Mul(b, k) [c2] y = {CONV}(c, w2) }}"
        )
        model = graph(body, w1=w1, w2=w2 / np.float32(times), k=np.float32(times))
        path, out = saved(model, tmp_path / f"{times}.onnx"), tmp_path / f"{times}.int8.onnx"
        x = images(1, 16, 8, 8)
        quantize(path, table_of(path, x), INT8, out, float_type=float_type)
        (exact,), (found,) = run(path, x), run(out, x)
        return float(np.square(found - exact).sum() / np.square(exact).sum())

    assert noise(factor) <= 2 * noise(1.0)


@pytest.mark.parametrize(("factor", "steps"), [(200.0, 2), (1.0, 1)])
def test_a_tensor_in_a_concat_has_its_own_step_elsewhere_where_the_groups_would_cost_a_decibel(
    graph: Graph, tmp_path: Path, factor: float, steps: int
) -> None:
    model = graph(MEETING, **{**MEETING_WEIGHTS, "k": np.float32(factor)})
    path, out = saved(model, tmp_path / "m.onnx"), tmp_path / "m.int8.onnx"
    x = images(4, 16, 8, 8)
    table = table_of(path, x)
    if factor == 1.0:  # as wide as the group, or nearly
        ranges = {name: Range(1.1 if name == "a" else 1.2, -1, 1) for name in table.ranges}
        table = CalibrationTable(table.model_sha256, "minmax", ("a",), "0" * 64, ranges)
    quantize(path, table, INT8, out, float_type=FP32)
    found = scales_of(out)
    assert len([name for name in found if name.startswith("a")]) == steps
    assert found["b"] == found["t"] == max(found.values())
    if steps == 2:
        assert found["a"] * 20 < found["b"]
        expected, got = (run(file, x, "z")[0].astype(np.float64) for file in (path, out))
        noise = np.square(got - expected).sum() / np.square(expected).sum()
        assert 10 * np.log10(noise) < -30  # with the group's step it was -0.2
    after = onnxfile.read_model(out)
    assert not [f for f in lint.lint(after) if f.severity != "info"]
    assert lint.int8_share(lint.precision_table(after)) == 1.0


BLOCKS = {
    "conv": f"[n{{i}}] v{{i}} = {CONV}({{a}}, w1)",
    "relu": "[n{i}] v{i} = Relu({a})",
    "silu": "[g{i}] g{i} = Sigmoid({a}) [n{i}] v{i} = Mul({a}, g{i})",
    "add": "[n{i}] v{i} = Add({a}, {b})",
    "pool": "[n{i}] v{i} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({a})",
    "concat": "[k{i}] k{i} = Concat<axis=1>({a}, {b}) " + f"[n{{i}}] v{{i}} = {CONV}(k{{i}}, w2)",
    "resize": "[n{i}] v{i} = Resize({a}, , same)",
    "average": "[n{i}] v{i} = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>({a})",
}


@given(st.data())
@settings(max_examples=15)
def test_any_network_of_known_blocks_is_quantised_runs_and_lints_clean(
    graph: Graph, tmp_path: Path, data: st.DataObject
) -> None:
    body, values = f"[stem] v0 = {CONV}(x, w1) ", ["x", "v0"]
    for i in range(1, data.draw(st.integers(2, 7)) + 1):
        block = data.draw(st.sampled_from(sorted(BLOCKS)))
        a, b = data.draw(st.sampled_from(values)), data.draw(st.sampled_from(values))
        body += BLOCKS[block].format(i=i, a=a, b=b) + " "
        values.append(f"v{i}")
    body += f"[last] y = {CONV}({values[-1]}, w1)"
    same = np.ones(4, np.float32)
    model = graph(f"{HEAD} {{ {body} }}", w1=W, w2=(16, 32, 3, 3), same=same)
    placed = placement.place(model, INT8)
    assert not placed.kept

    path = saved(model, tmp_path / "float.onnx")
    out = tmp_path / "int8.onnx"
    x = images(1, 16, 8, 8)
    quantize(path, table_of(path, x), INT8, out, float_type=FP32)
    after = onnxfile.read_model(out)
    assert not [f for f in lint.lint(after) if f.severity == "error"]
    assert lint.int8_share(lint.precision_table(after)) == 1.0
    (found,), (expected,) = run(out, x), run(path, x)
    assert np.linalg.norm(found - expected) <= 0.2 * np.linalg.norm(expected)


MIXED = {
    **BLOCKS,
    "depthwise": "[n{i}] v{i} = Conv<group=16, kernel_shape=[1,1]>({a}, w3)",
    "transpose": "[n{i}] v{i} = Transpose<perm=[0,1,3,2]>({a})",
    "reshape": "[n{i}] v{i} = Reshape({a}, shape)",
    "slice": "[k{i}] k{i} = Concat<axis=1>({a}, {b}) [n{i}] v{i} = Slice(k{i}, s, e, s1)",
    "split": "[s{i}] p{i}, q{i} = Split<axis=1>({a}, halves) [k{i}] k{i} = Concat<axis=1>"
    "(q{i}, p{i}) [n{i}] v{i} = Add(k{i}, {b})",
    "softmax": "[n{i}] v{i} = Softmax<axis=1>({a})",
    "loud": "[n{i}] v{i} = Mul({a}, loud)",
}
MIXED_WEIGHTS: dict[str, Any] = {
    "w1": W,
    "w2": (16, 32, 3, 3),
    "w3": (16, 1, 1, 1),
    "same": np.ones(4, np.float32),
    "shape": np.array([0, 16, 8, 8], np.int64),
    "s": np.array([8], np.int64),
    "e": np.array([24], np.int64),
    "s1": np.array([1], np.int64),
    "halves": np.array([8, 8], np.int64),
    "loud": np.float32(30),
}


def behind(value: ir.Value | None) -> set[str]:
    """Return the ops that a tensor comes from, back through those that only move data."""
    node = None if value is None else value.producer()
    if node is None:
        return {""}
    if node.op_type not in PASS_THROUGH:
        return {node.op_type}
    data = node.inputs if node.op_type == "Concat" else node.inputs[:1]
    return {op for each in data for op in behind(each)}


def test_a_scaled_tensor_stays_float_where_a_float_layer_reads_it(
    graph: Graph, tmp_path: Path
) -> None:
    """TensorRT moves a DQ across the scaling, which would hand INT8 values to the layer."""
    body = f"[stem] v0 = {CONV}(x, w1) [a] v1 = {CONV}(v0, w1) [b] v2 = Add(v1, v0) "
    body += "[loud] v3 = Mul(v2, loud) [t] v4 = Transpose<perm=[0,1,3,2]>(v3) "
    body += f"[n] v5 = {CONV}(v4, w1) [c] v6 = {CONV}(v2, w1) "
    body += f"[u] v7 = Add(v6, v5) [last] y = {CONV}(v7, w1)"
    model = graph(f"{HEAD} {{ {body} }}", **MIXED_WEIGHTS)
    path, out = saved(model, tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    for kept, read in ((["n"], False), ([], True)):
        plan = PrecisionPlan(Precision.INT8, dict.fromkeys(kept, FP32))
        quantize(path, table_of(path, images(1, 16, 8, 8), plan), plan, out, float_type=FP32)
        after = onnxfile.read_model(out)
        assert not [f for f in lint.lint(after) if f.severity == "error"]
        (scaled,) = (node for node in after.graph if node.name == "loud")
        assert (behind(scaled.inputs[0]) == {"DequantizeLinear"}) is read


@given(st.data())
@settings(max_examples=25)
def test_whatever_is_left_in_float_reads_float_and_the_rest_is_int8(
    graph: Graph, tmp_path: Path, data: st.DataObject
) -> None:
    body, values, layers = f"[stem] v0 = {CONV}(x, w1) ", ["x", "v0"], ["stem"]
    for i in range(1, data.draw(st.integers(2, 8)) + 1):
        block = data.draw(st.sampled_from(sorted(MIXED)))
        a, b = data.draw(st.sampled_from(values)), data.draw(st.sampled_from(values))
        body += MIXED[block].format(i=i, a=a, b=b) + " "
        values.append(f"v{i}")
        layers += [f"n{i}"] * (block in ("conv", "depthwise", "concat"))
    body += f"[last] y = {CONV}({values[-1]}, w1)"
    model = graph(f"{HEAD} {{ {body} }}", **MIXED_WEIGHTS)
    kept = data.draw(st.sets(st.sampled_from(layers), max_size=3))
    plan = PrecisionPlan(Precision.INT8, dict.fromkeys(sorted(kept), FP32))
    path, out = saved(model, tmp_path / "float.onnx"), tmp_path / "int8.onnx"
    x = images(1, 16, 8, 8)
    quantize(path, table_of(path, x, plan), plan, out, float_type=FP32)
    after = onnxfile.read_model(out)
    grave = [f for f in lint.lint(after) if f.severity == "error"]
    assert not [f for f in grave if f.rule != "no-int8-cores"]
    chosen = {w.node for w in placement.place(model, plan).weights}
    for node in after.graph:
        if node.op_type == "Conv":
            is_int8 = node.name in chosen
            assert runs_int8(node) == is_int8
            assert ("DequantizeLinear" in behind(node.inputs[0])) == is_int8
