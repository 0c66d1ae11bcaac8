from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from deploykit import backends
from deploykit.backends import BuildOptions, onnxruntime
from deploykit.errors import DeployError, ModelError, OptionError, OutputError
from deploykit.recipes import opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray


def images(dtype: str = "float32", batch: int = 2) -> NDArray[Any]:
    return np.random.default_rng(1).standard_normal((batch, 3, 32, 32)).astype(dtype)


def expected(path: Path, x: NDArray[Any]) -> NDArray[Any]:
    (logits,) = ReferenceEvaluator(onnx.load(path)).run(None, {"images": x})
    return np.asarray(logits)


@pytest.mark.parametrize("quantized", [False, True])
def test_a_built_model_computes_what_the_onnx_reference_does(
    toy: Any, tmp_path: Path, *, quantized: bool
) -> None:
    model = toy(quantized=quantized).save(tmp_path / "toy.onnx")
    built = onnxruntime.build(opened.read(model), tmp_path / "toy.engine", BuildOptions())
    assert [str(spec) for spec in built.inputs] == ["images: float32[n, 3, 32, 32]"]
    session = onnxruntime.open_session(tmp_path / "toy.engine", threads=1)
    found: dict[str, Any] = session.run({"images": images()})
    np.testing.assert_allclose(
        found["fc.y"], expected(model, images()), atol=1e-4 if not quantized else 0.06
    )
    assert session.inputs == built.inputs
    assert session.outputs == built.outputs


def test_q_dq_runs_exactly_as_it_is_written(toy: Any, tmp_path: Path) -> None:
    model = toy(quantized=True, classify=False).save(tmp_path / "toy.onnx")
    found: Any = onnxruntime.open_session(model).run({"images": images()})["head_relu.y"]
    # A step of the input grid is 0.05; a single flipped rounding would show as one.
    np.testing.assert_allclose(found, expected(model, images()), atol=1e-5)


@pytest.mark.skipif(
    ort.__version__.startswith("1.23"),
    reason="ONNX Runtime 1.23, the last for Python 3.10, rounds Q/DQ with FP16 scales wrongly",
)
def test_q_dq_with_fp16_scales_between_fp16_ops_can_be_loaded(tmp_path: Path) -> None:
    """ONNX Runtime 1.31 by default turns this into a QLinearConcat, which takes no FP16 scales."""
    from onnx import parser

    text = """<ir_version: 9, opset_import: ["" : 19]>
        g (float16[1, 4] x) => (float16[1, 8] y) <float16 s, int8 z> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            n = Neg(x)
            f = QuantizeLinear(n, s, z)
            e = DequantizeLinear(f, s, z)
            c = Concat<axis = 1>(d, e)
            p = QuantizeLinear(c, s, z)
            y = DequantizeLinear(p, s, z)
        }"""
    model = parser.parse_model(text)
    for name, value in {"s": np.float16(0.5), "z": np.int8(0)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(value), name))
    onnx.save(model, tmp_path / "half.onnx")
    x = np.array([[0.2, 0.3, -0.9, 400]], np.float16)
    found: Any = onnxruntime.open_session(tmp_path / "half.onnx").run({"x": x})["y"]
    np.testing.assert_array_equal(found, [[0, 0.5, -1, 63.5, 0, -0.5, 1, -64]])


def test_a_build_tells_the_precision_and_cost_of_each_layer_under_its_own_name(
    toy: Any, tmp_path: Path
) -> None:
    for name, options in {"f": {}, "q": {"quantized": True}, "h": {"half": True}}.items():
        model = toy(**options).save(tmp_path / f"{name}.onnx")
        built = onnxruntime.build(opened.read(model), tmp_path / f"{name}.engine", BuildOptions())
        macs = {layer.name: layer.macs for layer in built.layers if layer.macs}
        assert macs == {
            "stem": 16 * 16 * 16 * 27,
            "block1": 16 * 16 * 16 * 144,
            "block2": 16 * 16 * 16 * 144,
            "head": 16 * 16 * 32 * 16,
            "fc": 320,
        }
        # On a CPU everything is float arithmetic, also what FP16 and Q/DQ graphs ask for.
        assert {layer.precision for layer in built.layers if layer.macs} == {"fp32"}


def test_inspection_reports_a_file_as_it_stands(toy: Any, tmp_path: Path) -> None:
    layers = onnxruntime.inspect(toy(half=True).save(tmp_path / "toy.onnx"))
    assert {layer.precision for layer in layers if layer.op == "Conv"} == {"fp16"}


def test_a_stepper_runs_and_has_no_device_clock(toy: Any, tmp_path: Path) -> None:
    session = onnxruntime.open_session(toy().save(tmp_path / "toy.onnx"), threads=2)
    for transfers in (False, True):
        step = session.stepper({"images": images()}, transfers=transfers, cuda_graph=False)
        assert [step(), step()] == [None, None]


