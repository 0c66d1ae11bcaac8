"""What `quantize` says of its own quality, against numpy on what ONNX Runtime gives."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from deploykit import backends
from deploykit.data import samples, sources
from deploykit.files import protos
from deploykit.pipeline import judging
from deploykit.pipeline.quantizing import QuantizeOptions, quantize
from deploykit.precision import placement, probing, quality, tables
from deploykit.precision.probing import Stored
from deploykit.recipes import opened
from deploykit.values import Agreement, CalibrationTable, Precision, PrecisionPlan, Range

if TYPE_CHECKING:
    from pathlib import Path


def rounded(x: np.ndarray[Any, Any], step: float) -> np.ndarray[Any, Any]:
    return np.clip(np.rint(x / step), -128, 127) * step


def agreement(name: str, noise: float | None) -> Agreement:
    return Agreement(name, 0.0, 0.0, 0.0, 1.0, passed=True, noise=noise)


def table(count: int = 100, tensors: int = 4, growing: int = 0) -> CalibrationTable:
    names = [f"t{i}" for i in range(tensors)]
    images = tuple(f"{i}.jpg" for i in range(count))
    ranges = dict.fromkeys(names, Range(1.0, -1.0, 1.0))
    return CalibrationTable("m", "mse", images, "s", ranges, growing=tuple(names[:growing]))


def test_the_noise_of_a_stored_tensor_is_that_of_numpy(model: Path) -> None:
    subject = opened.read(model)
    name = next(str(node.outputs[0].name) for node in subject.graph.graph if node.op_type == "Conv")
    x = np.random.default_rng(0).random((3, 3, 64, 64), np.float32)
    stored = [Stored("images", 0.013), Stored(name, 0.02), Stored(name, 0.5)]
    found = probing.probe(
        subject, [{"images": x[:1]}, {"images": x[1:]}], known=None, stored=stored
    )
    data = protos.with_outputs(subject.data, [name])
    values = {"images": x, name: ort.InferenceSession(data).run([name], {"images": x})[0]}
    for tensor, step in stored:
        exact = values[tensor].astype(np.float64)
        changed = np.square(rounded(exact, step) - exact).sum() / np.square(exact).sum()
        assert found.noise[Stored(tensor, step)] == pytest.approx(changed, rel=1e-3)
    assert found.magnitudes == {}


def test_the_noise_of_a_layer_is_that_of_its_product(tmp_path: Path) -> None:
    """One layer, whose result is computed with rounded inputs and weights in float64."""
    random = np.random.default_rng(0)
    weights = random.standard_normal((8, 32, 3, 3)).astype(np.float32)
    x = random.standard_normal((4, 32, 24, 24)).astype(np.float32)
    graph = ir.from_onnx_text(
        '<ir_version: 9, opset_import: ["": 19]> g (float[N,32,24,24] x) => (float[N,8,22,22] y) '
        "{ [conv] y = Conv<kernel_shape=[3,3]>(x, w) }",
        initializers=[ir.tensor(weights, name="w")],
    )
    subject = opened.made(graph, tmp_path / "m.onnx")
    placed = placement.place(subject.graph, PrecisionPlan(Precision.INT8))
    known = CalibrationTable(subject.sha256, "minmax", (), "", {"x": Range(2.0, -5.0, 5.0)})
    (stored,) = quality.stored(placed, known)
    seen = probing.probe(subject, [{"x": x}], stored=[stored])
    found = quality.layer_noise(subject.graph, placed, known, seen.noise)["conv"]
    scales: Any = np.abs(weights).max(axis=(1, 2, 3), keepdims=True) / 127

    def product(a: np.ndarray[Any, Any], w: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        windows = np.lib.stride_tricks.sliding_window_view(a.astype(np.float64), (3, 3), (2, 3))
        result: np.ndarray[Any, Any] = np.einsum("nchwij,ocij->nohw", windows, w, optimize=True)
        return result

    exact = product(x, weights)
    changed = product(rounded(x, 2.0 / 127), rounded(weights, scales)) - exact
    # Clipping at 2 is no rounding, but shrinks what it clips: signal and noise depend on each
    # other a little, and so the energies add up only nearly.
    assert quality.decibels(found) == pytest.approx(
        quality.decibels(np.square(changed).sum() / np.square(exact).sum()), abs=0.5
    )


def test_outputs_are_compared_on_calibration_images(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    source, path = f"folder:{photos}", tmp_path / "i.onnx"
    made = quantize(model, path, QuantizeOptions(source=source))
    said = made.artifact.made_by["quality"]
    assert said["inputs"] == "2 calibration images"
    card = opened.read(model).card
    assert card is not None
    sessions = [backends.load("onnxruntime").open_session(each) for each in (model, path)]
    errors, energy = 0.0, 0.0
    for batch in samples.batches(sources.dataset(source), card.preprocess, 1, limit=2):
        feeds = {"images": batch.images}
        expected, found = (s.run(feeds)["outputs"].astype(np.float64) for s in sessions)
        errors += np.square(found - expected).sum()
        energy += np.square(expected).sum()
    assert said["outputs"]["outputs"] == pytest.approx(10 * math.log10(energy / errors), abs=0.02)
    assert list(said["layers"].values()) == sorted(said["layers"].values())
    (note,) = (note for note in made.notes if note.startswith("signal to noise"))
    assert f"outputs {said['outputs']['outputs']:.1f} dB" in note
    assert any(note.startswith("layers that add most noise: ") for note in made.notes)
    assert any("8 calibration images are few" in note for note in made.notes)
    json.dumps(said, allow_nan=False)


def test_a_column_is_named_where_it_is_far_below_its_output() -> None:
    agreements = [
        agreement("rows", 1e-9),
        agreement("rows[..., 0]", 1e-8),
        agreement("rows[..., 4]", 1e-2),
        agreement("near", 1e-3),
        agreement("near[..., 1]", 2e-3),
        agreement("order", 0.5),
        agreement("same", 0.0),
        agreement("none", None),
    ]
    found = judging.judged(
        "x", {"a": 1e-4, "b": 1e-2}, agreements, ("rows", "near", "same", "none")
    )
    assert found.outputs == pytest.approx(
        {"rows": 90, "rows[..., 4]": 20, "near": 30, "same": math.inf}
    )
    assert list(found.layers) == ["b", "a"]
    assert found.to_json()["outputs"]["same"] is None
    assert "same without noise" in next(found.notes())


@pytest.mark.parametrize(
    ("known", "said"),
    [
        (table(), []),
        (table(99), ["99 calibration images are few"]),
        (table(growing=1), []),
        (table(growing=2), ["2 of 4 tensors still reached further"]),
    ],
)
def test_doubts_are_said_where_images_are_few_or_show_ever_more(
    known: CalibrationTable, said: list[str]
) -> None:
    found = list(judging.doubts(known))
    assert len(found) == len(said)
    assert all(note.startswith(begin) for note, begin in zip(found, said, strict=True))


def test_what_still_grows_is_said_once_and_kept_nowhere(tmp_path: Path) -> None:
    known = table(growing=2)
    tables.write(tmp_path / "t.json", known)
    assert tables.read(tmp_path / "t.json") == known
    assert tables.read(tmp_path / "t.json").growing == ()
