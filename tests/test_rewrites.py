"""Rewritten graphs: right ones pass, wrong ones are refused, however narrow their outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from deploykit.backends import onnxruntime
from deploykit.data.preprocess import Preprocess
from deploykit.errors import ProofError
from deploykit.files import onnxfile
from deploykit.graph.passes import DEFAULT, per_node
from deploykit.pipeline import fusing
from deploykit.precision import float16, probing
from deploykit.precision.float16 import ranges
from deploykit.proof import acceptance, rewrites
from deploykit.recipes import metadata, opened
from deploykit.recipes.metadata import ModelCard

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Graph = Callable[..., ir.Model]

RNG = np.random.default_rng(0)
CONV = "Conv<kernel_shape=[3,3], pads=[1,1,1,1]>"
HEAD = "(float[N,3,8,8] images) => (float[N,3,8,8] y)"
PIXELS = Preprocess((8, 8), scale=1.0)


def norm(width: int = 8) -> dict[str, Any]:
    one = {name: RNG.uniform(0.5, 1.5, width).astype(np.float32) for name in ("g", "m", "v")}
    return {**one, "b": RNG.standard_normal(width).astype(np.float32)}


def saved(model: ir.Model, path: Path, preprocess: Preprocess = PIXELS) -> opened.Opened:
    card = ModelCard("r", "v", "classification", preprocess, ("a",), "0" * 64)
    metadata.write(model.metadata_props, card)
    onnxfile.write_model(model, path)
    return opened.read(path)


TAILS = {
    "plain": "y = Identity(r)",
    "scores near 0.12 that hardly vary": "s = Mul(r, tiny) t = Sub(s, two) y = Sigmoid(t)",
    "logits of 4000": "s = Mul(r, tiny) y = Add(s, thousands)",
}


@pytest.fixture(params=list(TAILS.values()), ids=list(TAILS))
def subject(request: pytest.FixtureRequest, graph: Graph, tmp_path: Path) -> opened.Opened:
    body = f"[c] a = {CONV}(images, w) [n] n = BatchNormalization(a, g, b, m, v) [r] r = Relu(n) "
    model = graph(
        f"(float[N,3,8,8] images) => (float[N,8,8,8] y) {{ {body} {request.param} }}",
        w=(8, 3, 3, 3),
        tiny=np.float32(2e-6),
        two=np.float32(2),
        thousands=np.float32(4000),
        **norm(),
    )
    return saved(model, tmp_path / "m.onnx", Preprocess((8, 8)))


def test_a_right_rewrite_passes_however_narrow_the_output_is(
    subject: opened.Opened, tmp_path: Path
) -> None:
    made = fusing.fuse(subject.path, tmp_path / "fused.onnx")
    assert made.artifact.made_by["passes"]["batch_norm"] == 1


def wrong(change: Callable[[ir.Node], None]) -> Any:
    """A pass that changes the convolution once, after its batch norm was folded."""

    def rewrite(node: ir.Node) -> bool:
        if node.op_type != "Conv" or len(node.inputs) < 3 or node.metadata_props.get("done"):
            return False
        change(node)
        node.metadata_props["done"] = "yes"
        return True

    return per_node("wrong", rewrite)


def one_bias(node: ir.Node) -> None:
    value = node.inputs[2]
    assert value is not None
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[np.argmax(array)] = 0
    value.const_value = ir.tensor(array, name=value.name)


def last_weight(node: ir.Node) -> None:
    value = node.inputs[1]
    assert value is not None
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy()[:, :, ::-1].copy(), name=value.name)


@pytest.mark.parametrize("change", [one_bias, last_weight])
def test_a_wrong_rewrite_is_refused_however_narrow_the_output_is(
    change: Callable[[ir.Node], None], subject: opened.Opened, tmp_path: Path
) -> None:
    with pytest.raises(ProofError, match="pass wrong changed output 'y'") as caught:
        fusing.fuse(subject.path, tmp_path / "f.onnx", (*DEFAULT, wrong(change)))
    assert "own rounding is" in str(caught.value)
    assert not (tmp_path / "f.onnx").exists()


SQUARES = (
    f"[c] a = {CONV}(images, w) [sq] s = Mul(a, a) [mean] m = GlobalAveragePool(s) "
    "[root] r = Sqrt(m) [last] y = Conv(r, u)"
)


@pytest.fixture
def squares(graph: Graph, tmp_path: Path) -> opened.Opened:
    """A network whose squares of pixels leave FP16's range."""
    text = f"(float[N,3,8,8] images) => (float[N,4,1,1] y) {{ {SQUARES} }}"
    weights = np.abs(RNG.standard_normal((8, 3, 3, 3))).astype(np.float32)
    return saved(graph(text, w=weights, u=(4, 8, 1, 1)), tmp_path / "m.onnx")


def reached(model: opened.Opened) -> dict[str, float]:
    inputs, _ = onnxfile.interface(model.graph)
    seen = probing.probe(model, [acceptance.feeds(model, inputs, batch=2)])
    return dict(seen.magnitudes)


