"""Each rewrite on a minimal graph: what it changes, what it leaves, and that outputs stay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator
from torch import nn

from deploykit.graph import editing as graphs
from deploykit.graph import fusion, passes
from deploykit.graph.passes import constants

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = Mapping[str, Any]


PASSES = {each.name: each for each in passes.DEFAULT}


def model(body: str, weights: Arrays | None = None, opset: int = 19) -> ir.Model:
    """Return the model of a graph in ONNX's text form, `(inputs) => (outputs) { nodes }`.

    Weights are given as arrays; types of intermediate values are inferred.
    """
    names = weights or {}
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> g {body}')
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in names.items()
    )
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto))


def run(subject: ir.Model, feeds: Arrays) -> list[NDArray[Any]]:
    """Return the outputs as ONNX's own reference computes them."""
    proto = ir.to_proto(subject)
    onnx.checker.check_model(proto, full_check=True)
    return list(ReferenceEvaluator(proto).run(None, dict(feeds)))


def runtime(subject: ir.Model, feeds: Arrays) -> list[NDArray[Any]]:
    """Return the outputs as ONNX Runtime computes them, without rewrites of its own."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(ir.to_proto(subject).SerializeToString(), options)
    return [np.asarray(array) for array in session.run(None, dict(feeds))]


def apply(
    subject: ir.Model,
    *each: passes.Pass,
    feeds: Arrays,
    reference: Callable[[ir.Model, Arrays], list[NDArray[Any]]] = run,
) -> list[str]:
    """Return the operators after the passes, having checked that no output changed."""
    expected = reference(subject, feeds)
    names = [value.name for value in (*subject.graph.inputs, *subject.graph.outputs)]
    changed = [one.apply(subject) for one in each]
    found = reference(subject, feeds)
    for ours, theirs in zip(found, expected, strict=True):
        span = float(np.ptp(theirs)) or 1.0
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * span)
    assert [v.name for v in (*subject.graph.inputs, *subject.graph.outputs)] == names
    assert not any(one.apply(subject) for one in each if changed[0]), "a second run changes more"
    return [node.op_type for node in subject.graph]


def floats(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def statistics(count: int, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {
        "gamma": rng.normal(1, 0.5, count).astype(np.float32),
        "beta": rng.normal(0, 1, count).astype(np.float32),
        "mean": rng.normal(0, 1, count).astype(np.float32),
        "var": rng.uniform(0.01, 3, count).astype(np.float32),
    }


NORM = "BatchNormalization <epsilon = 0.001> (c, gamma, beta, mean, var)"
IMAGE = {"x": floats(2, 4, 6, 6, seed=9)}

# batch norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_batch_norm_is_folded(op: str, groups: int, *, bias: bool) -> None:
    out = 8
    shape = (out, 4 // groups, 3, 3) if op == "Conv" else (4, out // groups, 3, 3)
    weights = {"a.weight": floats(*shape), **statistics(out)} | ({"b": floats(out)} if bias else {})
    body = f"""(float[2, 4, 6, 6] x) => (float[2, 8, N, N] y) {{
        c = {op} <group = {groups}> (x, weight {", b" if bias else ""})
        y = {NORM} }}"""
    weights["weight"] = weights.pop("a.weight")
    subject = model(body, weights)
    # ONNX's reference of a grouped transposed convolution fails, so ONNX Runtime steps in.
    assert apply(subject, PASSES["batch_norm"], feeds=IMAGE, reference=runtime) == [op]


@settings(deadline=None, max_examples=40)
@given(
    trans=st.booleans(),
    alpha=st.sampled_from([1.0, 0.5]),
    beta=st.sampled_from([1.0, 2.0, 0.0]),
    bias=st.sampled_from([None, (5,), (1, 5)]),
)
def test_batch_norm_after_gemm_is_folded(
    *, trans: bool, alpha: float, beta: float, bias: tuple[int, ...] | None
) -> None:
    weights: dict[str, Any] = {"w": floats(*((5, 4) if trans else (4, 5))), **statistics(5)}
    if bias:
        weights["b"] = floats(*bias)
    body = f"""(float[3, 4] x) => (float[3, 5] y) {{
        c = Gemm <transB = {int(trans)}, alpha = {alpha}, beta = {beta}>
            (x, w {", b" if bias else ""})
        y = {NORM} }}"""
    feeds = {"x": floats(3, 4, seed=5)}
    assert apply(model(body, weights), PASSES["batch_norm"], feeds=feeds) == ["Gemm"]


def test_the_new_bias_is_named_after_the_weight() -> None:
    subject = model(
        f"(float[2, 4, 6, 6] x) => (float[2, 8, 4, 4] y) {{ c = Conv (x, w)\n y = {NORM} }}",
        {"w": floats(8, 4, 3, 3), **statistics(8)},
    )
    weight = subject.graph[0].inputs[1]
    assert weight is not None
    ir.convenience.rename_values([weight], ["stem.conv.weight"])
    PASSES["batch_norm"].apply(subject)
    assert [value.name for value in subject.graph[0].inputs if value is not None] == [
        "x",
        "stem.conv.weight",
        "stem.conv.bias",
    ]


def test_a_shared_weight_is_copied_not_changed() -> None:
    body = f"""(float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y, float[2, 4, 4, 4] z) {{
        c = Conv (x, w)
        y = {NORM}
        z = Conv (x, w) }}"""
    subject = model(body, {"w": floats(4, 4, 3, 3), **statistics(4)})
    assert apply(subject, PASSES["batch_norm"], feeds=IMAGE) == ["Conv", "Conv"]
    assert {"w", "w.weight"} <= set(subject.graph.initializers)


UNFOLDABLE = {
    "the convolution has another user": f"""(float[2, 4, 6, 6] x) =>
        (float[2, 4, 4, 4] y, float[2, 4, 4, 4] z) {{ c = Conv (x, w) y = {NORM} z = Relu (c) }}""",
    "the convolution is an output": f"""(float[2, 4, 6, 6] x) =>
        (float[2, 4, 4, 4] y, float[2, 4, 4, 4] c) {{ c = Conv (x, w) y = {NORM} }}""",
    "something is in between": f"""(float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y) {{
        d = Conv (x, w) c = Relu (d) y = {NORM} }}""",
    "the weight is an input": f"""(float[2, 4, 6, 6] x, float[4, 4, 3, 3] v) =>
        (float[2, 4, 4, 4] y) {{ c = Conv (x, v) y = {NORM} }}""",
    "the weight is computed": f"""(float[2, 4, 6, 6] x, float[1] s) =>
        (float[2, 4, 4, 4] y) {{ v = Mul (w, s) c = Conv (x, v) y = {NORM} }}""",
    "the bias is an input": f"""(float[2, 4, 6, 6] x, float[4] b) =>
        (float[2, 4, 4, 4] y) {{ c = Conv (x, w, b) y = {NORM} }}""",
    "there is no convolution": f"""(float[2, 4, 4, 4] c) => (float[2, 4, 4, 4] y) {{
        y = {NORM} }}""",
}


@pytest.mark.parametrize("reason", UNFOLDABLE)
def test_batch_norm_stays_where(reason: str) -> None:
    subject = model(UNFOLDABLE[reason], {"w": floats(4, 4, 3, 3), **statistics(4)})
    before = [node.op_type for node in subject.graph]
    assert not PASSES["batch_norm"].apply(subject)
    assert [node.op_type for node in subject.graph] == before


def test_batch_norm_in_training_stays() -> None:
    norm = NORM.replace("epsilon = 0.001", "training_mode = 1")
    subject = model(
        f"""(float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y) {{
        c = Conv (x, w) y, m, v = {norm} }}""",
        {"w": floats(4, 4, 3, 3), **statistics(4)},
    )
    assert not PASSES["batch_norm"].apply(subject)


def test_a_fold_that_would_overflow_is_left_out() -> None:
    broken = statistics(4) | {"var": np.zeros(4, np.float32)}
    body = f"(float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y) {{ c = Conv (x, w) y = {NORM} }}"
    body = body.replace("0.001", "0.0")
    subject = model(body, {"w": floats(4, 4, 3, 3), **broken})
    assert not PASSES["batch_norm"].apply(subject)
    weight = subject.graph[0].inputs[1]
    assert weight is not None
    assert weight.const_value is not None
    np.testing.assert_array_equal(weight.const_value.numpy(), floats(4, 4, 3, 3))


def test_half_precision_weights_stay_half() -> None:
    subject = model(
        f"(float16[2, 4, 6, 6] x) => (float16[2, 4, 4, 4] y) {{ c = Conv (x, w) y = {NORM} }}",
        {
            "w": floats(4, 4, 3, 3).astype(np.float16),
            **{k: v.astype(np.float16) for k, v in statistics(4).items()},
        },
    )
    assert PASSES["batch_norm"].apply(subject)
    kinds = [v.const_value.dtype for v in subject.graph[0].inputs[1:] if v and v.const_value]
    assert kinds == [ir.DataType.FLOAT16] * 2


# arithmetic per channel


@pytest.mark.parametrize("shape", [(), (1,), (8, 1, 1), (1, 8, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize(
    "node", ["Mul (c, k)", "Mul (k, c)", "Add (c, k)", "Add (k, c)", "Sub (c, k)", "Div (c, k)"]
)
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_arithmetic_per_channel_is_folded(op: str, node: str, shape: tuple[int, ...]) -> None:
    weight = floats(8, 4, 3, 3) if op == "Conv" else floats(4, 8, 3, 3)
    body = f"(float[2, 4, 6, 6] x) => (float[2, 8, N, N] y) {{ c = {op} (x, w) y = {node} }}"
    subject = model(body, {"w": weight, "k": floats(*shape, seed=3)})
    assert apply(subject, PASSES["channel_arithmetic"], feeds=IMAGE) == [op]


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("Sub (k, c)", (8, 1, 1)),
        ("Div (k, c)", (8, 1, 1)),
        ("Add (c, k)", (4,)),
        ("Add (c, k)", (8, 4, 4)),
        ("Add (c, k)", (2, 8, 1, 1)),
        ("Mul (c, k)", (1, 1, 4)),
        ("Mul (c, k)", (1, 1, 8, 1, 1)),
    ],
)
def test_other_arithmetic_stays(node: str, shape: tuple[int, ...]) -> None:
    body = f"(float[2, 4, 6, 6] x) => (y) {{ c = Conv (x, w) y = {node} }}"
    body = body.replace(
        "=> (y)", "=> (float[P, Q, R, S] y)" if len(shape) < 5 else "=> (float[A, B, C, D, E] y)"
    )
    subject = model(body, {"w": floats(8, 4, 3, 3), "k": floats(*shape)})
    assert not PASSES["channel_arithmetic"].apply(subject)


def test_division_by_zero_stays() -> None:
    body = "(float[2, 4, 6, 6] x) => (float[2, 8, 4, 4] y) { c = Conv (x, w) y = Div (c, k) }"
    subject = model(body, {"w": floats(8, 4, 3, 3), "k": np.zeros((8, 1, 1), np.float32)})
    assert not PASSES["channel_arithmetic"].apply(subject)


def test_arithmetic_on_a_square_gemm_goes_along_the_columns() -> None:
    body = "(float[4, 4] x) => (float[4, 4] y) { c = Gemm (x, w) y = Mul (c, k) }"
    row = model(body, {"w": floats(4, 4), "k": floats(4, seed=2)})
    column = model(body, {"w": floats(4, 4), "k": floats(4, 1, seed=2)})
    assert apply(row, PASSES["channel_arithmetic"], feeds={"x": floats(4, 4)}) == ["Gemm"]
    assert not PASSES["channel_arithmetic"].apply(column)


# GELU

ROOT_2 = np.float32(2**0.5)
GELU = "d = {scaled} e = Erf (d) g = {grown} h = {halved} y = {last}"


@pytest.mark.parametrize("scaled", ["Div (x, root)", "Mul (x, part)"])
@pytest.mark.parametrize("grown", ["Add (e, one)", "Add (one, e)"])
@pytest.mark.parametrize("halved", ["Mul (half, g)", "Mul (g, half)"])
@pytest.mark.parametrize("last", ["Mul (x, h)", "Mul (h, x)"])
def test_gelu_is_written_in_the_form_that_onnx_runtime_has_a_kernel_for(
    scaled: str, grown: str, halved: str, last: str, tmp_path: Path
) -> None:
    nodes = GELU.format(scaled=scaled, grown=grown, halved=halved, last=last)
    body = f"(float[2, 8] x) => (float[2, 8] y) {{ {nodes} }}"
    constants = {"root": ROOT_2, "part": 1 / ROOT_2, "one": np.float32(1), "half": np.float32(0.5)}
    given = {name: constants[name] for name in ("root", "part", "one", "half") if name in body}
    subject, feeds = model(body, given), {"x": 3 * floats(2, 8)}
    expected = torch.nn.functional.gelu(torch.from_numpy(feeds["x"])).numpy()
    ops = apply(subject, PASSES["gelu"], feeds=feeds)
    assert sorted(ops) == sorted([scaled[:3], "Erf", "Add", "Mul", "Mul"])
    np.testing.assert_allclose(run(subject, feeds)[0], expected, atol=1e-6)
    if scaled.startswith("Div"):  # the only form that the runtime knows
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        ort.InferenceSession(ir.to_proto(subject).SerializeToString(), options)
        optimised = onnx.load(tmp_path / "optimised.onnx")
        assert [node.op_type for node in optimised.graph.node] == ["Gelu"]


@pytest.mark.parametrize(
    "nodes",
    [
        "d = Div (x, root) e = Erf (d) g = Add (e, one) h = Mul (one, g) y = Mul (x, h)",
        "d = Div (z, root) e = Erf (d) g = Add (e, one) h = Mul (half, g) y = Mul (x, h)",
        "d = Div (x, root) e = Erf (d) g = Add (e, half) h = Mul (half, g) y = Mul (x, h)",
        "d = Div (x, root) e = Tanh (d) g = Add (e, one) h = Mul (half, g) y = Mul (x, h)",
    ],
    ids=["no half", "of another tensor", "no one", "another function"],
)
def test_what_is_no_gelu_stays(nodes: str) -> None:
    body = f"(float[2, 8] x, float[2, 8] z) => (float[2, 8] y) {{ {nodes} }}"
    given = {"root": ROOT_2, "one": np.float32(1), "half": np.float32(0.5)}
    subject = model(
        body, {name: given[name] for name in given if f"{name})" in body or f"({name}," in body}
    )
    assert not PASSES["gelu"].apply(subject)


# resize


def resized(sizes: list[int], attributes: str, kept: str = "start = 0, end = 2") -> ir.Model:
    body = f"""(float[n, 3, 6, 8] x) => (float[n, c, h, w] y) {{
        s = Shape <{kept}> (x) t = Concat <axis = 0> (s, to)
        y = Resize <{attributes}> (x, , , t)
    }}"""
    return model(body, {"to": np.array(sizes, np.int64)})


@pytest.mark.parametrize("sizes", [[12, 16], [3, 24], [9, 10], [6, 8]])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
@pytest.mark.parametrize("rule", ["half_pixel", "asymmetric", "align_corners"])
def test_a_resize_to_exact_multiples_is_by_constant_scales(
    sizes: list[int], mode: str, rule: str
) -> None:
    subject = resized(sizes, f'mode = "{mode}", coordinate_transformation_mode = "{rule}"')
    feeds = {"x": floats(2, 3, 6, 8)}
    both = (PASSES["resize_scales"], PASSES["dead_code"])
    assert apply(subject, *both, feeds=feeds, reference=runtime) == ["Resize"]
    assert not any(subject.graph[0].inputs[3:]), "no sizes are left"


@pytest.mark.parametrize(
    ("sizes", "attributes", "kept"),
    [
        ([7, 8], 'mode = "linear"', "start = 0, end = 2"),
        ([12, 16], 'keep_aspect_ratio_policy = "not_larger"', "start = 0, end = 2"),
        ([12, 16], 'mode = "linear"', "start = 1, end = 3"),
        ([12, 16], "axes = [2, 3]", "start = 0, end = 2"),
    ],
    ids=["no exact factor", "another policy", "other sizes", "some axes"],
)
def test_other_resizes_stay(sizes: list[int], attributes: str, kept: str) -> None:
    assert not PASSES["resize_scales"].apply(resized(sizes, attributes, kept))


# nodes that do nothing

SAME = {
    "Identity (a)": "float[2, 4, 6, 6]",
    "Dropout (a)": "float[2, 4, 6, 6]",
    "Cast <to = 1> (a)": "float[2, 4, 6, 6]",
    "Reshape (a, same)": "float[2, 4, 6, 6]",
    "Expand (a, same)": "float[2, 4, 6, 6]",
    "Transpose <perm = [0, 1, 2, 3]> (a)": "float[2, 4, 6, 6]",
    "Concat <axis = 1> (a)": "float[2, 4, 6, 6]",
    "Max (a)": "float[2, 4, 6, 6]",
    "Add (a, zero)": "float[2, 4, 6, 6]",
    "Add (zero, a)": "float[2, 4, 6, 6]",
    "Sub (a, zero)": "float[2, 4, 6, 6]",
    "Mul (one, a)": "float[2, 4, 6, 6]",
    "Div (a, one)": "float[2, 4, 6, 6]",
}
SMALL = {
    "same": np.array([2, 4, 6, 6]),
    "zero": np.zeros((1, 1), np.float32),
    "one": np.ones((), np.float32),
    "five": np.ones((1, 1, 1, 1, 1), np.float32),
}


@pytest.mark.parametrize("node", SAME)
def test_a_node_that_does_nothing_goes(node: str) -> None:
    kind = SAME[node]
    inside = f"({kind} x) => ({kind} y) {{ a = Relu (x) b = {node} y = Neg (b) }}"
    assert apply(model(inside, SMALL), PASSES["no_ops"], feeds=IMAGE) == ["Relu", "Neg"]
    at_the_end = f"({kind} x) => ({kind} y) {{ a = Relu (x) y = {node} }}"
    assert apply(model(at_the_end, SMALL), PASSES["no_ops"], feeds=IMAGE) == ["Relu"]


@pytest.mark.parametrize(
    "node",
    [
        "Sub (zero, a)",
        "Div (one, a)",
        "Mul (a, zero)",
        "Add (a, one)",
        "Transpose <perm = [0, 1, 3, 2]> (a)",
        "Reshape (a, flat)",
        "Add (a, five)",
        "Mul (a, five)",
        "Concat <axis = 1> (a, a)",
        "Cast <to = 11> (a)",
    ],
)
def test_a_node_that_does_something_stays(node: str) -> None:
    body = f"(float[2, 4, 6, 6] x) => (y) {{ a = Relu (x) y = {node} }}"
    proto_body = body.replace("=> (y)", "=> (float[N] y)")
    weights = {**SMALL, "flat": np.array([2, -1])}
    parsed = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]> g {proto_body}')
    del parsed.graph.output[0].type.tensor_type.shape.dim[:]
    parsed.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in weights.items()
    )
    parsed.graph.output[0].ClearField("type")
    assert not PASSES["no_ops"].apply(ir.from_proto(onnx.shape_inference.infer_shapes(parsed)))


@pytest.mark.parametrize(
    "body",
    [
        # between input and output, between weight and output, and between two outputs
        "(float[2] x) => (float[2] y) { y = Identity (x) }",
        "(float[2] x) => (float[2] y, float[2] z) { y = Identity (two) z = Relu (x) }",
        "(float[2] x) => (float[2] y, float[2] z) { y = Relu (x) z = Identity (y) }",
        "(float[2] x) => (float[2] y, bool[2] m) { a = Relu (x) y, m = Dropout (a) }",
    ],
)
def test_a_node_that_an_output_needs_stays(body: str) -> None:
    assert not PASSES["no_ops"].apply(model(body, {"two": floats(2)}))


@pytest.mark.parametrize(("training", "left"), [(False, ["Relu"]), (True, ["Relu", "Dropout"])])
def test_dropout_goes_at_inference_only(left: list[str], *, training: bool) -> None:
    body = "(float[2] x) => (float[2] y) { a = Relu (x) y = Dropout (a, ratio, mode) }"
    subject = model(body, {"ratio": np.float32(0.5), "mode": np.array(training)})
    PASSES["no_ops"].apply(subject)
    assert [node.op_type for node in subject.graph] == left


# transposes and reshapes


@settings(deadline=None, max_examples=30)
@given(first=st.permutations(range(4)), second=st.permutations(range(4)))
def test_two_transposes_are_one_or_none(first: list[int], second: list[int]) -> None:
    body = f"""(float[2, 4, 6, 6] x) => (float[A, B, C, D] y) {{
        a = Relu (x)
        b = Transpose <perm = {list(first)}> (a)
        y = Transpose <perm = {list(second)}> (b) }}"""
    subject = model(body)
    expected = run(subject, IMAGE)[0]
    fusion.fuse(subject)
    np.testing.assert_array_equal(run(subject, IMAGE)[0], expected)
    cancels = [first[axis] for axis in second] == sorted(first)
    assert [n.op_type for n in subject.graph] == ["Relu"] + ["Transpose"] * (not cancels)


def test_a_transpose_whose_result_is_used_elsewhere_stays_for_that_user() -> None:
    body = """(float[2, 4, 6, 6] x) => (float[6, 6, 4, 2] y, float[6, 6, 4, 2] z) {
        b = Transpose <perm = [3, 2, 1, 0]> (x)
        z = Relu (b)
        c = Transpose <perm = [1, 0, 2, 3]> (b)
        y = Relu (c) }"""
    left = apply(model(body), PASSES["transposes"], PASSES["dead_code"], feeds=IMAGE)
    assert left.count("Transpose") == 2


@pytest.mark.parametrize("middle", ["Reshape (a, flat)", "Flatten (a)", "Unsqueeze (a, axis)"])
def test_a_reshape_before_a_reshape_goes(middle: str) -> None:
    body = f"""(float[2, 4, 6, 6] x) => (float[2, 8, 18] y) {{
        a = Relu (x) b = {middle} y = Reshape (b, last) }}"""
    weights = {
        "flat": np.array([-1, 4]),
        "axis": np.array([0]),
        "last": np.array([2, 8, 18]),
    }
    subject = model(body, weights)
    assert apply(subject, PASSES["reshapes"], PASSES["dead_code"], feeds=IMAGE) == [
        "Relu",
        "Reshape",
    ]


def test_a_reshape_that_copies_a_size_keeps_the_one_before_it() -> None:
    body = """(float[2, 4, 6, 6] x) => (float[8, 36] y) {
        a = Reshape (x, flat) y = Reshape (a, last) }"""
    weights = {"flat": np.array([8, 6, 6]), "last": np.array([0, -1])}
    assert not PASSES["reshapes"].apply(model(body, weights))


# constants, dead code


def test_what_depends_on_weights_alone_is_computed() -> None:
    body = """(float[2, 4] x) => (float[2, 4] y) {
        k = Constant <value = float[4] {1, 2, 3, 4}> ()
        a = Mul (w, k)
        b = Add (a, k)
        y = Add (x, b) }"""
    subject = model(body, {"w": floats(4)})
    left = apply(subject, PASSES["constants"], PASSES["dead_code"], feeds={"x": floats(2, 4)})
    assert left == ["Add"]
    assert len(subject.graph.initializers) == 1


def test_large_constants_stay_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "LARGEST", 100)
    body = "(float[1] x) => (float[N] y) { a = Expand (one, big) y = Mul (a, x) }"
    subject = model(body, {"one": np.ones(1, np.float32), "big": np.array([1000])})
    PASSES["constants"].apply(subject)
    assert [node.op_type for node in subject.graph] == ["Expand", "Mul"]


def test_a_quantised_weight_stays_quantised() -> None:
    body = """(float[2, 4] x) => (float[2, 4] y) {
        d = DequantizeLinear (q, s, z) y = Add (x, d) }"""
    weights = {"q": np.arange(4, dtype=np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    subject = model(body, weights)
    PASSES["constants"].apply(subject)
    assert [node.op_type for node in subject.graph] == ["DequantizeLinear", "Add"]


def test_what_no_output_needs_goes() -> None:
    body = """(float[2, 4] x, float[1] idle) => (float[2, 4] y) {
        a = Neg (x) b = Add (a, w) y = Relu (x) }"""
    subject = model(body, {"w": floats(4)})
    feeds = {"x": floats(2, 4), "idle": floats(1)}
    assert apply(subject, PASSES["dead_code"], feeds=feeds) == ["Relu"]
    assert not subject.graph.initializers
    assert [value.name for value in subject.graph.inputs] == ["x", "idle"]


# attributes and names


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_kernel_shape_is_written(op: str) -> None:
    body = f"(float[2, 4, 6, 6] x) => (float[2, 4, N, M] y) {{ y = {op} (x, w) }}"
    subject = model(body, {"w": floats(4, 4, 3, 1)})
    apply(subject, PASSES["kernel_shape"], feeds=IMAGE)
    assert subject.graph[0].attributes["kernel_shape"].as_ints() == (3, 1)


def test_kernel_shape_is_found_behind_dequantisation() -> None:
    body = """(float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y) {
        v = DequantizeLinear (w, s) y = Conv (x, v) }"""
    weights = {"w": np.ones((4, 4, 3, 3), np.int8), "s": np.float32(0.1)}
    subject = model(body, weights)
    value = subject.graph[0].outputs[0]
    value.shape = None
    PASSES["kernel_shape"].apply(subject)
    assert subject.graph[1].attributes["kernel_shape"].as_ints() == (3, 3)


def test_kernel_shape_of_an_unknown_weight_stays_unknown() -> None:
    body = (
        "(float[2, 4, 6, 6] x, float[O, I, H, W] w) => (float[2, N, H2, W2] y) { y = Conv (x, w) }"
    )
    assert not PASSES["kernel_shape"].apply(model(body))


def test_every_node_gets_a_name_of_its_own() -> None:
    body = "(float[2] x) => (float[2] y) { a = Relu (x) b = Relu (a) c = Neg (b) y = Neg (c) }"
    subject = model(body)
    for node, name in zip(subject.graph, ("", "same", "same", None), strict=True):
        node.name = name
    assert PASSES["unique_names"].apply(subject)
    assert [node.name for node in subject.graph] == ["Relu", "same", "same_1", "Neg"]
    assert not PASSES["unique_names"].apply(subject)


class Block(nn.Module):
    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


class Network(nn.Module):
    """Modules, functions, a module called twice, a sequential, a convolution transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Block(3, 4)
        self.stages = nn.Sequential(Block(4, 4), nn.Dropout(), Block(4, 4))
        self.up = nn.ConvTranspose2d(4, 4, 2, 2)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.stages(self.stem(x))
        y = self.stages[0](y) + y
        return self.fc(y.mean((2, 3))), torch.cat([self.up(y), self.up(y * 2)], 1)


