from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from deploykit import pipeline
from deploykit.data.preprocess import Preprocess
from deploykit.errors import ModelError, ProofError
from deploykit.files import artifacts, onnxfile
from deploykit.precision import float16
from deploykit.proof import acceptance
from deploykit.recipes import metadata, opened
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import KeepFloat
from deploykit.values import Precision, PrecisionPlan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Graph = Callable[..., ir.Model]

PLAN = PrecisionPlan(Precision.INT8)
CONV = "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>"
HEAD = "(float[N,4,8,8] x) => (float[N,4,8,8] y)"
W = (4, 4, 3, 3)


def halved(model: ir.Model, plan: PrecisionPlan = PLAN) -> onnx.ModelProto:
    """Return the model in FP16, valid by ONNX's own type inference."""
    proto = ir.to_proto(float16.to_float16(model, plan))
    for info in list(proto.graph.value_info):
        proto.graph.value_info.remove(info)
    onnx.checker.check_model(proto, full_check=True)
    inferred: onnx.ModelProto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    return inferred


def types(proto: onnx.ModelProto) -> dict[str, str]:
    found = {i.name: i.data_type for i in proto.graph.initializer}
    for info in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        found[info.name] = info.type.tensor_type.elem_type
    return {n: np.dtype(onnx.helper.tensor_dtype_to_np_dtype(t)).name for n, t in found.items()}


def casts(proto: onnx.ModelProto) -> list[str]:
    return [node.output[0] for node in proto.graph.node if node.op_type == "Cast"]


def run(model: Any, x: NDArray[Any]) -> NDArray[Any]:
    data = model if isinstance(model, str) else model.SerializeToString()
    return np.asarray(ort.InferenceSession(data).run(None, {"x": x})[0])


def images(*shape: int) -> NDArray[Any]:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_all_computes_in_half_between_float32_inputs_and_outputs(graph: Graph) -> None:
    body = f"[c1] a = {CONV}(x, w1, b1) [r] b = Relu(a) [c2] y = {CONV}(b, w2)"
    model = graph(f"{HEAD} {{ {body} }}", w1=W, w2=W, b1=(4,))
    expected = ir.to_proto(model)
    found = halved(model)
    kinds = types(found)
    assert {kinds[name] for name in ("a", "b", "w1", "w2", "b1")} == {"float16"}
    assert kinds["x"] == kinds["y"] == "float32"
    assert casts(found) == ["x.fp16", "y"]
    assert [n.name for n in found.graph.node if n.op_type != "Cast"] == ["c1", "r", "c2"]
    x = images(2, 4, 8, 8)
    np.testing.assert_allclose(run(found, x), run(expected, x), atol=1e-2)


def test_a_node_that_the_plan_keeps_is_an_island_with_one_cast_on_each_side(graph: Graph) -> None:
    body = f"[c1] a = {CONV}(x, w) [t] b = Tanh(a) [u] c = Add(b, a) [c2] y = {CONV}(c, w)"
    plan = PrecisionPlan(Precision.INT8, {"t": Precision.FP32}, {"t": "it is delicate"})
    model = graph(f"{HEAD} {{ {body} }}", w=W)
    assert float16.wide_nodes(model, plan) == {
        "t": "it is delicate",
        "u": "follows t, which is FP32",
    }
    found = halved(model, plan)
    assert types(found)["b"] == types(found)["c"] == "float32"
    assert types(found)["a"] == "float16"
    assert casts(found) == ["x.fp16", "a.fp32", "c.fp16", "y"]


def test_what_is_wide_is_not_narrowed_by_being_moved(graph: Graph) -> None:
    body = f"[c1] a = {CONV}(x, w) [e] b = Exp(a) [k] c = Concat<axis=1>(a, b) [s] y = Neg(c)"
    found = halved(graph(f"{HEAD.replace('4,8,8] y', '8,8,8] y')} {{ {body} }}", w=W))
    assert types(found)["c"] == "float32"
    assert casts(found) == ["x.fp16", "a.fp32"]


