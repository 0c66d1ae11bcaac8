"""A model of several sizes goes all the way: each image at its own, in every runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image

from deploykit import pipeline
from deploykit.backends import BuildOptions, tensorrt_rtx
from deploykit.data import samples, sources
from deploykit.errors import OptionError
from deploykit.files import bundles, onnxfile
from deploykit.graph import canvases
from deploykit.measuring.benchmarking import BenchOptions
from deploykit.networks import loading
from deploykit.pipeline.benching import BenchPlan
from deploykit.pipeline.exporting import ExportOptions
from deploykit.pipeline.opening import open_model
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.precision import repairs
from deploykit.precision.calibration import CalibrationOptions

if TYPE_CHECKING:
    from deploykit.data.preprocess import Floats
    from deploykit.pipeline.opening import Model

WIDE, HIGH = (64, 96), (96, 64)
CHECKPOINT = Path(__file__).parent.parent / "examples" / "shapes" / "yolov6_pico.pth"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the example detector for two sizes, and images of both orientations."""
    root = tmp_path_factory.mktemp("sizes")
    options = ExportOptions(input_size=WIDE, canvases=(HIGH,))
    pipeline.export(CHECKPOINT, root / "model.onnx", options)
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    for number, size in enumerate([(60, 90), (90, 60), (50, 100), (120, 30), (80, 80)]):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def int8(folder: Path) -> Path:
    """Return that detector in INT8, calibrated on all images."""
    path = folder / "int8.onnx"
    made = pipeline.quantize(folder / "model.onnx", path, calibrated(folder, 3))
    assert any("5 images" in note for note in made.notes)
    return path


def calibrated(folder: Path, batch_size: int) -> QuantizeOptions:
    """Return options that write a table, of batches of a size."""
    return QuantizeOptions(
        source=source(folder),
        table=folder / f"{batch_size}.json",
        calibration=CalibrationOptions(batch_size=batch_size),
    )


def source(folder: Path) -> str:
    return f"folder:{folder / 'images'}"


def outputs(model: Model, images: Floats) -> Floats:
    return model.session.run({"images": images})["outputs"].astype(np.float32)


def test_batches_hold_images_of_one_size_and_say_their_place(folder: Path) -> None:
    prepared = open_model(folder / "model.onnx").contract().preprocess
    assert prepared.sizes == (WIDE, HIGH)
    batches = list(samples.batches(sources.dataset(source(folder)), prepared, 2))
    found = [(batch.images.shape[2:], batch.places) for batch in batches]
    assert found == [(WIDE, (0, 2)), (HIGH, (1, 3)), (WIDE, (4,))]


def test_each_image_gives_what_pytorch_gives_at_its_size(folder: Path) -> None:
    model = open_model(folder / "model.onnx")
    network = loading.load_network(CHECKPOINT, loading.NetworkOptions())
    data = sources.dataset(source(folder))
    for batch in samples.batches(data, model.contract().preprocess, 2):
        found = model.forward(batch)["outputs"]
        with torch.inference_mode():
            expected = network.module(torch.from_numpy(batch.images)).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-3)


def test_int8_keeps_the_sizes_and_one_range_for_both(folder: Path, int8: Path) -> None:
    assert canvases.sizes(onnxfile.read_model(int8)) == (WIDE, HIGH)
    float32, quantized = open_model(folder / "model.onnx"), open_model(int8)
    for size in (WIDE, HIGH):
        images = np.random.default_rng(2).random((1, 3, *size), np.float32)
        expected = outputs(float32, images)[..., 5:]
        found = outputs(quantized, images)[..., 5:]
        assert np.abs(found - expected).max() < 0.1


def test_a_table_is_the_same_whatever_the_batches_are(folder: Path, int8: Path) -> None:
    assert int8.exists()  # calibrated on batches of 3
    pipeline.quantize(folder / "model.onnx", folder / "1.onnx", calibrated(folder, 1))
    assert (folder / "1.json").read_text("utf-8") == (folder / "3.json").read_text("utf-8")


def test_repairs_are_chosen_on_images_of_all_sizes(folder: Path) -> None:
    options = QuantizeOptions(source=source(folder), repair=repairs.NAMES)
    made = pipeline.quantize(folder / "model.onnx", folder / "repaired.onnx", options)
    tried = {name for name in repairs.NAMES if any(f"by {name} (" in note for note in made.notes)}
    assert tried >= {"observer", "round", "bias"}
    assert canvases.sizes(onnxfile.read_model(folder / "repaired.onnx")) == (WIDE, HIGH)


def test_an_engine_for_each_size_is_built_into_one_file(int8: Path) -> None:
    if not tensorrt_rtx.availability().builds:
        pytest.skip(tensorrt_rtx.availability().reason)
    engine = int8.with_suffix(".engine")
    made = pipeline.build(int8, engine, "tensorrt_rtx", BuildOptions(sms=("86",)))
    assert bundles.sizes(engine) == (WIDE, HIGH)
    shares = {layer.precision for layer in made.layers if layer.macs}
    assert "int8" in shares
    assert pipeline.inspect(engine).shares == pytest.approx(made.to_json()["precision"])


def test_onnx_runtimes_engine_takes_both_sizes(folder: Path) -> None:
    engine = folder / "model.ort"
    pipeline.build(folder / "model.onnx", engine, "onnxruntime", BuildOptions())
    assert bundles.sizes(engine) == (WIDE, HIGH)
    built, plain = open_model(engine), open_model(folder / "model.onnx")
    for size in (HIGH, WIDE):
        images = np.random.default_rng(3).random((2, 3, *size), np.float32)
        expected = outputs(plain, images)
        np.testing.assert_allclose(outputs(built, images), expected, rtol=1e-3, atol=1e-3)


def test_bench_from_the_image_on_fills_batches_of_one_size(folder: Path) -> None:
    options = BenchOptions(warmup_seconds=0.0, duration_seconds=0.1, min_iterations=4)
    plan = BenchPlan(options, batch_sizes=(2,), end_to_end=source(folder))
    (record,) = pipeline.bench([folder / "model.onnx"], plan)
    assert record.scope == "end-to-end"


def test_sizes_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for further, message in (((64, 97), "64x97"), (WIDE, "given twice")):
        options = ExportOptions(input_size=WIDE, canvases=(further,))
        with pytest.raises(OptionError, match=message):
            pipeline.export(CHECKPOINT, tmp_path / "model.onnx", options)
