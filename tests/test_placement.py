from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from deploykit.data.preprocess import Preprocess
from deploykit.errors import InputError, ModelError, OptionError
from deploykit.precision.placement import (
    Kinds,
    Placement,
    activations,
    default_plan,
    place,
    read_plan,
    write_plan,
)
from deploykit.recipes.metadata import ModelCard
from deploykit.recipes.recipe import KeepFloat
from deploykit.values import Precision, PrecisionPlan

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx_ir as ir

    Graph = Callable[..., ir.Model]

INT8 = PrecisionPlan(Precision.INT8)
CONV = "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>"
POOL = "MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>"
W = (16, 16, 3, 3)
HEAD = "(float[N,16,8,8] x) => (float[N,c,h,w] y)"


def readers(placed: Placement) -> dict[str, set[tuple[str, int]]]:
    found: dict[str, set[tuple[str, int]]] = {}
    for activation in placed.activations:
        found.setdefault(activation.tensor, set()).update(activation.readers)
    return found


def ranges(placed: Placement) -> dict[tuple[str, int], str]:
    """Return each reader -> the tensors whose range it reads with."""
    return {r: "".join(a.ranges) for a in placed.activations for r in a.readers}


def placed(graph: Graph, body: str, plan: PrecisionPlan = INT8, **weights: Any) -> Placement:
    return place(graph(f"{HEAD} {{ {body} }}", **weights), plan)


def test_every_convolution_reads_int8_behind_the_activation_function(graph: Graph) -> None:
    found = placed(
        graph,
        f"[c1] a = {CONV}(x, w1) [r1] b = Relu(a) [c2] y = {CONV}(b, w2)",
        w1=W,
        w2=W,
    )
    assert readers(found) == {"x": {("c1", 0)}, "b": {("c2", 0)}}
    assert [(w.tensor, w.node, w.axis) for w in found.weights] == [
        ("w1", "c1", 0),
        ("w2", "c2", 0),
    ]
    assert not found.kept


@pytest.mark.parametrize(
    "gate",
    [
        "[g] s = Sigmoid(a) [m] b = Mul(a, s)",
        "[g] s = HardSigmoid(a) [m] b = Mul(s, a)",
        "[g1] t = Add(a, three) [g2] u = Clip(t, zero, six) [g3] s = Div(u, six) [m] b = Mul(a, s)",
    ],
)
def test_an_activation_written_as_a_product_stays_whole(graph: Graph, gate: str) -> None:
    found = placed(
        graph,
        f"[c1] a = {CONV}(x, w1) {gate} [c2] y0 = {CONV}(b, w2) [c3] y1 = {CONV}(a, w3) "
        "[last] y = Add(y0, y1)",
        w1=W,
        w2=W,
        w3=W,
        three=np.float32(3),
        zero=np.float32(0),
        six=np.float32(6),
    )
    assert readers(found)["a"] == {("c3", 0)}  # the product reads a in float
    assert readers(found)["b"] == {("c2", 0)}


def test_an_add_reads_its_skip_input_in_int8_and_its_main_input_in_float(graph: Graph) -> None:
    found = placed(
        graph,
        f"[c1] a = {CONV}(x, w1) [r1] b = Relu(a) [c2] c = {CONV}(b, w2) "
        f"[add] d = Add(c, x) [r2] e = Relu(d) [c3] y = {CONV}(e, w3)",
        w1=W,
        w2=W,
        w3=W,
    )
    assert readers(found)["x"] == {("c1", 0), ("add", 1)}
    assert "c" not in readers(found)


def test_a_skip_through_a_resize_is_int8_on_both_sides_of_it(graph: Graph) -> None:
    found = placed(
        graph,
        f"[c1] top = {CONV}(x, w1) [r] act = Relu(top) [c2] out = {CONV}(act, w2) "
        "[up] same = Resize(act, , scales) [add] y = Add(out, same)",
        w1=W,
        w2=W,
        scales=np.array([1, 1, 1, 1], np.float32),
    )
    assert readers(found)["act"] == {("c2", 0), ("up", 0)}
    assert readers(found)["same"] == {("add", 1)}
    assert activations(found) == ("act", "x")