def test_boxes_up_to_1280_pixels_lose_nothing_when_the_plan_keeps_their_decoding(
    graph: Graph,
) -> None:
    # float32[N, 4, 8, 8] of distances in cells become pixels around anchors up to 1280.
    anchors = np.linspace(0, 1279, 256).reshape(1, 4, 8, 8).astype(np.float32)
    body = "[scale] a = Mul(x, stride) [shift] b = Add(a, anchors) [half] y = Mul(b, k)"
    weights = {"stride": np.float32(8), "anchors": anchors, "k": np.float32(0.5)}
    x = np.random.default_rng(0).uniform(0, 1, (1, 4, 8, 8)).astype(np.float32)
    expected = run(ir.to_proto(graph(f"{HEAD} {{ {body} }}", **weights)), x)
    plan = PrecisionPlan(Precision.INT8, {"scale": Precision.FP32})
    kept = run(halved(graph(f"{HEAD} {{ {body} }}", **weights), plan), x)
    np.testing.assert_array_equal(kept, expected)
    # Without a plan the grid of anchors is recognised; only the distances are rounded.
    found = halved(graph(f"{HEAD} {{ {body} }}", **weights))
    np.testing.assert_allclose(run(found, x), expected, atol=8 * 2**-11)


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("[n] y = Mul(x, k)", {"k": np.float32(1e5)}, "reaches 1e\\+05, beyond FP16"),
        ("[n] y = Add(x, k)", {"k": np.float32(1e-9)}, "too small for FP16"),
        ("[n] y = Mul(x, k)", {"k": np.full((1, 4, 1, 1), 1e-7, np.float32)}, "too small"),
        ("[n] y = Sub(x, k)", {"k": np.arange(8, dtype=np.float32) * 99}, "grid of coordinates"),
        ("[n] y = Exp(x)", {}, "above 11"),
        ("[n] y = Pow(x, k)", {"k": np.float32(2)}, "above 255"),
        ("[n] y = ReduceSum(x)", {}, "adds up many numbers"),
        ("[n] y = deploykit.DKThing(x)", {}, "custom op deploykit::DKThing"),
    ],
)
def test_a_node_that_stays_fp32_says_why(
    graph: Graph, body: str, weights: dict[str, Any], reason: str
) -> None:
    model = graph(f"{HEAD} {{ {body} }}", **weights)
    found = float16.wide_nodes(model, PLAN)
    assert set(found) == {"n"}
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(found["n"])


def test_harmless_constants_are_halved(graph: Graph) -> None:
    weights = np.full(W, 0.01, np.float32)
    weights[0] = 1e-9  # vanishes, and nobody misses it
    body = f"[c] a = {CONV}(x, w) [m] y = Where(mask, a, low)"
    model = graph(f"{HEAD} {{ {body} }}", w=weights, mask=np.array(True), low=np.float32(-np.inf))
    assert float16.wide_nodes(model, PLAN) == {}
    assert types(halved(model))["low"] == "float16"


def test_inputs_that_onnx_fixes_to_fp32_stay_so(graph: Graph) -> None:
    body = '[up] a = Resize<mode="nearest">(x, , s) [m] y = Mul(a, s4)'
    scales = np.array([1, 1, 2, 2], np.float32)
    model = graph(
        "(float[N,4,8,8] x) => (float[N,4,16,16] y) { " + body + " }", s=scales, s4=np.float32(4)
    )
    found = halved(model)
    assert types(found)["s"] == "float32"
    assert types(found)["a"] == types(found)["s4"] == "float16"


def test_a_constant_read_in_both_types_is_stored_in_both(graph: Graph) -> None:
    body = f"[c] a = {CONV}(x, w) [m] b = Mul(a, k) [e] c = Exp(b) [n] y = Mul(c, k)"
    found = halved(graph(f"{HEAD} {{ {body} }}", w=W, k=np.full((4, 1, 1), 0.5, np.float32)))
    assert types(found)["k"] == "float32"
    assert types(found)["k.fp16"] == "float16"


def test_integers_cast_to_float_stay_wide(graph: Graph) -> None:
    body = "[s] a = Shape(x) [f] b = Cast<to=1>(a) [m] y = Mul(x, b)"
    model = graph(f"(float[N,4,8,4] x) => (float[N,4,8,4] y) {{ {body} }}")
    assert float16.wide_nodes(model, PLAN) == {
        "f": "casts integers, and FP16 holds those above 2048 inexactly",
        "m": "follows f, which is FP32",
    }
    assert casts(halved(model)) == ["b"]


