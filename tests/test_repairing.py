"""What `quantize --repair` takes, what it says, and what a table keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from example_scripts import EXAMPLES
from foreign_nets import SIDE, WIDTH, Net
from skewing import one, skewed

import deploykit
from deploykit.backends import onnxruntime
from deploykit.data import samples, sources
from deploykit.errors import OptionError, StaleTableError
from deploykit.pipeline import mending, repairing
from deploykit.pipeline.exporting import ExportOptions, export
from deploykit.pipeline.quantizing import QuantizeOptions, quantize
from deploykit.precision import tables
from deploykit.precision.repairs.comparing import Noise
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.tasks.task import Pair
from deploykit.values import Precision

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SOURCE = "shapes:count=8,size=96"
WIDE = 64
"""Classes from which on a classifier's last layer is INT8."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained example at 96x96: an untrained head gives the same whatever it sees."""
    path = tmp_path_factory.mktemp("model") / "pico.onnx"
    export(EXAMPLES / "shapes" / "yolov6_pico.pth", path, ExportOptions(input_size=(96, 96)))
    return path


@pytest.fixture(scope="module")
def crooked(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with one channel of each layer a hundred times as large."""
    proto = onnx.load(model)
    assert skewed(proto, one(100)) > 30
    path = tmp_path_factory.mktemp("crooked") / "crooked.onnx"
    onnx.save(proto, path)
    return path


def outputs(path: Path) -> NDArray[Any]:
    subject = opened.read(path)
    assert subject.card is not None
    session = onnxruntime.open_model(subject)
    batch = next(samples.batches(sources.dataset(SOURCE), subject.card.preprocess, 8))
    return session.run({session.inputs[0].name: batch.images})["outputs"]


def decibels(found: Path, expected: Path) -> float:
    """Signal to noise of the classes' scores."""
    ours, theirs = (outputs(path)[..., 5:].astype(np.float64) for path in (found, expected))
    spread = theirs - theirs.mean((0, 1))
    return float(10 * np.log10(np.square(spread).sum() / np.square(ours - theirs).sum()))


def test_a_crooked_model_is_as_good_as_the_straight_one(
    model: Path, crooked: Path, tmp_path: Path
) -> None:
    paths = {name: tmp_path / f"{name}.onnx" for name in ("straight", "plain", "repaired")}
    quantize(model, paths["straight"], QuantizeOptions(source=SOURCE, repair=("none",)))
    quantize(crooked, paths["plain"], QuantizeOptions(source=SOURCE, repair=("none",)))
    made = quantize(crooked, paths["repaired"], QuantizeOptions(source=SOURCE))
    straight, plain, repaired = (decibels(path, model) for path in paths.values())
    assert plain < straight - 10
    assert repaired > straight - 2
    (note,) = (note for note in made.notes if "equalise" in note)
    assert note.startswith("repaired by equalise (channels of ")
    assert note.endswith("on images held out")
    kept = made.artifact.made_by["repairs"]["equalise"]
    assert kept["taken"]
    assert kept["after"] > kept["before"] + 10


def test_a_table_brings_the_repair_with_it(crooked: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.json"
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    quantize(crooked, first, QuantizeOptions(source=SOURCE, table=table))
    made = quantize(crooked, second, QuantizeOptions(table=table))
    np.testing.assert_array_equal(outputs(first), outputs(second))
    assert any(note.startswith("repaired by equalise") for note in made.notes)


def test_a_table_with_a_repair_is_not_taken_where_none_is_asked_for(
    crooked: Path, tmp_path: Path
) -> None:
    table = tmp_path / "table.json"
    quantize(crooked, tmp_path / "a.onnx", QuantizeOptions(source=SOURCE, table=table))
    with pytest.raises(StaleTableError, match="equalised channels"):
        quantize(crooked, tmp_path / "b.onnx", QuantizeOptions(table=table, repair=("none",)))


def test_factors_that_fit_another_model_are_refused(crooked: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    quantize(crooked, tmp_path / "a.onnx", QuantizeOptions(source=SOURCE, table=path))
    data = json.loads(path.read_text())
    first = next(iter(data["factors"]))
    data["factors"][first][0] += 1
    del data["factors"][first][1]
    path.write_text(json.dumps(data))
    with pytest.raises(deploykit.InputError, match="do not fit the model"):
        quantize(crooked, tmp_path / "b.onnx", QuantizeOptions(table=path))
    data["factors"][first] = [0.5]
    path.write_text(json.dumps(data))
    with pytest.raises(deploykit.InputError, match="factors"):
        tables.read(path)


def test_a_table_without_repairs_is_one_for_every_version(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    options = QuantizeOptions(source=SOURCE, table=path, repair=("none",))
    made = quantize(model, tmp_path / "a.onnx", options)
    assert "factors" not in json.loads(path.read_text())
    assert "repairs" not in made.artifact.made_by
    quantize(model, tmp_path / "b.onnx", QuantizeOptions(table=path))
    np.testing.assert_array_equal(outputs(tmp_path / "a.onnx"), outputs(tmp_path / "b.onnx"))


def test_one_image_is_too_few_to_hold_one_out(model: Path) -> None:
    assert repairing.images(opened.read(model), "shapes:count=1,size=96", None) is None
    seen = repairing.images(opened.read(model), "shapes:count=5,size=96", 3)
    assert seen is not None
    assert (len(seen.chosen_on), len(seen.held_out)) == (1, 2)


def test_repairs_are_named_as_they_are() -> None:
    assert repairing.Wanted.named(["auto"]).auto
    assert not repairing.Wanted.named(["none"]).names
    with pytest.raises(OptionError, match="equalise"):
        repairing.Wanted.named(["equalize"])
    with pytest.raises(OptionError, match="contradict"):
        repairing.Wanted.named(["none", "equalise"])


def test_a_straight_model_is_left_as_it_is_and_costs_no_trial(model: Path, tmp_path: Path) -> None:
    made = quantize(model, tmp_path / "a.onnx", QuantizeOptions(source=SOURCE))
    assert not any("equalise" in note for note in made.notes)
    forced = QuantizeOptions(source=SOURCE, repair=("equalise",))
    made = quantize(model, tmp_path / "b.onnx", forced)
    assert any(note.startswith("repaired by equalise") for note in made.notes)


def flat(path: Path, last: NDArray[np.float32]) -> Path:
    """Write a network whose last layer, 1x1, gives the same for all images."""
    net = Net()
    x = net.op("Relu", net.conv("images", 3, WIDTH))
    pooled = net.op("GlobalAveragePool", net.conv(x, WIDTH, WIDTH))
    level = net.op("Mul", pooled, net.weight(np.zeros(1, np.float32)))
    line = np.linspace(0.3, 1, WIDTH, dtype=np.float32).reshape(1, -1, 1, 1)
    kernel, bias = net.weight(last[..., None, None]), net.weight(np.ones(len(last), np.float32))
    out = net.op("Conv", net.op("Add", level, net.weight(line)), kernel, bias)
    return net.save(path, net.op("Flatten", out), ("batch", 3, SIDE, SIDE))


ABOUT = Description(task="classification", preprocess="unit", class_names=tuple("abcd"))


def test_where_no_output_varies_ranges_are_left_and_nothing_is_infinite(tmp_path: Path) -> None:
    path = flat(tmp_path / "net.onnx", np.zeros((4, WIDTH), np.float32))
    made = quantize(path, tmp_path / "a.onnx", QuantizeOptions(source=SOURCE, about=ABOUT))
    assert not any("repaired" in note for note in made.notes)
    named = QuantizeOptions(source=SOURCE, about=ABOUT, repair=("observer", "equalise"))
    made = quantize(path, tmp_path / "b.onnx", named)
    assert any("repaired by observer" in note for note in made.notes)
    assert not any("inf" in note.split() for note in made.notes)


def test_where_no_output_varies_biases_take_all_the_noise_off(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(1, WIDTH)).repeat(WIDE, 0).astype(np.float32)
    path = flat(tmp_path / "net.onnx", weights)
    about = replace(ABOUT, class_names=tuple(map(str, range(WIDE))))
    auto = QuantizeOptions(source=SOURCE, about=about, float_type=Precision.FP32)
    made = quantize(path, tmp_path / "a.onnx", auto)
    assert list(made.artifact.made_by["repairs"]) == ["bias"]
    assert any(note.startswith("repaired by bias") for note in made.notes)
    assert not any("inf" in note.split() for note in made.notes)
    quantize(path, tmp_path / "b.onnx", replace(auto, repair=("none",)))
    wanted: NDArray[Any] = weights @ np.linspace(0.3, 1, WIDTH) + 1
    sessions = [
        onnxruntime.open_model(opened.read(tmp_path / name)) for name in ("a.onnx", "b.onnx")
    ]
    image = np.zeros((1, 3, SIDE, SIDE), np.float32)
    found = [next(iter(s.run({s.inputs[0].name: image}).values())) for s in sessions]
    ours, other = (float(np.abs(np.subtract(each, wanted)).max()) for each in found)
    assert ours < 1e-5 < other


def test_where_the_outputs_have_hardly_any_noise_repairs_must_be_named() -> None:
    little, much, flat_ = (Noise() for _ in range(3))
    spread = np.random.default_rng(0).normal(size=(1, 100))
    for noise, expected, error in ((little, spread, 1e-3), (much, spread, 1.0)):
        noise.add({"out": Pair(expected + error * spread[:, ::-1], expected)})
    flat_.add({"out": Pair(np.full((1, 100), 1.001), np.ones((1, 100)))})
    auto = repairing.Wanted.named(["auto"])
    assert not mending.worth(auto, little)
    assert not mending.worth(auto, Noise())
    assert mending.worth(auto, much)
    assert mending.worth(auto, flat_)
    assert mending.worth(repairing.Wanted.named(["observer"]), little)
    assert not mending.worth(repairing.Wanted.named(["none"]), much)