def test_of_two_layers_that_are_added_the_shorter_branch_is_read_in_int8(graph: Graph) -> None:
    found = placed(
        graph,
        f"[c1] a = {CONV}(x, w1) [r] b = Relu(a) [c2] main = {CONV}(b, w2) "
        f"[short] skip = {CONV}(x, w3) [add] y = Add(skip, main)",
        w1=W,
        w2=W,
        w3=W,
    )
    assert readers(found)["skip"] == {("add", 0)}
    assert "main" not in readers(found)


def test_a_scaled_skip_is_scaled_from_the_int8_copy(graph: Graph) -> None:
    found = placed(
        graph,
        f"[c1] a = {CONV}(x, w1) [scale] s = Mul(x, alpha) [add] y = Add(a, s)",
        w1=W,
        alpha=np.float32(0.7),
    )
    assert readers(found) == {"x": {("c1", 0), ("scale", 0)}}


def test_an_add_of_a_constant_reads_float(graph: Graph) -> None:
    found = placed(graph, f"[c1] a = {CONV}(x, w1) [add] y = Add(x, b)", w1=W, b=(16, 1, 1))
    assert readers(found) == {"x": {("c1", 0)}}


def test_all_that_meets_in_a_concat_shares_one_scale_there_and_has_its_own_elsewhere(
    graph: Graph,
) -> None:
    found = placed(
        graph,
        f"[c1] a = {CONV}(x, w1) [r1] b = Relu(a) [c2] c = {CONV}(x, w2) [r2] d = Relu(c) "
        f"[cat] e = Concat<axis=1>(b, d) [c3] f = {CONV}(e, w3) [c4] g = {CONV}(d, w4) "
        "[last] y = Add(f, g)",
        w1=W,
        w2=W,
        w3=(16, 32, 3, 3),
        w4=W,
    )
    assert readers(found)["b"] == {("cat", 0)}
    assert readers(found)["d"] == {("cat", 1), ("c4", 0)}
    assert readers(found)["e"] == {("c3", 0)}
    assert ranges(found) == {
        ("last", 1): "g",
        ("cat", 0): "bd",
        ("cat", 1): "bd",
        ("c3", 0): "bd",
        ("c4", 0): "d",
        ("c1", 0): "x",
        ("c2", 0): "x",
    }
    assert "e" not in activations(found)


def test_a_tensor_in_two_concats_has_the_scale_of_each_there(graph: Graph) -> None:
    found = placed(
        graph,
        "[r1] a = Relu(x) [r2] b = Tanh(x) [r3] c = Sigmoid(x) "
        "[k1] d = Concat<axis=1>(a, b) [k2] e = Concat<axis=1>(b, c) "
        f"[c1] f = {CONV}(d, w1) [c2] g = {CONV}(e, w2) [last] y = Add(f, g)",
        w1=(16, 32, 3, 3),
        w2=(16, 32, 3, 3),
    )
    wanted = {("k1", 0): "ab", ("k1", 1): "ab", ("k2", 0): "bc", ("k2", 1): "bc"}
    assert ranges(found) == {**wanted, ("c1", 0): "ab", ("c2", 0): "bc", ("last", 1): "g"}


def test_a_chain_of_pools_takes_the_range_of_its_first_input(graph: Graph) -> None:
    found = placed(
        graph,
        f"[r] a = Relu(x) [p1] b = {POOL}(a) [p2] c = {POOL}(b) [cat] d = Concat<axis=1>(a, b, c) "
        f"[c1] y = {CONV}(d, w1)",
        w1=(16, 48, 3, 3),
    )
    assert activations(found) == ("a",)
    assert {a.ranges for a in found.activations} == {("a",)}
    assert readers(found)["a"] == {("p1", 0), ("cat", 0)}


