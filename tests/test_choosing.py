"""The range of a tensor by what it does to the layers that read it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from foreign_nets import SIDE, WIDTH, Net

from deploykit.backends import onnxruntime
from deploykit.errors import StaleTableError
from deploykit.pipeline.quantizing import QuantizeOptions, quantize
from deploykit.precision import placement, tables
from deploykit.precision.repairs import choosing
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.values import CalibrationTable, Precision, PrecisionPlan, Range

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def stored(x: NDArray[Any], threshold: float) -> NDArray[Any]:
    step = threshold / 127
    return np.clip(np.rint(x / step), -128, 127) * step


@pytest.mark.parametrize("far", [1.0, 8.0, 200.0])
def test_the_method_with_the_least_error_behind_the_weights_wins(
    far: float, tmp_path: Path
) -> None:
    random = np.random.default_rng(4)
    scales = np.ones((1, WIDTH, 1, 1), np.float32)
    scales[0, 3] = far
    kernel = random.standard_normal((WIDTH, WIDTH, 1, 1)).astype(np.float32) / scales
    net = Net()
    x = net.op("Mul", "images", net.weight(scales))
    y = net.op("Conv", x, net.weight(kernel), kernel_shape=[1, 1])
    path = net.save(tmp_path / "net.onnx", y, ("batch", WIDTH, SIDE, SIDE))
    model = opened.read(path)
    placed = placement.place(model.graph, PrecisionPlan(Precision.INT8))
    images = random.standard_normal((1, WIDTH, SIDE, SIDE)).astype(np.float32)
    tensor = images * scales
    methods = {f"m{i}": float(t) for i, t in enumerate(np.abs(tensor).max() / 2.0 ** np.arange(8))}
    table = CalibrationTable(
        model.sha256, "mse", (), "", {x: Range(1, -1, 1)}, candidates={x: methods}
    )
    found, _ = choosing.chosen(model, placed, table, [{"images": images}])
    weights = kernel.reshape(WIDTH, WIDTH)
    result = np.einsum("oc,nchw->nohw", weights, tensor)
    costs = []
    for threshold in methods.values():
        error = np.einsum("oc,nchw->nohw", weights, tensor - stored(tensor, threshold))
        costs.append((np.square(error).mean((0, 2, 3)) / result.var((0, 2, 3))).mean())
    best = list(methods.values())[int(np.argmin(costs))]
    assert found.ranges[x].threshold == best
    assert found.observer == choosing.LABEL
    assert "candidates" not in found.to_json()
    assert choosing.whole(table).ranges == table.ranges
    named = {**dict.fromkeys(methods, far / 1000.0), choosing.WHOLE: best}
    clipped, both = choosing.chosen(
        model, placed, replace(table, candidates={x: named}), [{"images": images}]
    )
    assert clipped.ranges[x].threshold == far / 1e3
    assert both.ranges[x].threshold == best
    assert choosing.whole(replace(table, candidates={x: named})).ranges[x].threshold == best


SOURCE = "shapes:count=8,size=96"
ABOUT = Description(task="classification", preprocess="unit", class_names=tuple("abcd"))


def gated(folder: Path) -> Path:
    """A net with a channel 60 times as large as the others before SiLU, which no scale passes."""
    net = Net()
    first, second = net.kernel(WIDTH, 3, 3, 3), net.kernel(WIDTH, WIDTH, 3, 3)
    first[5] *= 60
    second[:, 5] /= 60
    x = net.conv("images", 3, WIDTH, net.weight(first))
    x = net.op("Mul", x, net.op("Sigmoid", x))
    x = net.op("Relu", net.conv(x, WIDTH, WIDTH, net.weight(second)))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.conv(x, WIDTH, WIDTH)))
    output = net.op("Gemm", x, net.weight(net.kernel(4, WIDTH)), transB=1)
    return net.save(folder / "net.onnx", output, ("batch", 3, SIDE, SIDE))


def run(path: Path) -> NDArray[Any]:
    session = onnxruntime.open_model(opened.read(path))
    images = np.random.default_rng(5).random((8, 3, SIDE, SIDE), np.float32)
    (found,) = session.run({"images": images}).values()
    return found


def test_where_channels_cannot_be_scaled_the_method_is_chosen(tmp_path: Path) -> None:
    path, table = gated(tmp_path), tmp_path / "table.json"
    plain, chosen, again = (tmp_path / f"{name}.onnx" for name in ("plain", "chosen", "again"))
    quantize(path, plain, QuantizeOptions(source=SOURCE, repair=("none",), about=ABOUT))
    made = quantize(path, chosen, QuantizeOptions(source=SOURCE, table=table, about=ABOUT))
    (note,) = (note for note in made.notes if "repaired by observer" in note)
    assert "by another method than mse" in note
    noise = [np.square(run(each) - run(path)).mean() for each in (plain, chosen)]
    assert noise[1] < noise[0]
    assert tables.read(table).observer in choosing.LABELS
    quantize(path, again, QuantizeOptions(source=SOURCE, table=table, about=ABOUT))
    np.testing.assert_array_equal(run(again), run(chosen))
    with pytest.raises(StaleTableError, match="chosen by"):
        quantize(path, again, QuantizeOptions(table=table, repair=("equalise",), about=ABOUT))
    with pytest.raises(StaleTableError, match="method"):
        quantize(path, again, QuantizeOptions(table=table, asked=("observer",), about=ABOUT))


def test_a_method_that_is_named_is_taken(tmp_path: Path) -> None:
    named = QuantizeOptions(source=SOURCE, asked=("observer",), about=ABOUT)
    made = quantize(gated(tmp_path), tmp_path / "out.onnx", named)
    assert not any("observer" in note for note in made.notes)