def test_control_flow_stays_fp32_and_reads_casts_of_what_it_captures(graph: Graph) -> None:
    body = (
        f"[c] a = {CONV}(x, w) [flag] p = Less(zero, one) "
        "[branch] b = If(p) <then_branch = yes () => (float[N,4,8,8] t) { [t] t = Relu(a) }, "
        "else_branch = no () => (float[N,4,8,8] e) { [e] e = Neg(a) }> "
        f"[last] y = {CONV}(b, w)"
    )
    model = graph(f"{HEAD} {{ {body} }}", w=W, zero=np.float32(0), one=np.float32(1))
    expected = ir.to_proto(model)
    assert float16.wide_nodes(model, PLAN)["branch"].startswith("is control flow")
    found = halved(model)
    assert casts(found) == ["x.fp16", "a.fp32", "b.fp16", "y"]
    x = images(1, 4, 8, 8)
    np.testing.assert_allclose(run(found, x), run(expected, x), atol=1e-2)


PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 8, 8)).astype(np.float32)
FIXED = "(float[4,4,8,8] x) => (float[a,b,c,d] y)"
INSIDE = (
    "LRN<size = 5, alpha = 0.01>(x)",
    "LpNormalization<axis = 1>(x)",
    "LpPool<kernel_shape = [4, 4]>(x)",
    "GlobalLpPool(x)",
    "MeanVarianceNormalization(x)",
    "ReduceL2(x, axes)",
    "Sinh(small)",
    "Cosh(small)",
    "LogSoftmax<axis = 3>(x)",
)
"""Ops that leave FP16's range inside, for pixels."""
WITHIN = (
    "Softmax<axis = 1>(x)",
    "Softplus(x)",
    "Mish(x)",
    "Gelu(x)",
    "Elu(x)",
    "Sigmoid(x)",
    "GlobalAveragePool(x)",
    "AveragePool<kernel_shape = [8, 8]>(x)",
    "ReduceMean(x, axes)",
    "GroupNormalization<num_groups = 2>(x, ones, ones)",
)
"""Ops that do not, though they square, add up or take powers."""


def in_reference(proto: onnx.ModelProto) -> NDArray[np.float64]:
    """Return what a model makes of pixels by ONNX's reference, which computes in half what is."""
    with np.errstate(all="ignore"):
        (found,) = ReferenceEvaluator(proto).run(None, {"x": PIXELS})
    return np.asarray(found, np.float64)


def normalised(x: NDArray[np.float64]) -> NDArray[np.float64]:
    off = x - x.mean((0, 2, 3), keepdims=True)
    found: NDArray[np.float64] = off / x.std((0, 2, 3), keepdims=True)
    return found


LACKING: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "GlobalLpPool": lambda x: np.sqrt((x**2).sum((2, 3), keepdims=True)),
    "LogSoftmax": lambda x: x - np.logaddexp.reduce(x, 3, keepdims=True),
    "MeanVarianceNormalization": normalised,
}
"""What ONNX's reference does not compute, or not without underflow."""


@pytest.mark.parametrize("op", INSIDE)
def test_what_squares_and_adds_up_pixels_does_so_in_fp32(op: str, graph: Graph) -> None:
    body = f"small = Mul(x, tenth) [op] y = {op}" if "small" in op else f"[op] y = {op}"
    weights = {"axes": np.array([2, 3]), "tenth": np.array(0.05, np.float32)}
    model = graph(f"{FIXED} {{ {body} }}", **weights)
    expected = ir.to_proto(model)
    assert "op" in float16.wide_nodes(model, PLAN)
    found = ir.to_proto(float16.to_float16(model, PLAN))
    lacking = LACKING.get(re.split("[<(]", op)[0])
    if lacking is None:
        truth, made = in_reference(expected), in_reference(found)
    else:
        truth, made = lacking(PIXELS.astype(np.float64)), run(found, PIXELS).astype(np.float64)
    np.testing.assert_allclose(made, truth, 1e-2, 2e-3 * np.abs(truth).max())


@pytest.mark.parametrize("op", WITHIN)
def test_what_stays_within_fp16_for_pixels_computes_in_it(op: str, graph: Graph) -> None:
    weights = {"axes": np.array([2, 3]), "ones": np.ones(4, np.float32)}
    model = graph(f"{FIXED} {{ [op] y = {op} }}", opset=22, **weights)
    truth = in_reference(ir.to_proto(model))
    assert float16.wide_nodes(model, PLAN) == {}
    made = in_reference(ir.to_proto(float16.to_float16(model, PLAN)))
    np.testing.assert_allclose(made, truth, 1e-2, 2e-3 * np.abs(truth).max())