def test_a_pool_before_a_concat_takes_the_scale_of_its_only_reader(graph: Graph) -> None:
    body = (
        f"[r1] a = Relu(x) [r2] b = Tanh(x) [p] c = {POOL}(a) [k] d = Concat<axis=1>(c, b) "
        f"[c1] y0 = {CONV}(d, w1) "
    )
    weights: dict[str, Any] = {"w1": (16, 32, 3, 3), "w2": W}
    alone = placed(graph, f"{body} [last] y = Relu(y0)", **weights)
    assert ranges(alone)["p", 0] == ranges(alone)["k", 0] == "ab"
    also_read = placed(graph, f"{body} [c2] y1 = {CONV}(c, w2) [last] y = Add(y0, y1)", **weights)
    assert ranges(also_read)["p", 0] == ranges(also_read)["c2", 0] == "a"
    assert ranges(also_read)["k", 0] == "ab"


def test_a_concat_in_another_one_has_its_own_scale_for_its_other_readers(graph: Graph) -> None:
    found = placed(
        graph,
        "[r1] a = Relu(x) [r2] b = Tanh(x) [r3] c = Sigmoid(x) "
        "[k1] d = Concat<axis=1>(a, b) [k2] e = Concat<axis=1>(d, c) "
        f"[c1] f = {CONV}(d, w1) [c2] g = {CONV}(e, w2) [last] y = Add(f, g)",
        w1=(16, 32, 3, 3),
        w2=(16, 48, 3, 3),
    )
    assert ranges(found)["c1", 0] == ranges(found)["k1", 0] == "ab"
    assert ranges(found)["c2", 0] == ranges(found)["k2", 0] == ranges(found)["k2", 1] == "abc"


MOVERS = {
    "pool": f"[m] b = {POOL}(a)",
    "shuffle": "[m] b = Transpose<perm=[0,1,3,2]>(a)",
    "reshape": "[m] b = Reshape(a, same)",
    "slice": "[m] b = Slice(a, start, end, axis)",
    "split": "[s] b0, b1 = Split<axis=1>(a, halves) [m] b = Concat<axis=1>(b1, b0)",
    "concat": "[m] b = Concat<axis=1>(a)",
    "resize": "[m] b = Resize(a, , scales)",
}
FLOAT_READERS = {
    "a layer that a plan keeps": "[f] d = Conv<group=16, kernel_shape=[1,1]>(b, w2)",
    "an activation": "[f] d = Sigmoid(b)",
    "a softmax behind another move": "[t] t = Transpose(b) [f] d = Softmax(t)",
}


@pytest.mark.parametrize("reader", FLOAT_READERS)
@pytest.mark.parametrize("mover", MOVERS)
def test_what_a_float_reader_needs_too_is_moved_in_float(
    graph: Graph, mover: str, reader: str
) -> None:
    found = placed(
        graph,
        f"[r] a = Relu(x) {MOVERS[mover]} [c] y0 = {CONV}(b, w1) {FLOAT_READERS[reader]} "
        "[last] y = Concat<axis=1>(y0, d)",
        PrecisionPlan(Precision.INT8, {"f": Precision.FP16}),
        w1=W,
        w2=(16, 1, 1, 1),
        same=np.array([-1, 16, 8, 8], np.int64),
        start=np.array([0], np.int64),
        end=np.array([16], np.int64),
        axis=np.array([1], np.int64),
        halves=np.array([8, 8], np.int64),
        scales=np.ones(4, np.float32),
    )
    assert readers(found) == {"b": {("c", 0)}}


def test_a_moved_tensor_that_is_an_output_stays_exact(graph: Graph) -> None:
    body = f"[r] a = Relu(x) [p] b = {POOL}(a) [c] y = {CONV}(b, w1)"
    model = graph(
        f"(float[N,16,8,8] x) => (float[N,16,8,8] b, float[N,16,8,8] y) {{ {body} }}", w1=W
    )
    assert readers(place(model, INT8)) == {"b": {("c", 0)}}


def test_a_reader_of_the_shape_alone_keeps_nothing_in_float(graph: Graph) -> None:
    body = f"[p] b = {POOL}(x) [s] s = Shape(b) [c] y0 = {CONV}(b, w1) [r] y = Reshape(y0, s)"
    assert readers(placed(graph, body, w1=W)) == {"x": {("p", 0)}, "b": {("c", 0)}}


