"""Ops on integers, as ONNX Runtime's own tools write them, are taken apart."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from foreign_nets import SIDE, WIDTH, Net
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from deploykit import pipeline
from deploykit.errors import ModelError
from deploykit.files import onnxfile
from deploykit.precision.lint.rules import INTEGER_OPS
from deploykit.precision.quantization import given, operators
from deploykit.recipes.describing import Description

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

SHAPE = (1, 3, SIDE, SIDE)
ABOUT = Description(preprocess="unit", input_size=(SIDE, SIDE))


class Images(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime ships no types
    """Four images, one after the other."""

    def __init__(self) -> None:
        """Begin with the first."""
        self.left = [{"images": image(i)} for i in range(4)]

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """Return one, None at the end."""
        return self.left.pop() if self.left else None


def image(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random(SHAPE, np.float32)


def _gemm(net: Net, x: str) -> str:
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    weights, bias = net.weight(net.kernel(6, WIDTH)), net.weight(net.kernel(6))
    return net.op("Gemm", flat, weights, bias, transB=1)


BODIES: dict[str, Callable[[Net, str], str]] = {
    "QLinearConv": lambda net, x: net.op("Relu", net.conv(x, WIDTH, WIDTH)),
    "QLinearAdd": lambda net, x: net.op("Add", net.conv(x, WIDTH, WIDTH), x),
    "QLinearMul": lambda net, x: net.op("Mul", net.conv(x, WIDTH, WIDTH), x),
    "QLinearSigmoid": lambda net, x: net.op("Sigmoid", x),
    "QLinearLeakyRelu": lambda net, x: net.op("LeakyRelu", x, alpha=0.2),
    "QLinearSoftmax": lambda net, x: net.op("Softmax", x, axis=1),
    "QLinearGlobalAveragePool": lambda net, x: net.op("GlobalAveragePool", x),
    "QLinearAveragePool": lambda net, x: net.op(
        "AveragePool", x, kernel_shape=[2, 2], strides=[2, 2]
    ),
    "QLinearConcat": lambda net, x: net.op("Concat", x, net.conv(x, WIDTH, WIDTH), axis=1),
    "QLinearMatMul": lambda net, x: net.op("MatMul", x, net.weight(net.kernel(SIDE, 5))),
    "QGemm": _gemm,
}


def made(path: Path, body: Callable[[Net, str], str]) -> Path:
    """A float network with that body between two convolutions' worth of levels."""
    net = Net()
    first = net.op("Relu", net.conv("images", 3, WIDTH))
    pooled = net.op("MaxPool", first, kernel_shape=[3, 3], pads=[1] * 4)
    return net.save(path, body(net, pooled), SHAPE, opset=17, ir_version=8)


def in_integers(path: Path, *, per_channel: bool = False) -> Path:
    """The network as ONNX Runtime writes it with ops on integers."""
    output = path.with_name(f"integers-{path.name}")
    quantize_static(
        path,
        output,
        Images(),
        quant_format=QuantFormat.QOperator,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=per_channel,
    )
    return output


def run(path: Path, seed: int = 9) -> NDArray[np.float32]:
    found: NDArray[np.float32] = ort.InferenceSession(path).run(None, {"images": image(seed)})[0]
    return found


def left(path: Path) -> set[str]:
    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("op", BODIES)
def test_an_op_on_integers_computes_the_same_between_dq_and_q(op: str, tmp_path: Path) -> None:
    path = made(tmp_path / "m.onnx", BODIES[op])
    for whole in (in_integers(path), in_integers(path, per_channel=True)):
        same_apart(whole, op, tmp_path)


def same_apart(whole: Path, op: str, tmp_path: Path) -> None:
    assert op in left(whole)
    model = onnxfile.read_model(whole)
    assert operators.expanded(model) > 0
    onnxfile.write_model(model, tmp_path / "apart.onnx")
    kinds = left(tmp_path / "apart.onnx")
    assert not [kind for kind in kinds if kind.startswith("Q") and kind != "QuantizeLinear"]
    theirs, ours = run(whole), run(tmp_path / "apart.onnx")
    steps = np.unique(theirs.round(6))
    step = np.diff(steps).min() if len(steps) > 1 else 0
    assert np.abs(ours - theirs).max() <= 2 * step + 1e-6, "of rounding up or down"
    assert np.mean(np.abs(ours - theirs) > step / 2) < 0.05