def test_the_largest_magnitude_of_each_tensor_is_found(squares: opened.Opened) -> None:
    found = reached(squares)
    assert found["images"] == pytest.approx(255, rel=0.05)
    assert found["s"] == pytest.approx(found["a"] ** 2, rel=1e-6)
    assert found["s"] > 65504 > found["r"]


def test_what_overflows_on_pixels_of_the_card_stays_fp32(squares: opened.Opened) -> None:
    graph, wide = float16.cast(squares, reached(squares))
    assert "s reaches" in wide["sq"]
    assert {"sq", "mean"} <= set(wide)
    assert not {"c", "last"} & set(wide)
    candidate = opened.made(graph, squares.path)
    acceptance.accept(candidate, squares)
    (agreement,) = rewrites.prove_half(candidate, squares)
    assert agreement.passed
    assert 0 < agreement.relative < 0.01


def test_an_overflow_that_onnx_runtime_hides_is_refused(squares: opened.Opened) -> None:
    graph, _ = float16.cast(squares, {})
    candidate = opened.made(graph, squares.path)
    acceptance.accept(candidate, squares)
    with pytest.raises(ProofError, match="output 'y' is not finite in FP16: 's' leaves its range"):
        rewrites.prove_half(candidate, squares)


def test_what_fp16_has_few_digits_for_stays_fp32(graph: Graph, tmp_path: Path) -> None:
    body = f"[c] a = {CONV}(images, w) [small] s = Mul(a, k) [big] y = Mul(s, n)"
    model = graph(f"{HEAD} {{ {body} }}", w=(3, 3, 3, 3), k=np.float32(1e-6), n=np.float32(1e4))
    subject = saved(model, tmp_path / "m.onnx", Preprocess((8, 8)))
    _, wide = float16.cast(subject, reached(subject))
    assert "s stays below" in wide["small"]
    assert "c" not in wide


def test_an_empty_tensor_reaches_nothing(graph: Graph, tmp_path: Path) -> None:
    body = "[k] k = Compress<axis=0>(images, none) [r] y = Abs(k)"
    model = graph(
        f"(float[1,3,8,8] images) => (float[n,3,8,8] y) {{ {body} }}", none=np.array([False])
    )
    assert reached(saved(model, tmp_path / "m.onnx"))["k"] == 0


def test_a_tensor_whose_batch_is_no_batch_of_images_may_be_empty(
    graph: Graph, tmp_path: Path
) -> None:
    body = "[c] n = Compress<axis=0>(images, none) [k] k = Sigmoid(n) [r] y = Abs(k)"
    model = graph(
        f"(float[N,3,8,8] images) => (float[n,3,8,8] y) {{ {body} }}", none=np.array([False] * 2)
    )
    found = reached(saved(model, tmp_path / "m.onnx"))
    assert (found["k"], found["y"]) == (0, 0)


def test_what_a_relu_takes_away_and_what_is_known_is_not_looked_at(
    graph: Graph, tmp_path: Path
) -> None:
    body = (
        "[n] n = Neg(images) [big] b = Mul(n, k) [r] r = Relu(b) [o] o = Abs(n) [s] s = Sigmoid(r) "
        "[y] y = Add(s, o)"
    )
    model = graph(f"(float[N,3,8,8] images) => (float[N,3,8,8] y) {{ {body} }}", k=np.float32(1e6))
    subject = saved(model, tmp_path / "m.onnx", Preprocess((8, 8)))
    inputs, _ = onnxfile.interface(subject.graph)
    feed = acceptance.feeds(subject, inputs, batch=2)
    seen = probing.probe(subject, [feed], known=["o"])
    assert set(seen.magnitudes) == {"images", "n", "r", "s", "y"}
    assert seen.magnitudes["r"] == 0
    _, wide = float16.cast(subject, seen.magnitudes)
    assert "big" in wide, "the constant itself is beyond FP16"
    assert seen.ran is not None
    expected = onnxruntime.open_model(subject).run(feed)
    np.testing.assert_array_equal(seen.ran.run(feed)["y"], expected["y"])
    assert list(seen.ran.run(feed)) == ["y"]
    with pytest.raises(ValueError, match="not run on this input"):
        seen.ran.run(dict(feed))


def test_pairs_of_q_and_dq_follow_what_reads_them(graph: Graph) -> None:
    body = (
        "[q] i = QuantizeLinear(images, s, z) [dq] d = DequantizeLinear(i, s, z) "
        "[wdq] w = DequantizeLinear(l, t, z) [c1] a = Conv(d, w) [c2] y = Conv(d, v)"
    )
    model = graph(
        f"{HEAD} {{ {body} }}",
        s=np.float32(0.5),
        t=np.float32(0.25),
        z=np.int8(0),
        l=np.ones((3, 3, 1, 1), np.int8),
        v=(3, 3, 1, 1),
    )
    assert set(ranges.with_int8(model.graph, {"c1": "range"})) == {"q", "dq", "wdq", "c1", "c2"}
    assert ranges.with_int8(model.graph, {}) == {}
    model.graph.initializers["s"].const_value = ir.tensor(np.float32(1e-5), name="s")
    assert set(ranges.with_int8(model.graph, {})) == {"q", "dq", "wdq", "c1", "c2"}
