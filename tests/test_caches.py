"""Calibration caches of TensorRT, against lines as its builder writes them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploykit import pipeline
from deploykit.errors import InputError, OptionError, StaleTableError
from deploykit.precision import caches
from deploykit.precision.calibration import CalibrationOptions
from deploykit.values import Precision

if TYPE_CHECKING:
    from pathlib import Path

HEAD = "TRT-8601-EntropyCalibration2\n"


def test_a_line_is_the_step_as_a_big_endian_float() -> None:
    found = caches.parse(
        HEAD + "act/Sigmoid: 3c010a14\n(Unnamed Layer* 22) [Constant]_output: 3C010A14\n"
    )
    assert found["act/Sigmoid"] * 127 == pytest.approx(1.0002, abs=5e-5)
    assert set(found) == {"act/Sigmoid", "(Unnamed Layer* 22) [Constant]_output"}


def test_names_hold_colons_and_leading_zeros_may_be_missing() -> None:
    found = caches.parse(
        "TRT-100900-MinMaxCalibration\nStateful: x:0: 3f800000\nzero: 0\ntiny: 800000\n"
    )
    assert found == {"Stateful: x:0": 1.0, "zero": 0.0, "tiny": 2.0**-126}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line"),
        ("TRT-8601-LegacyCalibration\na: 3f800000\n", "first line"),
        (HEAD + "a 3f800000\n", "line 2"),
        (HEAD + "a: 3f8000000\n", "line 2"),
        (HEAD + "a: 3f80000g\n", "line 2"),
        (HEAD + "\na: 3f800000\na: 3f800000\n", "line 4"),
        (HEAD + "a: 7f800000\n", "tensor a is inf"),
        (HEAD + "a: 7fc00000\n", "tensor a is nan"),
        (HEAD + "a: bf800000\n", "tensor a is -1"),
    ],
)
def test_what_is_no_cache_is_refused_with_the_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        caches.parse(text)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    steps = {"b: c": 0.0078763, "a": 1e-30, "d": 3.0}
    caches.write(tmp_path / "made.cache", steps)
    text = (tmp_path / "made.cache").read_text()
    assert text.splitlines()[0] == "TRT-8XXX-EntropyCalibration2"
    assert text.splitlines()[3] == "d: 40400000"
    assert caches.parse(text) == {k: float(np.float32(v)) for k, v in steps.items()}
    with pytest.raises(InputError, match="tensor x is inf"):
        caches.write(tmp_path / "made.cache", {"x": float("inf")})


def scales(path: Path) -> dict[str, float]:
    """Return the scales of activations in a Q/DQ file, by the input of each QuantizeLinear."""
    graph = onnx.load(path).graph
    held = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    nodes = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] not in held]
    return {n.input[0]: float(held[n.input[1]]) for n in nodes}


def test_a_cache_gives_the_steps_that_it_was_written_with(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "model.cache"
    how = pipeline.QuantizeOptions(
        source=f"folder:{photos}",
        calibration=CalibrationOptions(observer="minmax", size=4),
        float_type=Precision.FP32,
        cache=cache,
    )
    made = pipeline.quantize(model, tmp_path / "a.onnx", how)
    assert any("model.cache" in note for note in made.notes)
    again = pipeline.QuantizeOptions(table=cache, float_type=Precision.FP32)
    pipeline.quantize(model, tmp_path / "b.onnx", again)
    first, second = scales(tmp_path / "a.onnx"), scales(tmp_path / "b.onnx")
    assert first.keys() == second.keys()
    assert [second[k] for k in first] == pytest.approx(list(first.values()), rel=1e-6)
    written = caches.parse(cache.read_text())
    assert {written[k] for k in first} == {float(np.float32(v)) for v in first.values()}
    cache.write_text(HEAD + "other: 3f800000\n")
    with pytest.raises(StaleTableError, match="lacks"):
        pipeline.quantize(model, tmp_path / "b.onnx", again)
    with pytest.raises(OptionError, match="--repair"):
        pipeline.quantize(model, tmp_path / "b.onnx", replace(how, repair=("equalise",)))
