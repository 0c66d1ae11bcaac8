"""Mean errors of INT8 layers, taken off their biases."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from foreign_nets import SIDE, WIDTH, Net

from deploykit.backends import onnxruntime
from deploykit.errors import InputError, StaleTableError
from deploykit.pipeline.quantizing import QuantizeOptions, quantize
from deploykit.precision import placement, quantization
from deploykit.precision.repairs import correcting
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.values import CalibrationTable, Precision, PrecisionPlan, Range

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.recipes.opened import Opened

    Real = NDArray[np.float64]

SOURCE = "shapes:count=8,size=96"
ABOUT = Description(task="classification", preprocess="unit", class_names=tuple("abcd"))
PLAN = PrecisionPlan(Precision.INT8)
RANDOM = np.random.default_rng(3)
KERNEL = RANDOM.standard_normal((WIDTH, WIDTH, 1, 1)).astype(np.float32)
KERNEL[4] = 0  # a dead channel
IMAGES = [RANDOM.random((1, WIDTH, SIDE, SIDE), np.float32) for _ in range(4)]
THRESHOLD = 0.7
"""Less than the largest value: what is clipped is missing on average."""


def table(model: Opened, *tensors: str) -> CalibrationTable:
    ranges = {name: Range(THRESHOLD, 0, 1) for name in tensors}
    return CalibrationTable(model.sha256, "mse", (), "", ranges)


def stored(x: NDArray[Any], step: Any) -> Real:
    found: Real = np.clip(np.rint(x / step), -128, 127) * step
    return found


def errors() -> Real:
    """float64[images, channels]: of the layer with KERNEL."""
    weights = KERNEL.reshape(WIDTH, WIDTH).astype(np.float64)
    steps = np.maximum(np.abs(weights).max(1, keepdims=True) / 127, 2.0**-24)
    held = np.array([stored(each[0], THRESHOLD / 127) for each in IMAGES])
    found = np.einsum("oc,nchw->nohw", stored(weights, steps), held)
    result: Real = (found - np.einsum("oc,nchw->nohw", weights, np.concatenate(IMAGES))).mean(
        (2, 3)
    )
    return result


def convolution(net: Net, bias: tuple[str, ...]) -> str:
    return net.op("Conv", "images", net.weight(KERNEL), *bias, kernel_shape=[1, 1])


def product(net: Net, bias: tuple[str, ...]) -> str:
    """The same layer as a product of matrices: its channels are last."""
    rows = net.op("Transpose", "images", perm=[0, 2, 3, 1])
    y = net.op("MatMul", rows, net.weight(KERNEL.reshape(WIDTH, WIDTH).T.copy()))
    added = bias[0] if bias else net.weight(np.zeros(WIDTH, np.float32))
    return net.op("Transpose", net.op("Add", added, y), perm=[0, 3, 1, 2])


def mean_outputs(model: Opened) -> Real:
    session = onnxruntime.open_model(model)
    found = [next(iter(session.run({"images": each}).values())) for each in IMAGES]
    mean: Real = np.concatenate(found).astype(np.float64).mean((0, 2, 3))
    return mean


@pytest.mark.parametrize("layer", [convolution, product], ids=lambda each: each.__name__)
@pytest.mark.parametrize("biased", [True, False])
def test_the_mean_error_is_taken_off(layer: Any, *, biased: bool, tmp_path: Path) -> None:
    net = Net()
    bias = (net.weight(RANDOM.standard_normal(WIDTH).astype(np.float32)),) if biased else ()
    output = layer(net, bias)
    path = net.save(tmp_path / "net.onnx", output, ("batch", WIDTH, SIDE, SIDE))
    model = opened.read(path)
    placed = placement.place(model.graph, PLAN)
    ranges = table(model, *placement.activations(placed))
    found = correcting.shifts(model, placed, ranges, [{"images": each} for each in IMAGES])
    (shift,) = found.values()
    mean, scatter = errors().mean(0), errors().var(0, ddof=1) / len(IMAGES)
    share = np.square(mean) / np.maximum(np.square(mean) + scatter, 1e-30)
    np.testing.assert_allclose(shift, -mean * share, atol=1e-5)
    assert shift[4] == 0
    assert np.abs(shift).max() > 0.01
    shifted = replace(ranges, shifts=found)
    graphs = (
        quantization.quantize(model, each, PLAN, float_type=Precision.FP32)[0]
        for each in (ranges, shifted)
    )
    plain, better = (mean_outputs(opened.made(graph, path)) for graph in graphs)
    wanted = mean_outputs(model)
    np.testing.assert_allclose(plain - wanted, mean, atol=1e-4)
    np.testing.assert_allclose(better - wanted, mean * (1 - share), atol=1e-4)


@pytest.mark.parametrize("layer", [convolution, product], ids=lambda each: each.__name__)
def test_an_image_of_which_a_layer_sees_no_row_says_nothing_of_its_error(
    layer: Any, tmp_path: Path
) -> None:
    net = Net()
    path = net.save(tmp_path / "net.onnx", layer(net, ()), ("batch", WIDTH, SIDE, SIDE))
    model = opened.read(path)
    placed = placement.place(model.graph, PLAN)
    ranges = table(model, *placement.activations(placed))
    feeds = [{"images": each} for each in (*IMAGES, IMAGES[0][:0])]
    found = correcting.shifts(model, placed, ranges, feeds)
    assert found
    assert found == correcting.shifts(model, placed, ranges, feeds[:-1])


def test_a_layer_that_stays_float_keeps_its_bias(tmp_path: Path) -> None:
    net = Net()
    y = convolution(net, ())
    y = net.op("Conv", y, net.weight(KERNEL), kernel_shape=[1, 1])
    path = net.save(tmp_path / "net.onnx", y, ("batch", WIDTH, SIDE, SIDE))
    model = opened.read(path)
    first, second = (str(node.name) for node in model.graph.graph)
    plan = PrecisionPlan(Precision.INT8, {second: Precision.FP32})
    shifts = dict.fromkeys((first, second), (1.0,) * WIDTH)
    ranges = replace(table(model, "images"), shifts=shifts)
    graph, _ = quantization.quantize(model, ranges, plan, float_type=Precision.FP32)
    biases = {node.name: len(node.inputs) for node in graph.graph if node.op_type == "Conv"}
    assert biases == {first: 3, second: 2}


def test_one_image_and_numbers_that_are_not_finite_shift_nothing() -> None:
    assert not correcting._shift(np.ones((1, 3))).any()
    found = correcting._shift(np.array([[np.nan, np.inf, 1.0, 0.0]] * 2))
    assert found.tolist() == [0, 0, -1, 0]


def classifier(folder: Path) -> Path:
    """One head on two levels with a bias that another layer adds, too, and a scaled Gemm."""
    net = Net()
    bias = net.weight(net.random.standard_normal(WIDTH).astype(np.float32))
    head = net.weight(net.kernel(WIDTH, WIDTH, 3, 3))
    form = {"kernel_shape": [3, 3], "pads": [1] * 4}
    x = net.op("Relu", net.conv("images", 3, WIDTH))
    x = net.op("Relu", net.op("Conv", x, head, bias, **form))
    x = net.op("Relu", net.op("Conv", x, head, bias, **form))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    constant = net.weight(np.ones((1, 4), np.float32))
    weights = net.weight(net.kernel(4, WIDTH))
    y = net.op("Gemm", flat, weights, constant, transB=1, alpha=1.0, beta=0.5)
    return net.save(folder / "net.onnx", y, ("batch", 3, SIDE, SIDE))


@pytest.mark.parametrize("kind", [Precision.FP16, Precision.FP32])
def test_a_table_brings_the_biases_with_it(kind: Precision, tmp_path: Path) -> None:
    path, kept = classifier(tmp_path), tmp_path / "table.json"
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    how = QuantizeOptions(source=SOURCE, table=kept, repair=("bias",), about=ABOUT, float_type=kind)
    made = quantize(path, first, how)
    (note,) = (each for each in made.notes if "bias" in each)
    assert note.startswith("repaired by bias (mean errors of 3 layers taken off their biases)")
    again = quantize(path, second, replace(how, source=None))
    assert any(each.startswith("repaired by bias") for each in again.notes)
    assert first.read_bytes() == second.read_bytes()
    biases = {node.input[2] for node in onnx.load(first).graph.node if node.op_type == "Conv"}
    assert len(biases) == 3
    with pytest.raises(StaleTableError, match="corrected biases"):
        quantize(path, second, replace(how, source=None, repair=("none",)))
    data = json.loads(kept.read_text())
    name = next(iter(data["shifts"]))
    for wrong in ({name: [0.5]}, {"no such layer": [0.5]}):
        kept.write_text(json.dumps({**data, "shifts": wrong}))
        with pytest.raises(InputError, match="do not fit the model"):
            quantize(path, second, replace(how, source=None))
    kept.write_text(json.dumps({**data, "shifts": {name: ["1"]}}))
    with pytest.raises(InputError, match="shifts"):
        quantize(path, second, replace(how, source=None))