@pytest.mark.parametrize("op", BODIES)
def test_strip_qdq_gives_back_the_float_network(op: str, tmp_path: Path) -> None:
    path = made(tmp_path / "m.onnx", BODIES[op])
    whole = in_integers(path)
    model = onnxfile.read_model(whole)
    assert given.stripped(model).operators > 0
    onnxfile.write_model(model, tmp_path / "float.onnx")
    assert not left(tmp_path / "float.onnx") & {"QuantizeLinear", "DequantizeLinear", op}
    expected = run(path)
    assert np.abs(run(tmp_path / "float.onnx") - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("op", ["QLinearConv", "QLinearConcat"])
def test_it_is_quantised_anew(op: str, tmp_path: Path, photos: Path) -> None:
    whole = in_integers(made(tmp_path / "m.onnx", BODIES[op]))
    options = pipeline.QuantizeOptions(source=f"folder:{photos}", about=ABOUT)
    with pytest.raises(ModelError, match="ops on integers: QLinearConv") as caught:
        pipeline.quantize(whole, tmp_path / "int8.onnx", options)
    assert "--strip-qdq" in caught.value.fix
    again = pipeline.quantize(
        whole, tmp_path / "int8.onnx", dataclasses.replace(options, strip_qdq=True)
    )
    assert any("ops on integers made float, Relu put back" in note for note in again.notes)
    found = pipeline.inspect(tmp_path / "int8.onnx")
    assert found.shares == {"int8": 1.0}
    assert not found.errors


@pytest.mark.parametrize("op", ["QLinearConv", "QLinearMatMul", "QGemm"])
def test_what_is_quantised_as_it_comes_is_made_float(op: str, tmp_path: Path, photos: Path) -> None:
    path, whole = made(tmp_path / "m.onnx", BODIES[op]), tmp_path / "dynamic.onnx"
    quantize_dynamic(path, whole, weight_type=QuantType.QUInt8)
    assert left(whole) & set(INTEGER_OPS)
    model = onnxfile.read_model(whole)
    assert given.stripped(model).operators > 0
    onnxfile.write_model(model, tmp_path / "float.onnx")
    assert not left(tmp_path / "float.onnx") & {*INTEGER_OPS, "DynamicQuantizeLinear"}
    expected = run(path)
    assert np.abs(run(tmp_path / "float.onnx") - expected).max() < 0.03 * np.abs(expected).max()
    options = pipeline.QuantizeOptions(source=f"folder:{photos}", about=ABOUT, strip_qdq=True)
    pipeline.quantize(whole, tmp_path / "int8.onnx", options)


@pytest.mark.parametrize("opset", [10, 19])
@pytest.mark.parametrize(("top", "kind"), [(6.0, "Clip"), (4.0, "Relu")])
def test_levels_that_begin_at_zero_stand_for_a_relu(
    top: float, kind: str, opset: int, tmp_path: Path
) -> None:
    net = Net()
    scale, zero = net.weight(np.float32(top / 255)), net.weight(np.uint8(0))
    levels = net.op("QuantizeLinear", net.conv("images", 3, WIDTH), scale, zero)
    moved = net.op("Reshape", levels, net.weight(np.array([1, WIDTH, -1])))
    output = net.op("DequantizeLinear", moved, scale, zero)
    path = net.save(tmp_path / "m.onnx", output, SHAPE, opset=opset)
    model = onnxfile.read_model(path)
    assert given.stripped(model) == (1, 0, 1)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    onnxfile.write_model(model, tmp_path / "float.onnx")
    assert [n.op_type for n in onnx.load(tmp_path / "float.onnx").graph.node] == [
        *("Conv", kind, "Reshape")
    ]
    inside = run(path) < top
    np.testing.assert_allclose(run(tmp_path / "float.onnx")[inside], run(path)[inside], atol=0.02)


def test_ops_on_integers_that_stay_are_named(tmp_path: Path, photos: Path) -> None:
    net = Net()
    y, scale, zero = (net.op("DynamicQuantizeLinear", "images") for _ in range(3))
    node = net.nodes[0]
    del net.nodes[1:]
    node.output.extend([scale, zero])
    whole = net.op("ConvInteger", y, net.weight(np.ones((4, 3, 3, 3), np.uint8)), zero)
    product = net.op("Mul", net.op("Cast", whole, to=1), scale)
    path = net.save(tmp_path / "m.onnx", net.op("Add", product, net.op("Cast", zero, to=1)), SHAPE)
    options = pipeline.QuantizeOptions(source=f"folder:{photos}", about=ABOUT, strip_qdq=True)
    with pytest.raises(ModelError, match="ConvInteger, DynamicQuantizeLinear cannot be made float"):
        pipeline.quantize(path, tmp_path / "int8.onnx", options)