def test_a_product_in_a_branch_reads_float(graph: Graph) -> None:
    branch = "() => (float[N,16,8,8] {0}) {{ [{0}] {0} = Mul(x, two) }}"
    found = placed(
        graph,
        f"[c] y0 = {CONV}(x, w1) [i] b = If<then_branch = g {branch.format('t')}, "
        f"else_branch = h {branch.format('e')}>(yes) [last] y = Add(y0, b)",
        w1=W,
        two=np.float32(2),
        yes=np.array(True),
    )
    assert readers(found) == {"x": {("c", 0)}}


def test_only_a_nearest_resize_passes_int8(graph: Graph) -> None:
    scales = np.array([1, 1, 2, 2], np.float32)
    for mode, passes in (("nearest", True), ("linear", False)):
        body = f'[r] a = Relu(x) [up] b = Resize<mode="{mode}">(a, , s) [c] y = {CONV}(b, w1)'
        assert ("a" in readers(placed(graph, body, w1=W, s=scales))) == passes


def test_what_is_moved_to_float_readers_only_stays_float(graph: Graph) -> None:
    found = placed(
        graph,
        f"[c1] a = {CONV}(x, w1) [move] b = Transpose(x) [soft] c = Softmax(b) "
        "[back] d = Transpose(c) [last] y = Add(a, d)",
        w1=W,
    )
    assert readers(found) == {"x": {("c1", 0)}}


@pytest.mark.parametrize(
    ("body", "weights", "rule"),
    [
        ("[l] y = MatMul(x, x)", {}, 1),
        (
            "[l] y = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(x, w)",
            {"w": (16, 16, 2, 2)},
            2,
        ),
        (f"[f] a = {CONV}(x, v) [l] y = {CONV}(a, w)", {"v": W, "w": (8, 16, 3, 3)}, 3),
        (f"[f] a = {CONV}(x, v) [l] y = {CONV}(a, w)", {"v": (8, 16, 3, 3), "w": (16, 8, 3, 3)}, 3),
        (
            "[f] a = Reshape(x, s) [l] b = Gemm<transB=1>(a, w) [z] y = Relu(b)",
            {"w": (32, 1024)},
            5,
        ),
        ("[f] a = Reshape(x, s) [l] y = MatMul(a, w)", {"w": (1024,)}, 3),
    ],
)
def test_a_layer_that_stays_float_says_which_rule_keeps_it(
    graph: Graph, body: str, weights: dict[str, tuple[int, ...]], rule: int
) -> None:
    model = graph(
        f"(float[1,16,8,8] x) => (float[1,c,h,w] y) {{ {body} }}",
        s=np.array([1, 1024], np.int64),
        **weights,
    )
    ShapeInferencePass(strict_mode=False, check_type=False)(model)
    found = place(model, INT8)
    assert found.kept["l"].startswith(f"rule {rule}: ")
    assert "l" not in {w.node for w in found.weights}


GROUPED = (
    "[l] a = Conv<group=16, kernel_shape=[1,1]>(x, w1) "
    "[m] b = Conv<group=8, kernel_shape=[1,1]>(a, w2) [n] y = Conv<kernel_shape=[1,1]>(b, w3)"
)
GROUPED_WEIGHTS = {"w1": (16, 1, 1, 1), "w2": (16, 2, 1, 1), "w3": (8, 16, 1, 1)}


@pytest.mark.parametrize(
    ("kinds", "int8"),
    [
        (Kinds(), {"l", "m"}),
        (Kinds(target_sm=86), {"l", "m"}),
        (Kinds(target_sm=75), set[str]()),
        (Kinds(float_=["grouped"]), set[str]()),
        (Kinds(int8=["grouped"], target_sm=75), {"l", "m"}),
        (Kinds(int8=["narrow"]), {"l", "m", "n"}),
        (Kinds(int8=["all"], target_sm=75), {"l", "m", "n"}),
        (Kinds(int8=["all"], float_=["grouped"]), {"n"}),
    ],
)
def test_depthwise_and_grouped_layers_are_int8_but_on_turing_or_where_asked(
    graph: Graph, kinds: Kinds, int8: set[str]
) -> None:
    weights: dict[str, Any] = {**GROUPED_WEIGHTS, "w0": W}
    model = graph(
        f"{HEAD} {{ [first] x1 = {CONV}(x, w0) {GROUPED.replace('(x', '(x1')} }}", **weights
    )
    found = place(model, default_plan(model, None, kinds))
    assert {w.node for w in found.weights} == {"first", *int8}
    for name in {"l", "m"} - int8:
        assert found.kept[name].startswith("rule 4: channels per group are no multiple of 4")