@pytest.mark.parametrize(("kind", "wide"), [(1, False), (10, True)])
def test_a_normalisation_is_fp16_where_it_stashes_float32(
    kind: int, *, wide: bool, graph: Graph
) -> None:
    op = f"LayerNormalization<stash_type = {kind}>(x, ones)"
    model = graph(f"{FIXED} {{ [op] y = {op} }}", ones=np.ones(8, np.float32))
    assert ("op" in float16.wide_nodes(model, PLAN)) is wide


def test_a_sequence_stays_fp32_and_reads_casts_of_what_it_holds(
    graph: Graph, tmp_path: Path
) -> None:
    body = (
        f"[c] a = {CONV}(x, w) [cut] parts = SplitToSequence<axis = 1>(a, two) "
        f"[at] b = SequenceAt(parts, one) [last] y = {CONV}(b, v)"
    )
    weights = {"w": W, "v": (4, 2, 3, 3), "two": np.array(2, np.int64), "one": np.array(1)}
    model = graph(f"{HEAD} {{ {body} }}", **weights)
    expected = ir.to_proto(model)
    assert float16.wide_nodes(model, PLAN)["cut"].startswith("works on a sequence")
    path, out = saved(model, tmp_path / "m.onnx"), tmp_path / "m.fp16.onnx"
    pipeline.cast(path, out)
    assert casts(halved(model)) == ["x.fp16", "a.fp32", "b.fp16", "y"]
    x = images(1, 4, 8, 8)
    np.testing.assert_allclose(run(str(out), x), run(expected, x), atol=1e-2)


def test_a_constant_node_keeps_its_type_and_its_readers_get_a_copy(graph: Graph) -> None:
    body = "[k] k = Constant<value = float {0.5}>() [m] y = Mul(x, k)"
    found = halved(graph(f"{HEAD} {{ {body} }}"))
    assert types(found)["k.fp16"] == "float16"


def test_an_output_that_others_read_keeps_its_name_and_type(graph: Graph) -> None:
    text = (
        "(float[N,4,8,8] x) => (float[N,4,8,8] a, float[N,4,8,8] y) "
        f"{{ [c] a = {CONV}(x, w) [r] y = Relu(a) }}"
    )
    found = halved(graph(text, w=W))
    assert [out.name for out in found.graph.output] == ["a", "y"]
    assert {types(found)[name] for name in ("a", "y")} == {"float32"}
    assert next(n for n in found.graph.node if n.name == "r").input == ["a.fp16"]


def test_a_tensor_of_unknown_type_is_named(graph: Graph) -> None:
    model = graph(f"{HEAD} {{ [d] a = deploykit.DKThing(x) [r] y = Relu(a) }}")
    with pytest.raises(ModelError, match="type of 'a', which node 'd' computes, is unknown"):
        float16.to_float16(model, PLAN)


def card(*keep: KeepFloat) -> ModelCard:
    return ModelCard("r", "v", "detection", Preprocess((8, 8)), ("a",), "0" * 64, keep)


def saved(model: ir.Model, path: Path, *keep: KeepFloat) -> Path:
    metadata.write(model.metadata_props, card(*keep))
    onnxfile.write_model(model, path)
    return path


def test_cast_writes_half_the_bytes_and_keeps_what_the_recipe_keeps(
    graph: Graph, tmp_path: Path
) -> None:
    body = f"[c1] a = {CONV}(x, w) [head] b = Tanh(a) [c2] y = {CONV}(b, v)"
    shape = (64, 64, 3, 3)
    model = graph(f"(float[N,64,8,8] x) => (float[N,64,8,8] y) {{ {body} }}", w=shape, v=shape)
    path = saved(model, tmp_path / "m.onnx", KeepFloat("head", "scores", Precision.FP32))
    out = tmp_path / "m.fp16.onnx"
    artifact = pipeline.cast(path, out).artifact
    assert 0.5 < out.stat().st_size / path.stat().st_size < 0.52
    assert artifact.made_by["fp32_nodes"] == {"head": "scores"}
    assert 0 < artifact.made_by["max_relative_error"] < 1e-2
    assert [str(s) for s in artifact.inputs] == ["x: float32[N, 64, 8, 8]"]
    assert artifacts.read(out).parents == {"m.onnx": artifacts.sha256(path)}
    assert metadata.read(onnxfile.read_model(out).metadata_props) == metadata.read(
        onnxfile.read_model(path).metadata_props
    )


def test_cast_refuses_a_quantised_model(graph: Graph, tmp_path: Path) -> None:
    body = "[q] a = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(a, s, z)"
    model = graph(f"{HEAD} {{ {body} }}", s=np.float32(0.1), z=np.int8(0))
    path = saved(model, tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="--float-type fp16"):
        pipeline.cast(path, tmp_path / "o.onnx")


