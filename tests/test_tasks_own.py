"""A task of the user's own: one file, passed as an object, and every verb works with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from counting import Counting
from onnx import TensorProto, helper

import deploykit
from deploykit import Dataset, EvalOptions, OptionError, Preprocess, Sample, Scores, VerifyOptions
from deploykit.cli import printing
from deploykit.measuring import records
from deploykit.recipes import metadata
from deploykit.recipes.metadata import ModelCard
from deploykit.tasks import name as name_of
from deploykit.tasks.agreement import InOrder
from deploykit.tasks.outputs import Output

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SIZE = 16


def dotted(count: int) -> NDArray[np.uint8]:
    """Black, with so many white pixels."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels.reshape(-1, 3)[:: SIZE + 3][:count] = 255
    return pixels


def told(count: int) -> int:
    return count


DATA = Dataset(
    "dots",
    [Sample(f"{n}", partial(dotted, n), partial(told, n)) for n in (0, 3, 5, 7)],
    {4: "dot"},
)


def model(  # noqa: PLR0913 - all of a small file
    path: Path,
    output: str,
    nodes: Sequence[Any],
    shape: Sequence[Any],
    task: str,
    *,
    kinds: tuple[Output, ...] = (),
) -> Path:
    """Write a graph from `images` to one output, with a card that names no recipe."""
    inputs = [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])]
    outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)]
    graph = helper.make_graph(nodes, "own", inputs, outputs, CONSTANTS)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    card = ModelCard("", "", task, Preprocess((SIZE, SIZE)), ("dot",), "", outputs=kinds)
    properties: dict[str, str] = {}
    metadata.write(properties, card)
    for key, value in properties.items():
        proto.metadata_props.add(key=key, value=value)
    onnx.save(proto, path)
    return path


CONSTANTS = [
    helper.make_tensor("axes", TensorProto.INT64, [3], [1, 2, 3]),
    helper.make_tensor("third", TensorProto.FLOAT, [], [1 / 3]),
    helper.make_tensor("channel", TensorProto.INT64, [1], [1]),
    helper.make_tensor("flat", TensorProto.INT64, [2], [-1, 1]),
]


def counter(path: Path, bias: float = 0.0) -> Path:
    """A third of the sum of all pixels: the number of white ones, plus `bias`."""
    nodes = [
        helper.make_node("ReduceSum", ["images", "axes"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "third"], ["count"]),
        helper.make_node("Constant", [], ["bias"], value_float=bias),
        helper.make_node("Add", ["count", "bias"], ["moved"]),
        helper.make_node("Reshape", ["moved", "flat"], ["dots"]),
    ]
    return model(path, "dots", nodes, ["batch", 1], name_of(Counting()))


def test_a_task_of_ones_own_is_evaluated_verified_and_reported(tmp_path: Path) -> None:
    good, bad = counter(tmp_path / "good.onnx"), counter(tmp_path / "bad.onnx", bias=0.75)
    file = tmp_path / "records.jsonl"
    options = EvalOptions(DATA)
    found = deploykit.evaluate(good, options, task=Counting(), record=file)
    assert (found.task, found.primary, found.images) == ("Counting", "error", 4)
    assert found.metrics == pytest.approx({"error": 0.0, "exact": 1.0}, abs=1e-6)
    worse = deploykit.evaluate(bad, options, task=Counting(), record=file)
    assert worse.metrics == pytest.approx({"error": 0.75, "exact": 0.0}, abs=1e-6)
    assert records.read([file]) == (found, worse)
    assert "Mean error  0.75 dots" in printing.accuracy(worse)

    same = deploykit.verify(good, good, VerifyOptions(source=DATA), task=Counting())
    assert {a.output: a.passed for a in same} == {"dots": True, "rounded": True}
    other = deploykit.verify(bad, good, VerifyOptions(source=DATA), task=Counting())
    assert {a.output: a.passed for a in other} == {"dots": False, "rounded": False}

    text, written = deploykit.report([file], tmp_path / "report.html")
    assert "Mean error" in text
    assert "0.75 dots" in text
    assert "100.0 %" in text
    assert all("Mean error" in path.read_text("utf-8") for path in written)


