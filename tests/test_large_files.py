"""Models that are too large for one file, tried on small ones with a lower limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from foreign_nets import SIDE, WIDTH, Net

from deploykit import pipeline
from deploykit.errors import OptionError, OutputError
from deploykit.files import artifacts, onnxfile
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LAYERS = 4
LIMIT = 30_000
"""Bytes: below the weights in float32, above those in int8."""
ABOUT = Description(task="classification", preprocess="unit", class_names=tuple("abcdefghij"))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier whose weights lie beside it, and a limit below their size."""
    net = Net()
    x = net.op("Relu", net.conv("images", 3, WIDTH))
    for _ in range(LAYERS):
        x = net.op("Sum", net.op("Relu", net.conv(x, WIDTH, WIDTH)), x)
    pooled = net.op("Flatten", net.op("GlobalAveragePool", x))
    output = net.op("MatMul", pooled, net.weight(net.kernel(WIDTH, 10)))
    folder = tmp_path / "given"
    folder.mkdir()
    whole = onnx.load(net.save(tmp_path / "whole.onnx", output, ("n", 3, SIDE, SIDE)))
    path = folder / "large.onnx"
    onnx.save(whole, path, save_as_external_data=True, location="w.bin", size_threshold=64)
    assert (folder / "w.bin").stat().st_size > LIMIT
    monkeypatch.setattr(onnxfile, "LIMIT", LIMIT)
    return path


def outputs(path: Path) -> np.ndarray:
    images = np.random.default_rng(0).random((2, 3, SIDE, SIDE), np.float32)
    found: np.ndarray = ort.InferenceSession(path).run(None, {"images": images})[0]
    return found


@pytest.mark.parametrize("float_type", [Precision.FP32, Precision.FP16])
def test_it_is_quantised_into_one_file(
    large: Path, tmp_path: Path, photos: Path, float_type: Precision
) -> None:
    result = tmp_path / "int8.onnx"
    options = QuantizeOptions(source=f"folder:{photos}", about=ABOUT, float_type=float_type)
    pipeline.quantize(large, result, options)
    assert not list(tmp_path.glob("*.data"))
    assert pipeline.inspect(result).shares["int8"] > 0.9
    theirs = outputs(large)
    assert np.abs(outputs(result) - theirs).max() < 0.1 * np.abs(theirs).max()


def test_a_described_copy_has_its_weights_beside_it(
    large: Path, tmp_path: Path, photos: Path
) -> None:
    copy = tmp_path / "copy.onnx"
    made = pipeline.describe(large, copy, ABOUT)
    assert (tmp_path / "copy.onnx.data").stat().st_size > LIMIT
    assert copy.stat().st_size < LIMIT
    np.testing.assert_array_equal(outputs(copy), outputs(large))
    assert artifacts.sha256(copy) == made.artifact.sha256
    options = QuantizeOptions(source=f"folder:{photos}", float_type=Precision.FP32)
    pipeline.quantize(copy, tmp_path / "int8.onnx", options)


def test_it_is_fused_with_its_weights_beside_it(large: Path, tmp_path: Path) -> None:
    pipeline.fuse(large, tmp_path / "fused.onnx")
    kinds = {n.op_type for n in onnx.load(tmp_path / "fused.onnx").graph.node}
    assert "Sum" not in kinds
    np.testing.assert_allclose(outputs(tmp_path / "fused.onnx"), outputs(large), rtol=1e-5)
    model = opened.read(tmp_path / "fused.onnx")
    assert onnxfile.data_folder(model.graph) == tmp_path


def test_an_output_that_cannot_be_written_leaves_nothing(large: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError):
        pipeline.fuse(large, tmp_path / "absent" / "fused.onnx")
    assert not list(tmp_path.glob("*.data"))


@pytest.mark.parametrize("verb", [pipeline.fuse, pipeline.cast])
def test_the_weights_that_a_model_is_read_from_are_never_written_over(
    verb: Callable[..., object], large: Path
) -> None:
    weights = large.with_name("w.bin").rename(large.with_name("out.onnx.data"))
    model = onnx.load(large, load_external_data=False)
    for each in model.graph.initializer:
        for entry in each.external_data:
            entry.value = entry.value.replace("w.bin", weights.name)
    onnx.save(model, large)
    before = weights.read_bytes()
    with pytest.raises(
        OptionError, match=r"beside -o is the weights of the model, out\.onnx\.data"
    ):
        verb(large, large.with_name("out.onnx"))
    assert weights.read_bytes() == before