def test_a_cuda_graph_on_the_cpu_is_refused(toy: Any, tmp_path: Path) -> None:
    session = onnxruntime.open_session(toy().save(tmp_path / "toy.onnx"))
    with pytest.raises(OptionError, match="CUDA graph"):
        session.stepper({"images": images()}, transfers=False, cuda_graph=True)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "fed nothing"),
        ({"image": images()}, "fed 'image'"),
        ({"images": images("float64")}, r"fed images: float64\[2, 3, 32, 32\]"),
        ({"images": images()[:, :2]}, r"fed images: float32\[2, 2, 32, 32\]"),
        ({"images": images()[0]}, r"fed images: float32\[3, 32, 32\]"),
    ],
)
def test_wrong_feeds_state_what_was_fed_and_what_the_model_takes(
    toy: Any, tmp_path: Path, feeds: dict[str, Any], message: str
) -> None:
    session = onnxruntime.open_session(toy().save(tmp_path / "toy.onnx"))
    with pytest.raises(ModelError, match=message) as caught:
        session.run(feeds)
    assert caught.value.expected == "images: float32[n, 3, 32, 32]"


def _open(path: Path, _: Path) -> object:
    return onnxruntime.open_session(path)


def _build(path: Path, output: Path) -> object:
    return onnxruntime.build(opened.read(path), output, BuildOptions())


@pytest.mark.parametrize("use", [_open, _build])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"not a model\n" * 50, "text file"),
        (b"cut", "not an ONNX model"),
    ],
)
def test_a_file_that_is_no_model_is_one_clear_error_and_leaves_nothing(
    toy: Any,
    tmp_path: Path,
    content: bytes | None,
    message: str,
    use: Callable[[Path, Path], object],
) -> None:
    path = tmp_path / "model.onnx"
    if content == b"cut":
        whole = toy().save(path).read_bytes()
        content = whole[: len(whole) // 2]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        use(path, tmp_path / "out.engine")
    assert {p.name for p in tmp_path.iterdir()} <= {"model.onnx"}


def test_a_model_that_onnx_runtime_does_not_know_is_an_error(toy: Any, tmp_path: Path) -> None:
    made = toy()
    made.nodes[0].op_type = "NoSuchOp"
    path = made.save(tmp_path / "odd.onnx")
    with pytest.raises(ModelError, match=r"ONNX Runtime cannot load .*odd\.onnx"):
        onnxruntime.open_session(path)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (BuildOptions(sms=("86",)), "--sm"),
        (BuildOptions(workspace=1 << 30), "--workspace"),
        (BuildOptions(shapes={"images": ((1,), (1,), (1,))}), "--min-shapes"),
    ],
)
def test_options_that_mean_nothing_here_are_refused(
    toy: Any, tmp_path: Path, options: BuildOptions, flag: str
) -> None:
    model = toy().save(tmp_path / "toy.onnx")
    with pytest.raises(OptionError, match=flag):
        onnxruntime.build(opened.read(model), tmp_path / "out.engine", options)
    with pytest.raises(OptionError, match="--timing-cache"):
        onnxruntime.build(
            opened.read(model),
            tmp_path / "out.engine",
            replace(BuildOptions(), timing_cache=tmp_path / "cache"),
        )


def test_an_output_folder_that_is_absent_is_one_error(toy: Any, tmp_path: Path) -> None:
    model = toy().save(tmp_path / "toy.onnx")
    with pytest.raises(OutputError, match="cannot write"):
        onnxruntime.build(opened.read(model), tmp_path / "nowhere" / "toy.engine", BuildOptions())


def test_a_negative_number_of_threads_is_refused(toy: Any, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="-1 threads"):
        onnxruntime.open_session(toy().save(tmp_path / "toy.onnx"), threads=-1)


def test_a_failure_while_running_is_one_error(tmp_path: Path) -> None:
    from onnx import parser

    text = """<ir_version: 9, opset_import: ["" : 19]>
        g (float[n, 4] x, int64[1] shape) => (float[k, m] y) { y = Reshape(x, shape) }"""
    onnx.save(parser.parse_model(text), tmp_path / "reshape.onnx")
    session = onnxruntime.open_session(tmp_path / "reshape.onnx")
    with pytest.raises(DeployError, match="ONNX Runtime failed"):
        session.run({"x": np.zeros((2, 4), np.float32), "shape": np.array([3], np.int64)})


def test_a_backend_is_found_by_its_name_and_an_unknown_one_lists_the_known() -> None:
    here = backends.load("onnxruntime").availability()
    assert here.builds
    assert here.runs
    with pytest.raises(OptionError, match="unknown backend 'tensorrt-rtx'") as caught:
        backends.load("tensorrt-rtx")
    assert "tensorrt_rtx" in caught.value.fix