SQUEEZE = (
    f"[c1] a = {CONV}(x, w1) [pool] p = POOL [down] q = Conv<kernel_shape=[1,1]>(p, w2) "
    "[r] t = Relu(q) [up] u = Conv<kernel_shape=[1,1]>(t, w2) [gate] g = HardSigmoid(u) "
    f"[m] b = Mul(a, g) [c2] y = {CONV}(b, w1)"
)


@pytest.mark.parametrize(
    "pool", ["GlobalAveragePool(a)", "ReduceMean<keepdims=1>(a, axes)", "ReduceMean<axes=[2,3]>(a)"]
)
def test_what_reads_pooled_values_is_float_where_asked(graph: Graph, pool: str) -> None:
    model = graph(
        f"{HEAD} {{ {SQUEEZE.replace('POOL', pool)} }}",
        w1=W,
        w2=(16, 16, 1, 1),
        axes=np.array([-1, -2], np.int64),
    )
    found = place(model, default_plan(model, None, Kinds(float_=["squeeze"])))
    assert {w.node for w in found.weights} == {"c1", "c2"}
    assert found.kept["down"].startswith("rule 12: ")
    assert {w.node for w in place(model, INT8).weights} == {"c1", "down", "up", "c2"}


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        ("[h] y = Gemm(b, w2)", True),
        ("[h] c = MatMul(b, w2) [add] d = Add(c, bias) [end] y = Softmax(d)", True),
        ("[h] c = Gemm(b, w2) [end] y = Relu(c)", False),
        ("[h] c = Gemm(b, w2) [end] y = Mul(c, b)", False),
        ("[h] c = MatMul(b, w2) [n] d = Reshape(c, rows) [end] y = MatMul(d, w2)", False),
    ],
)
def test_the_layer_that_gives_the_scores_is_float(
    graph: Graph,
    head: str,
    kept: bool,  # noqa: FBT001 - of pytest
) -> None:
    body = f"[c] a = {CONV}(x, w1) [p] m = GlobalAveragePool(a) [f] b = Flatten(m) {head}"
    model = graph(
        f"(float[N,16,8,8] x) => (float[N,16] y) {{ {body} }}",
        w1=W,
        w2=(16, 16),
        bias=(16,),
        rows=np.array([-1, 16], np.int64),
    )
    found = place(model, INT8)
    assert found.kept.get("h", "").startswith("rule 14: ") is kept
    assert ("h" in {w.node for w in found.weights}) is not kept
    asked = place(model, default_plan(model, None, Kinds(int8=["scores"])))
    assert "h" in {w.node for w in asked.weights}


def test_a_kind_of_layer_that_is_unknown_or_asked_for_both_ways_is_refused() -> None:
    with pytest.raises(OptionError, match="unknown kind of layer 'grupped'") as caught:
        Kinds(int8=["grupped"])
    assert "did you mean grouped?" in str(caught.value)
    with pytest.raises(OptionError, match="unknown kind of layer 'all'"):
        Kinds(float_=["all"])
    with pytest.raises(OptionError, match="'narrow' are asked for in INT8 and in float"):
        Kinds(int8=["narrow"], float_=["narrow"])


def test_a_card_goes_before_the_kinds_of_layers(graph: Graph) -> None:
    model = graph(f"{HEAD} {{ {GROUPED} }}", **GROUPED_WEIGHTS)
    keep = KeepFloat("^m$", "scores", Precision.FP32)
    plan = default_plan(model, card(keep), Kinds(int8=["all"]))
    assert plan.layers == {"m": Precision.FP32, "n": Precision.INT8}
    assert plan.reasons == {"m": "scores"}