@pytest.fixture(scope="module")
def exported() -> tuple[nn.Module, ir.Model]:
    import warnings

    torch.manual_seed(0)
    network = Network().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (torch.rand(2, 3, 16, 16),),
            dynamo=True,
            opset_version=19,
            input_names=["images"],
            output_names=["scores", "maps"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    assert program is not None
    fusion.fuse(program.model)
    return network, program.model


def test_an_exported_network_has_the_names_of_its_modules(
    exported: tuple[nn.Module, ir.Model],
) -> None:
    names = [node.name for node in exported[1].graph]
    assert len(set(names)) == len(names)
    for expected in (
        "stem.conv.Conv",
        "stem.Relu",
        "stages.0.conv.Conv",
        "stages.0.conv.Conv_1",
        "stages.2.Relu",
        "up.ConvTranspose",
        "up.ConvTranspose_1",
        "fc.Gemm",
        "Concat",
    ):
        assert expected in names


def test_an_exported_network_keeps_its_weights_names_and_outputs(
    exported: tuple[nn.Module, ir.Model],
) -> None:
    network, subject = exported
    named = {name for name in subject.graph.initializers if "." in name}
    assert named - set(network.state_dict()) <= {
        f"{block}.conv.{part}"
        for block in ("stem", "stages.0", "stages.2")
        for part in ("bias", "weight_bias", "weight_bias_1", "weight_1", "bias_1")
    }
    assert {"stem.conv.weight", "up.weight", "fc.bias"} <= named
    assert [value.name for value in subject.graph.outputs] == ["scores", "maps"]
    inner = [value for node in subject.graph for value in node.outputs]
    assert all(v.is_graph_output() or str(v.name).endswith("_out") for v in inner)


def test_no_trace_of_the_exporting_machine_is_left(exported: tuple[nn.Module, ir.Model]) -> None:
    text = ir.to_proto(exported[1]).SerializeToString()
    assert b"test_passes.py" not in text
    assert b"pkg.torch" not in text
    assert b"pkg.onnxscript" not in text


def test_an_exported_network_computes_what_torch_does(
    exported: tuple[nn.Module, ir.Model],
) -> None:
    network, subject = exported
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = network(images)
    for ours, theirs in zip(run(subject, {"images": images.numpy()}), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)
    assert not {"BatchNormalization", "Dropout", "Identity"} & {n.op_type for n in subject.graph}


@pytest.mark.parametrize("scopes", ["not python (", "17", "[]", "['', 'a.b', 'relu']"])
def test_odd_notes_of_an_exporter_do_no_harm(scopes: str) -> None:
    subject = model("(float[2] x) => (float[2] y) { y = Relu (x) }")
    subject.graph[0].metadata_props["pkg.torch.onnx.name_scopes"] = scopes
    assert PASSES["module_names"].apply(subject)
    assert subject.graph[0].name == ("a.b.Relu" if "a.b" in scopes else "Relu")
    assert not subject.graph[0].metadata_props


# subgraphs


def test_rewrites_reach_into_subgraphs_and_keep_their_meaning() -> None:
    body = """(float[2, 4, 6, 6] x, bool c) => (float[2, 4, 6, 6] y) {
        y = If (c) <
            then_branch = t () => (float[2, 4, 6, 6] p) { i = Identity (x) p = Relu (i) },
            else_branch = e () => (float[2, 4, 6, 6] q) { q = Identity (x) }
        > }"""
    for choice in (True, False):
        feeds = {**IMAGE, "c": np.array(choice)}
        subject = model(body)
        apply(subject, PASSES["no_ops"], PASSES["unique_names"], feeds=feeds)
        inner = [node.name for node in graphs.nodes(subject)]
        assert sorted(map(str, inner)) == ["Identity", "If", "Relu"]


def test_weights_in_subgraphs_stay() -> None:
    body = f"""(float[2, 4, 6, 6] x, bool t) => (float[2, 4, 4, 4] y) {{
        y = If (t) <
            then_branch = one () => (float[2, 4, 4, 4] p) {{ c = Conv (x, w) p = {NORM} }},
            else_branch = two () => (float[2, 4, 4, 4] q) {{ q = Conv (x, w) }}
        > }}"""
    subject = model(body, {"w": floats(4, 4, 3, 3), **statistics(4)})
    assert not PASSES["batch_norm"].apply(subject)


def test_local_functions_keep_their_meaning() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 9, opset_import: ["" : 19, "own" : 1]>
        g (float[2] x) => (float[2] y) { y = own.Twice (x) }
        <domain: "own", opset_import: ["" : 19]>
        Twice (a) => (b) { i = Identity (a) b = Add (i, a) }
    """)
    subject = ir.from_proto(proto)
    fusion.fuse(subject)
    assert [node.op_type for node in subject.graph] == ["Twice"]
    np.testing.assert_array_equal(run(subject, {"x": floats(2)})[0], 2 * floats(2))
