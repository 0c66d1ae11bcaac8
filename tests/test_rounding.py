"""Weights that go up or down as their layer's result wants it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from foreign_nets import SIDE, WIDTH, Net
from onnx import numpy_helper

from deploykit.backends import onnxruntime
from deploykit.errors import InputError, StaleTableError
from deploykit.graph.editing import constant
from deploykit.pipeline.quantizing import QuantizeOptions, quantize
from deploykit.precision import placement, quantization
from deploykit.precision.quantization import rounding as ways_
from deploykit.precision.repairs import rounding
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.values import CalibrationTable, Precision, PrecisionPlan, Range

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.recipes.opened import Opened

SOURCE = "shapes:count=8,size=96"
ABOUT = Description(task="classification", preprocess="unit", class_names=tuple("abcd"))
PLAN = PrecisionPlan(Precision.INT8)
RANDOM = np.random.default_rng(5)


def together(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Values whose channels go together: then errors of weights add up, or cancel."""
    mixed = RANDOM.random((shape[0], 2, *shape[2:]))
    mixing = RANDOM.random((shape[1], 2))
    found: NDArray[np.float32] = np.einsum("cm,nmhw->nchw", mixing, mixed).astype(np.float32)
    return found


IMAGES = [together((2, WIDTH, SIDE, SIDE)) for _ in range(2)]


def convolution(net: Net) -> str:
    weights = net.weight(net.kernel(8, WIDTH, 3, 3))
    form = {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 1, 2], "dilations": [1, 2]}
    return net.op("Conv", "images", weights, **form)


