"""Segmenters of one class, from a file that nobody described to a score."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from foreign_nets import Net
from onnx import TensorProto, helper
from torch.nn import functional

from deploykit import Dataset, Sample, pipeline
from deploykit.data.preprocess import Geometry
from deploykit.errors import ModelError, OptionError
from deploykit.recipes.describing import Description
from deploykit.tasks import foreground
from deploykit.tasks.foreground import Foreground
from deploykit.tasks.semantic import Semantic

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SIDE, COARSE = 32, 8
BIAS = np.float32(0.5)
TASK = "semantic_segmentation"
ABOUT = Description(task=TASK, preprocess="unit", resize="stretch")


def segmenter(path: Path, *, ends: str, levels: int = 1, axis: int = 1) -> Path:
    """One number per cell of 4x4 pixels, an output for each level."""
    net = Net()
    x = net.op("Relu", net.conv("images", 3, 8))
    outputs = []
    for _ in range(levels):
        cells = net.op("AveragePool", net.conv(x, 8, 1), kernel_shape=[4, 4], strides=[4, 4])
        centred = net.op("Sub", net.op("Mul", cells, net.weight(np.float32(9))), net.weight(BIAS))
        made = net.op(ends, centred) if ends else centred
        made = net.op("Transpose", made, perm=[0, 2, 3, 1]) if axis == 3 else made
        outputs.append(net.op("Squeeze", made, net.weight(np.array([1]))) if not axis else made)
    net.save(path, outputs[0], ("n", 3, SIDE, SIDE))
    model = onnx.load(path)
    for name in outputs[1:]:
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


def picture(number: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(number)
    coarse = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return coarse.repeat(8, 0).repeat(8, 1)


def truth(number: int) -> NDArray[np.uint8]:
    return (picture(number)[..., 0] > 128).astype(np.uint8)


DATA = Dataset(
    "halves",
    [Sample(f"{k}", partial(picture, k), partial(truth, k)) for k in range(4)],
    {0: "background", 1: "skin"},
)


def expected(path: Path, kind: str) -> float:
    """The mean IoU of both classes, by torch."""
    model = pipeline.open_model(path, about=ABOUT)
    table = torch.zeros(2, 2)
    for number in range(4):
        image, _ = model.contract().preprocess(picture(number))
        raw = next(iter(model.session.run({"images": image[None]}).values())).reshape(
            COARSE, COARSE
        )
        scores = torch.from_numpy(np.asarray(raw))[None, None]
        large = functional.interpolate(scores, (48, 40), mode="bilinear")[0, 0]
        found = ((large.sigmoid() if kind == "logit" else large) > 0.5).long()
        right = torch.from_numpy(truth(number)).long()
        table += torch.bincount((right * 2 + found).flatten(), minlength=4).view(2, 2)
    hits = table.diag()
    return float((hits / (table.sum(0) + table.sum(1) - hits)).mean())


@pytest.mark.parametrize(("ends", "kind"), [("Sigmoid", "probability"), ("", "logit")])
@pytest.mark.parametrize("axis", [1, 3])
def test_what_one_number_per_pixel_is_is_told_and_scored_as_torch_does(
    ends: str, kind: str, axis: int, tmp_path: Path
) -> None:
    path = segmenter(tmp_path / "m.onnx", ends=ends, axis=axis)
    described = tmp_path / "d.onnx"
    about = Description(task=TASK, preprocess="unit", resize="stretch", class_names=("skin",))
    made = pipeline.describe(path, described, about)
    told = f"one {kind} per pixel, classes called background and skin"
    assert any(told in note for note in made.notes)
    found = pipeline.evaluate(described, pipeline.EvalOptions(DATA))
    wanted = expected(path, kind)
    assert 0.1 < wanted < 0.9
    assert found.metrics["miou"] == pytest.approx(wanted, abs=1e-6)
    assert set(found.per_class) == {"background", "skin"}
    (row,) = (
        each
        for each in pipeline.verify(described, path, pipeline.VerifyOptions(about=about))
        if each.output == "pixels"
    )
    assert row.passed


def test_the_user_may_say_what_the_number_is(tmp_path: Path) -> None:
    path = segmenter(tmp_path / "m.onnx", ends="")
    for kind, middle in (("logit", 0), ("probability", 0.5)):
        about = Description(task=TASK, preprocess="unit", resize="stretch", decode=kind)
        model = pipeline.load(path, pipeline.PredictOptions(about=about))
        image, _ = model.model.contract().preprocess(picture(0))
        (raw,) = model.model.session.run({"images": image[None]}).values()
        (scores,) = Foreground(kind)({"y": raw})
        np.testing.assert_array_equal(scores.argmax(0), np.asarray(raw)[0, 0] > middle)
        assert model.class_names == foreground.NAMES
        large = functional.interpolate(torch.tensor(raw), (48, 40), mode="bilinear")[0, 0]
        np.testing.assert_array_equal(model(picture(0)).labels, large > middle)


def test_of_several_levels_the_first_is_read(tmp_path: Path) -> None:
    path = segmenter(tmp_path / "m.onnx", ends="Sigmoid", levels=3)
    made = pipeline.describe(path, tmp_path / "d.onnx", ABOUT)
    assert any("one probability per pixel" in note for note in made.notes)
    found = pipeline.evaluate(tmp_path / "d.onnx", pipeline.EvalOptions(DATA))
    assert found.metrics["miou"] == pytest.approx(expected(path, "probability"), abs=1e-6)


def test_int8_keeps_how_its_pixels_are_read(tmp_path: Path, photos: Path) -> None:
    path = segmenter(tmp_path / "m.onnx", ends="Sigmoid")
    options = pipeline.QuantizeOptions(source=f"folder:{photos}", about=ABOUT)
    pipeline.quantize(path, tmp_path / "int8.onnx", options)
    found = pipeline.evaluate(tmp_path / "int8.onnx", pipeline.EvalOptions(DATA))
    assert found.metrics["miou"] == pytest.approx(expected(path, "probability"), abs=0.05)


def test_a_network_that_chooses_itself_is_not_guessed_to_give_probabilities(tmp_path: Path) -> None:
    net = Net()
    chosen = net.op("ArgMax", net.conv("images", 3, 2), axis=1, keepdims=1)
    path = net.save(
        tmp_path / "m.onnx", net.op("Cast", chosen, to=TensorProto.FLOAT), (1, 3, SIDE, SIDE)
    )
    made = pipeline.describe(path, tmp_path / "d.onnx", ABOUT)
    assert not any("per pixel" in note for note in made.notes)


@pytest.mark.parametrize(
    ("about", "error", "message"),
    [
        ({"decode": "logit", "task": "classification"}, OptionError, "--decode logit for the task"),
        ({"decode": "yolov8", "task": TASK}, OptionError, "--decode yolov8 for the task semantic"),
        ({"class_names": ("a", "b", "c"), "task": TASK}, OptionError, "3 class names for a model"),
    ],
)
def test_what_does_not_fit_is_refused(
    about: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = segmenter(tmp_path / "m.onnx", ends="Sigmoid")
    with pytest.raises(error, match=message):
        pipeline.describe(path, tmp_path / "d.onnx", Description(preprocess="unit", **about))


def test_scores_of_several_classes_are_no_number_per_pixel() -> None:
    outputs = {"y": np.zeros((1, 3, 4, 4), np.float32)}
    with pytest.raises(ModelError, match="are no logit of each pixel"):
        Foreground("logit")(outputs)
    one = {"y": np.full((1, 1, 4, 4), 0.3, np.float32)}
    with pytest.raises(ModelError) as caught:
        Semantic().decode(one, [Geometry(4, 4, 1, 1)])
    assert "--decode logit or --decode probability" in caught.value.fix