PACKED = {
    "split": "[s] q, k, v = Split<axis=3>(c, thirds)",
    "slices": "[s1] q = Slice(c, n0, n16, last) [s2] k = Slice(c, n16, n32, last) "
    "[s3] v = Slice(c, n32, n48, last)",
    "gathers": "[r] r = Reshape(c, five) [g1] q = Gather<axis=3>(r, i0) "
    "[g2] k = Gather<axis=3>(r, i1) [g3] v = Gather<axis=3>(r, i2)",
}


@pytest.mark.parametrize("taken", PACKED)
def test_a_product_that_is_taken_apart_is_int8_behind_its_bias(graph: Graph, taken: str) -> None:
    model = graph(
        f"{HEAD} {{ [l] a = MatMul(x, w) [add] c = Add(bias, a) {PACKED[taken]} "
        "[t] kt = Transpose<perm=[0,1,3,2]>(k) [qk] d = MatMul(q, kt) [soft] e = Softmax(d) "
        "[pv] y = MatMul(e, v) }",
        w=(8, 48),
        bias=(48,),
        thirds=np.array([16, 16, 16], np.int64),
        five=np.array([0, 16, 8, 3, 16], np.int64),
        last=np.array([3], np.int64),
        **{f"n{n}": np.array([n], np.int64) for n in (0, 16, 32, 48)},
        **{f"i{n}": np.array(n, np.int64) for n in range(3)},
    )
    plan = PrecisionPlan(Precision.INT8, {"l": Precision.INT8})
    found = place(model, plan)
    first = {"split": {"s"}, "slices": {"s1", "s2", "s3"}, "gathers": {"r"}}[taken]
    assert readers(found) == {"x": {("l", 0)}, "c": {(name, 0) for name in first}}
    assert set(found.kept) == {"qk", "pv"}


@pytest.mark.parametrize("kinds", [Kinds(int8=["computed"]), Kinds(int8=["all"])])
def test_products_of_attention_are_int8_where_asked(graph: Graph, kinds: Kinds) -> None:
    model = graph(
        f"{HEAD} {{ [a] q = Relu(x) [t] k = Transpose<perm=[0,1,3,2]>(x) [qk] d = MatMul(q, k) "
        "[soft] e = Softmax(d) [pv] y = MatMul(e, x) }"
    )
    found = place(model, default_plan(model, None, kinds))
    assert readers(found) == {
        "q": {("qk", 0)},
        "x": {("t", 0), ("pv", 1)},
        "k": {("qk", 1)},
        "e": {("pv", 0)},
    }
    assert not found.weights
    assert not found.kept


def test_a_product_that_has_qdq_already_is_left_alone(graph: Graph) -> None:
    model = graph(
        f"{HEAD} {{ [q] a = QuantizeLinear(x, s, z) [d] b = DequantizeLinear(a, s, z) "
        "[w] c = DequantizeLinear(w, s, z) [l] y = MatMul(b, c) }",
        s=np.float32(0.1),
        z=np.int8(0),
        w=np.ones((8, 8), np.int8),
    )
    plan = default_plan(model, None, Kinds(int8=["all"]))
    assert not place(model, plan).activations


def test_a_product_that_is_read_whole_is_not_rounded_behind_its_bias(graph: Graph) -> None:
    body = "[l] a = MatMul(x, w) [add] b = Add(a, bias) [r] c = Reshape(b, same) [s] y = Softmax(c)"
    model = graph(f"{HEAD} {{ {body} }}", w=(8, 48), bias=(48,), same=np.zeros(4, np.int64))
    found = place(model, PrecisionPlan(Precision.INT8, {"l": Precision.INT8}))
    assert readers(found) == {"x": {("l", 0)}}


@pytest.mark.parametrize(
    ("pad", "passes"),
    [
        ("Pad(a, pads)", True),
        ("Pad(a, pads, zero)", True),
        ('Pad<mode="reflect">(a, pads)', True),
        ("Pad(a, pads, one)", False),
    ],
)
def test_a_pad_passes_int8_where_it_adds_zeros_or_what_is_there(
    graph: Graph, pad: str, *, passes: bool
) -> None:
    found = placed(
        graph,
        f"[r] a = Relu(x) [p] b = {pad} [c] y = {CONV}(b, w1)",
        w1=W,
        pads=np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        zero=np.float32(0),
        one=np.float32(1),
    )
    assert ("a" in readers(found)) == passes