def test_a_card_that_names_a_task_of_ones_own_asks_for_it(tmp_path: Path) -> None:
    path = counter(tmp_path / "m.onnx")
    with pytest.raises(OptionError, match=r"(?s)made for the task 'Counting'.*task=my_task"):
        deploykit.evaluate(path, EvalOptions(DATA))
    with pytest.raises(OptionError, match="unknown task 'countng'"):
        deploykit.evaluate(path, EvalOptions(DATA), task="countng")


def test_a_result_is_drawn_on_its_image() -> None:
    image = np.zeros((30, 60, 3), np.uint8)
    drawn = Counting().draw(image, 3.0, ["dot"])
    assert drawn.shape == image.shape
    assert not image.any()
    assert drawn.any()


def test_a_primary_metric_that_is_none_of_the_metrics_is_refused() -> None:
    with pytest.raises(OptionError, match="'error' is not among its metrics"):
        Scores({"exact": 1.0}, primary="error")


@dataclass
class Overlap:
    """Share of pixels with the right label."""

    right: int = 0
    total: int = 0

    def add(self, name: str, result: Any, truth: Any, size: tuple[int, int], /) -> None:
        assert result.shape == truth.shape == size, name
        self.right += int((result == truth).sum())
        self.total += truth.size

    def scores(self) -> Scores:
        return Scores({"share": self.right / self.total}, "share")


class Labels:
    """Outputs `scores` float32[batch, classes, H, W] to a map of class indices."""

    def decode(self, outputs: Mapping[str, Any], geometries: Sequence[Any], /) -> list[Any]:
        maps = outputs["scores"].argmax(1)
        return [maps[i][: g.height, : g.width] for i, g in enumerate(geometries)]

    def metric(self, categories: Mapping[int, str], classes: Sequence[str], /) -> Overlap:
        del categories, classes
        return Overlap()

    def agreement(self) -> InOrder:
        return InOrder()

    def draw(self, image: Any, result: Any, classes: Sequence[str], /) -> Any:
        del classes
        return np.where(result[..., None] > 0, 255 - image, image)


def test_truth_and_results_may_be_label_maps(tmp_path: Path) -> None:
    def lit(count: int) -> NDArray[np.int64]:
        return (dotted(count)[..., 0] > 0).astype(np.int64)

    samples = [Sample(f"{n}", partial(dotted, n), partial(lit, n)) for n in (2, 9)]
    nodes = [
        helper.make_node("ReduceMean", ["images", "channel"], ["grey"], keepdims=1),
        helper.make_node("Constant", [], ["half"], value_float=0.5),
        helper.make_node("Shape", ["grey"], ["shape"]),
        helper.make_node("Expand", ["half", "shape"], ["dark"]),
        helper.make_node("Concat", ["dark", "grey"], ["scores"], axis=1),
    ]
    path = model(tmp_path / "m.onnx", "scores", nodes, ["batch", 2, SIZE, SIZE], "Labels")
    found = deploykit.evaluate(path, EvalOptions(Dataset("maps", samples)), task=Labels())
    assert found.metrics == {"share": 1.0}
    (same,) = deploykit.verify(path, path, VerifyOptions(), task=Labels())
    assert (same.output, same.passed) == ("scores", True)


@pytest.mark.parametrize(
    ("kinds", "compared"),
    [
        ((), ["y", "y[..., 0]", "y[..., 1]"]),
        ((Output("y", "values"),), ["y", "y[..., 0]", "y[..., 1]"]),
        ((Output("y", "logits"),), ["y"]),
    ],
)
def test_verify_compares_an_output_as_its_kind_in_the_card_says(
    kinds: tuple[Output, ...], compared: list[str], tmp_path: Path
) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["images", "axes"], ["mean"], keepdims=0),
        helper.make_node("Reshape", ["mean", "flat"], ["one"]),
        helper.make_node("Mul", ["one", "third"], ["less"]),
        helper.make_node("Concat", ["one", "less"], ["y"], axis=1),
    ]
    path = model(tmp_path / "m.onnx", "y", nodes, ["batch", 2], "unknown", kinds=kinds)
    found = deploykit.verify(path, path, VerifyOptions(count=2))
    assert [agreement.output for agreement in found] == compared
    assert all(agreement.passed for agreement in found)