def grouped(net: Net) -> str:
    weights = net.weight(net.kernel(8, WIDTH // 4, 3, 3))
    return net.op("Conv", "images", weights, kernel_shape=[3, 3], group=4)


def product(net: Net) -> str:
    rows = net.op("Transpose", "images", perm=[0, 2, 3, 1])
    return net.op("MatMul", rows, net.weight(net.kernel(WIDTH, WIDTH)))


def outputs(model: Opened) -> NDArray[np.float64]:
    session = onnxruntime.open_model(model)
    found = [next(iter(session.run({"images": each}).values())) for each in IMAGES]
    return np.concatenate(found).astype(np.float64)


@pytest.mark.parametrize(
    "layer", [convolution, grouped, product], ids=lambda each: str(each.__name__)
)
def test_learnt_levels_cost_a_layer_less_than_the_nearest(layer: Any, tmp_path: Path) -> None:
    net = Net()
    path = net.save(tmp_path / "net.onnx", layer(net), ("batch", WIDTH, SIDE, SIDE))
    model = opened.read(path)
    placed = placement.place(model.graph, PLAN)
    threshold = float(max(each.max() for each in IMAGES))
    ranges = {name: Range(threshold, 0, threshold) for name in placement.activations(placed)}
    table = CalibrationTable(model.sha256, "mse", (), "", ranges)
    feeds = [{"images": each} for each in IMAGES]
    names = [weight.node for weight in placed.weights]
    ways = rounding.ways(model, placed, table, names, feeds)
    assert set(ways) == {weight.tensor for weight in placed.weights}
    tables = (table, replace(table, ways=ways))
    graphs = [quantization.quantize(model, t, PLAN, float_type=Precision.FP32)[0] for t in tables]
    plain, learnt = (outputs(opened.made(graph, path)) for graph in graphs)
    errors = [np.square(each - outputs(model)).mean() for each in (plain, learnt)]
    assert errors[1] < 0.9 * errors[0]
    levels = [
        next(constant(v) for n, v in graph.graph.initializers.items() if ".int8" in n)
        for graph in graphs
    ]
    assert levels[0] is not None
    assert levels[1] is not None
    moved = levels[0].astype(int) - levels[1].astype(int)
    assert moved.any()
    assert np.abs(moved).max() == 1


def test_what_is_learnt_is_near_the_best_of_all_roundings() -> None:
    exact, steps = RANDOM.normal(0, 40, (1, 3, 8)), np.full((1, 3, 1), 0.01)
    patches = RANDOM.random((8, 2)) @ RANDOM.random((2, 50)) + RANDOM.normal(0, 0.2, (8, 50))
    second = (patches @ patches.T)[None]
    found = rounding.ways_of(exact, steps, rounding._Moments(second, second))
    every = np.array(np.meshgrid(*[[0, 1]] * 8)).reshape(8, -1).T
    for row, ways in zip(exact[0], found[0], strict=True):
        costs = np.square((np.floor(row) + every - row) @ patches).sum(1)
        levels = np.where(ways > 0, np.ceil(row), np.where(ways < 0, np.floor(row), np.rint(row)))
        own = np.square((levels - row) @ patches).sum()
        nearest = np.square((np.rint(row) - row) @ patches).sum()
        assert own <= nearest
        assert own <= np.quantile(costs, 0.05)


@pytest.mark.parametrize("patches", [np.zeros((4, 9)), np.ones((4, 9))])
def test_dead_inputs_and_weights_stay_as_they_are(patches: NDArray[np.float64]) -> None:
    second = (patches @ patches.T)[None]
    exact = np.array([[[0.0] * 4, [1.0, -2.0, 127.0, -127.0]]])
    moments = rounding._Moments(second, second)
    assert not rounding.ways_of(exact, np.full((1, 2, 1), 0.1), moments).any()


def test_ways_hold_for_steps_that_are_a_little_wider() -> None:
    weights = np.array([[3.51, 3.49, 2.02, -1.98, 0.4]], np.float32)
    ways = np.array([[-1, 1, -1, 1, 0]], np.int8)
    for step in (1.0, 1.01):
        found = ways_.levels(weights, np.array([step], np.float32), 0, ways)
        assert (np.abs(found - weights / step) < 1).all()
        assert found[0, :2].tolist() == [3, 4]
        assert found[0, 4] == 0


def classifier(folder: Path) -> Path:
    net = Net()
    x = net.op("Relu", net.conv("images", 3, WIDTH))
    x = net.op("Relu", net.conv(x, WIDTH, WIDTH))
    flat = net.op("Flatten", net.op("GlobalAveragePool", x))
    y = net.op("Gemm", flat, net.weight(net.kernel(4, WIDTH)), transB=1)
    return net.save(folder / "net.onnx", y, ("batch", 3, SIDE, SIDE))


def levels(path: Path) -> list[NDArray[np.int8]]:
    held = onnx.load(path).graph.initializer
    return [numpy_helper.to_array(each) for each in held if each.name.endswith(".int8")]


@pytest.mark.parametrize("kind", [Precision.FP16, Precision.FP32])
def test_a_table_brings_the_levels_with_it(kind: Precision, tmp_path: Path) -> None:
    path, kept = classifier(tmp_path), tmp_path / "table.json"
    plain, first, second = (tmp_path / f"{name}.onnx" for name in ("plain", "first", "second"))
    how = QuantizeOptions(source=SOURCE, about=ABOUT, float_type=kind, repair=("none",))
    quantize(path, plain, how)
    learning = replace(how, table=kept, repair=("round",))
    made = quantize(path, first, learning)
    assert any(note.startswith("repaired by round (learnt rounding of ") for note in made.notes)
    assert any((a != b).any() for a, b in zip(levels(plain), levels(first), strict=True))
    again = replace(learning, source=None, repair=("auto",))
    made = quantize(path, second, again)
    assert any(note.startswith("repaired by round") for note in made.notes)
    assert first.read_bytes() == second.read_bytes()
    with pytest.raises(StaleTableError, match="learnt rounding"):
        quantize(path, second, replace(again, repair=("none",)))
    data = json.loads(kept.read_text())
    name, texts = next(iter(data["ways"].items()))
    for wrong in (
        {name: [texts[0][4:], texts[1]]},
        {name: ["?" + texts[0][1:], texts[1]]},
        {name: ["/" * 4, "/" * 4]},
        {"no such weight": texts},
    ):
        kept.write_text(json.dumps({**data, "ways": wrong}))
        with pytest.raises(InputError, match="do not fit the model"):
            quantize(path, second, again)
    kept.write_text(json.dumps({**data, "ways": {name: [texts[0]]}}))
    with pytest.raises(InputError, match="ways"):
        quantize(path, second, again)