def test_the_first_convolution_is_int8_whatever_its_channels(graph: Graph) -> None:
    model = graph(
        f"(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ [norm] a = Mul(x, k) [c] y = {CONV}(a, w) }}",
        w=(8, 3, 3, 3),
        k=np.float32(1 / 255),
    )
    assert [w.node for w in place(model, INT8).weights] == ["c"]


def test_a_plan_that_names_a_layer_overrides_a_rule_of_taste_but_no_impossibility(
    graph: Graph,
) -> None:
    deconv = "[l] y = ConvTranspose<kernel_shape=[2,2], strides=[2,2]>(x, w)"
    plan = PrecisionPlan(Precision.INT8, {"l": Precision.INT8})
    found = placed(graph, deconv, plan, w=(16, 16, 2, 2))
    assert [(w.node, w.axis) for w in found.weights] == [("l", None)]
    moving = "[v] w = Relu(x) [l] y = Conv<kernel_shape=[8,8]>(x, w)"
    assert placed(graph, moving, plan).kept["l"].startswith("rule 1")


def test_a_plan_may_start_from_float_and_name_the_int8_layers(graph: Graph) -> None:
    body = f"[p] a = {POOL}(x) [c1] b = {CONV}(a, w1) [c2] y = {CONV}(b, w2)"
    plan = PrecisionPlan(Precision.FP16, {"c1": Precision.INT8})
    found = placed(graph, body, plan, w1=W, w2=W)
    assert readers(found) == {"a": {("c1", 0)}, "x": {("p", 0)}}
    assert found.kept == {"c2": "the plan says fp16"}


def test_a_layer_that_the_plan_keeps_reads_float_and_gives_the_plans_reason(graph: Graph) -> None:
    body = f"[c1] a = {CONV}(x, w1) [m] b = Mul(x, k) [c2] c = {CONV}(x, w2) [last] y = Add(a, c)"
    plan = PrecisionPlan(
        Precision.INT8, {"c1": Precision.FP16, "m": Precision.FP32}, {"c1": "it is sensitive"}
    )
    found = placed(graph, body, plan, w1=W, w2=W, k=np.float32(2))
    assert readers(found) == {"x": {("c2", 0)}}
    assert found.kept == {"c1": "it is sensitive"}


@pytest.mark.parametrize(
    ("op", "shape", "axis"),
    [("Gemm<transB=1>", (32, 16), 0), ("Gemm", (16, 32), 1), ("MatMul", (16, 32), 1)],
)
def test_weights_of_a_product_have_one_scale_per_output_feature(
    graph: Graph, op: str, shape: tuple[int, int], axis: int
) -> None:
    model = graph(f"(float[N,16] x) => (float[N,32] y) {{ [l] y = {op}(x, w) }}", w=shape)
    assert [w.axis for w in place(model, INT8).weights] == [axis]


def test_a_plan_for_an_unknown_node_is_refused_with_the_nearest_name(graph: Graph) -> None:
    plan = PrecisionPlan(Precision.INT8, {"conv_1": Precision.FP16})
    with pytest.raises(OptionError, match="did you mean conv1"):
        placed(graph, f"[conv1] y = {CONV}(x, w1)", plan, w1=W)


def test_nodes_without_a_name_of_their_own_are_refused(graph: Graph) -> None:
    with pytest.raises(ModelError, match="stand twice, such as 'c'"):
        placed(graph, f"[c] a = {CONV}(x, w1) [c] y = {CONV}(a, w1)", w1=W)
    with pytest.raises(ModelError, match="1 node names are empty"):
        placed(graph, f"y = {CONV}(x, w1)", w1=W)


def test_a_weight_in_a_constant_node_is_constant(graph: Graph) -> None:
    values = ",".join(["0.5"] * (16 * 16))
    body = (
        f"[k] w = Constant<value = float[16,16,1,1] {{{values}}}>() "
        "[c] y = Conv<kernel_shape=[1,1]>(x, w)"
    )
    assert [w.node for w in placed(graph, body).weights] == ["c"]


def card(*keep: KeepFloat) -> ModelCard:
    return ModelCard("r", "v", "detection", Preprocess((8, 8)), ("a",), "0" * 64, keep)