def test_cast_refuses_a_model_that_is_quantised_as_it_runs(graph: Graph, tmp_path: Path) -> None:
    body = "[q] a, s, z = DynamicQuantizeLinear(x) [d] y = DequantizeLinear(a, s, z)"
    path = saved(graph(f"{HEAD} {{ {body} }}"), tmp_path / "m.onnx")
    with pytest.raises(ModelError, match="the model is quantised"):
        pipeline.cast(path, tmp_path / "o.onnx")


def test_an_output_that_onnx_defines_without_fp16_stays_float32(graph: Graph) -> None:
    body = "[n] a, mean = LayerNormalization(x, ones) [r] y = Relu(a) [m] z = Neg(mean)"
    head = "(float[N,4,8,8] x) => (float[N,4,8,8] y, float[N,4,8,1] z)"
    model = graph(f"{head} {{ {body} }}", ones=np.ones(8, np.float32))
    expected = ir.to_proto(model)
    found = halved(model)
    assert types(found)["a"] == "float16"
    assert types(found)["mean"] == "float32"
    x = images(1, 4, 8, 8)
    np.testing.assert_allclose(run(found, x), run(expected, x), atol=1e-2)


def test_a_model_that_is_fp16_outside_too_stays_so(graph: Graph, tmp_path: Path) -> None:
    text = "(float16[N,4,8,8] x) => (float16[N,4,8,8] y) "
    body = f"{{ [c] a = {CONV}(x, w) [i] b = Identity(a) [r] y = Relu(b) }}"
    weights = np.random.default_rng(0).standard_normal(W).astype(np.float16)
    path = saved(graph(text + body, w=weights), tmp_path / "m.onnx")
    x = images(1, 4, 8, 8).astype(np.float16)
    for verb in (pipeline.fuse, pipeline.cast):
        out = tmp_path / "o.onnx"
        verb(path, out)
        found = run(str(out), x)
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, run(str(path), x), rtol=1e-2, atol=1e-2)
        out.unlink()


def test_a_plan_whose_default_is_fp32_changes_only_the_nodes_it_names(graph: Graph) -> None:
    model = graph(f"{HEAD} {{ [c1] a = {CONV}(x, w) [c2] y = {CONV}(a, w) }}", w=W)
    plan = PrecisionPlan(Precision.FP32, {"c2": Precision.FP16})
    assert float16.wide_nodes(model, plan) == {"c1": "the plan says fp32"}
    assert casts(halved(model, plan)) == ["a.fp16", "y"]


def test_a_result_with_infinities_is_not_accepted(graph: Graph, tmp_path: Path) -> None:
    path = saved(graph(f"{HEAD} {{ [r] y = Relu(x) }}"), tmp_path / "m.onnx")
    model = graph(f"{HEAD} {{ [d] y = Div(x, zero) }}", zero=np.float32(0))
    with pytest.raises(ProofError, match="output 'y' of the rewritten model is not finite"):
        acceptance.accept(opened.read(saved(model, tmp_path / "o.onnx")), opened.read(path))


BLOCKS = (
    f"[n{{i}}] v{{i}} = {CONV}({{a}}, w)",
    "[n{i}] v{i} = Relu({a})",
    "[n{i}] v{i} = Exp({a})",
    "[n{i}] v{i} = Softmax({a})",
    "[n{i}] v{i} = Add({a}, {b})",
    "[k{i}] k{i} = Concat<axis=1>({a}, {b}) [n{i}] v{i} = MaxPool<kernel_shape=[1,1]>(k{i})",
)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 9)), max_size=7))
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_mix_of_halves_and_islands_is_well_typed_and_casts_nothing_back_and_forth(
    graph: Graph, steps: list[tuple[int, int, int]]
) -> None:
    body, values = "", ["x"]
    for i, (block, a, b) in enumerate(steps):
        names = {"a": values[a % len(values)], "b": values[b % len(values)]}
        body += BLOCKS[block].format(i=i, **names) + " "
        values.append(f"v{i}")
    model = graph(f"{HEAD} {{ {body} [last] y = Relu({values[-1]}) }}", w=W)
    found = halved(model)
    made = {node.output[0]: node for node in found.graph.node}
    for node in found.graph.node:
        if node.op_type == "Cast":
            before = made.get(node.input[0])
            assert before is None or before.op_type != "Cast"
    assert len(casts(found)) == len(set(casts(found)))