def test_the_recipes_patterns_become_a_plan_with_reasons(graph: Graph) -> None:
    model = graph(
        f"{HEAD} {{ [head_pred_0] a = {CONV}(x, w1) [head_box] b = Relu(a) "
        f"[c] y = {CONV}(b, w1) }}",
        w1=W,
    )
    keep = (
        KeepFloat(r"_pred_\d", "scores"),
        KeepFloat(r"head", "boxes", Precision.FP32),
        KeepFloat("absent", "nothing"),
    )
    plan = default_plan(model, card(*keep))
    assert plan.default is Precision.INT8
    assert plan.layers == {"head_pred_0": Precision.FP16, "head_box": Precision.FP32}
    assert plan.reasons == {"head_pred_0": "scores", "head_box": "boxes"}
    assert default_plan(model, None) == INT8


def test_a_pattern_that_is_no_regular_expression_is_named(graph: Graph) -> None:
    model = graph(f"{HEAD} {{ [c] y = {CONV}(x, w1) }}", w1=W)
    with pytest.raises(ModelError, match=r"keep_float pattern '\('"):
        default_plan(model, card(KeepFloat("(", "broken")))


def test_a_plan_file_goes_over_the_recipes_plan(tmp_path: Path) -> None:
    own = PrecisionPlan(
        Precision.INT8, {"a": Precision.FP16, "b": Precision.FP32}, {"a": "scores", "b": "boxes"}
    )
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"layers": {"a": "int8", "c": "fp16"}, "reasons": {"c": "mine"}}))
    plan = read_plan(path, own)
    assert plan == PrecisionPlan(
        Precision.INT8,
        {"a": Precision.INT8, "b": Precision.FP32, "c": Precision.FP16},
        {"b": "boxes", "c": "mine"},
    )
    path.write_text('{"default": "fp16"}')
    assert read_plan(path, own).default is Precision.FP16


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"layers": {"a": "int4"}}', "layers.a is 'int4'"),
        ('{"layers": {"a": ["int8"]}}', "layers.a is a list"),
        ('{"layers": ["a"]}', "layers is a list"),
        ('{"reasons": 3}', "reasons is 3"),
        ('{"layer": {}}', "unknown key 'layer'"),
        ("{}", "neither 'layers' nor 'default'"),
        ('{"layers": {}, "layers": {}}', "'layers' stands twice"),
        ('{"layers": {}, "schema_version": 9}', "schema_version is 9"),
        ('{"model_sha256": "", "observer": "mse", "ranges": {}}', "is a calibration table"),
        ("[]", "it is a list"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_plan(path, INT8)


def test_a_plan_is_bound_to_its_model_and_to_the_names_of_its_nodes(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    plan = PrecisionPlan(Precision.INT8, {"conv1": Precision.FP16}, {"conv1": "narrow"})
    write_plan(path, plan, model_sha256="ab")
    assert read_plan(path, INT8, model_sha256="ab", nodes={"conv1"}) == plan
    with pytest.raises(InputError, match="made for another model"):
        read_plan(path, INT8, model_sha256="cd")
    with pytest.raises(InputError, match="unknown node in the plan 'conv1'") as caught:
        read_plan(path, INT8, nodes={"conv2", "relu"})
    assert "did you mean conv2?" in str(caught.value)
    path.write_text('{"layers": {}, "reasons": {"conv1": "why"}}')
    with pytest.raises(InputError, match="reason for 'conv1', whose precision"):
        read_plan(path, INT8)


@pytest.mark.parametrize("pattern", ["^(a+)+$", "(a|aa)+$", "(x+x+)+y", "(.*)*z"])
def test_no_pattern_of_a_card_takes_long(graph: Graph, pattern: str) -> None:
    name = "a" * 60 + "x" * 60 + "!"
    model = graph(f"{HEAD} {{ [c] y = {CONV}(x, w1) }}", w1=W)
    next(iter(model.graph)).name = name
    started = time.perf_counter()
    assert default_plan(model, card(KeepFloat(pattern, "why"))).layers == {}
    assert time.perf_counter() - started < 5
