"""Where the noise of INT8 in a system's row comes from: its weights, its image, its placement.

    python benchmarks/systems_noise.py --only MPViT --folder work    # after systems.py

Signal to noise in dB of the first output, on photographs that were not calibrated with: of the
INT8 file that `systems.py` made there, of two that ONNX Runtime's own quantiser makes of the same
FP32 file and photographs, of FP32 with its weights alone in INT8, and with its image alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import systems_nets as nets
from onnx import numpy_helper
from onnxruntime import quantization as ort_quantization
from systems import commit, named
from systems_list import SYSTEMS
from systems_speed import opened

from deploykit import backends
from deploykit.precision.quality import decibels
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from systems_list import System

    Array = NDArray[Any]
    Feeds = Mapping[str, Array]

RESULTS = Path(__file__).parent / "results" / "systems_noise.jsonl"
COMPARED = 8
LEVELS = 127
WEIGHTED = ("Conv", "MatMul", "Gemm")
METHODS = ("MinMax", "Percentile")


def main() -> None:
    """Append a record of a system."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", required=True, choices=list(SYSTEMS))
    parser.add_argument("--folder", type=Path, required=True, help="that of systems.py")
    options = parser.parse_args()
    found = {
        "name": options.only,
        "commit": commit(),
        "decibels": noise(options.only, options.folder),
    }
    print(json.dumps(found, sort_keys=True))
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(found, sort_keys=True) + "\n")


def noise(name: str, folder: Path) -> dict[str, float]:
    """Return what was rounded -> the signal to noise of the first output."""
    system = SYSTEMS[name]
    float_ = named(system, folder, "onnx")
    images = photographs(system, folder, "compared", COMPARED)
    session = opened(float_)
    output = session.get_outputs()[0].name
    plain = partial(answers, lambda fed: session.run([output], dict(fed))[0])
    expected = plain(images)

    def judged(found: Array) -> float:
        error, signal = found - expected, np.square(expected, dtype=np.float64).sum()
        return round(decibels(float(np.square(error, dtype=np.float64).sum() / signal)), 1)

    int8 = backends.load("onnxruntime").open_session(named(system, folder, "int8.onnx"))
    rounded = opened_model(in_eight_bits(onnx.load(float_)), output)
    found = {
        "image": judged(plain({k: whole(v, None) if v.ndim > 2 else v for k, v in images.items()})),
        "weights": judged(answers(rounded, images)),
        "deploykit": judged(answers(lambda fed: int8.run(dict(fed))[output], images)),
    }
    calibrated = photographs(system, folder, "calibrated", nets.CALIBRATED)
    for method in METHODS:
        other = opened_model(theirs(float_, calibrated, method), output)
        found[f"onnxruntime, {method}"] = judged(answers(other, images))
    return found


def photographs(system: System, folder: Path, part: str, count: int) -> Feeds:
    """Return photographs as the network takes them."""
    text = nets.source(system, folder, part)
    fed = nets.feeds(system, RECIPES.load(system.recipe), text, count)
    return {name: value.numpy() for name, value in fed.items()}


def answers(run: Callable[[Feeds], Any], images: Feeds) -> Array:
    """Return what a network gives for one image after the other."""
    count = len(next(iter(images.values())))
    each = ({name: value[i : i + 1] for name, value in images.items()} for i in range(count))
    return np.concatenate([np.asarray(run(fed), np.float64) for fed in each])


def opened_model(model: onnx.ModelProto, output: str) -> Callable[[Feeds], Any]:
    """Return what runs a model."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        onnx.save(model, path)
        session = opened(path)
    return lambda fed: session.run([output], dict(fed))[0]


def whole(values: Array, axes: tuple[int, ...] | None) -> Array:
    """Return values as 8 bits hold them, by one scale or one for each of the other axes."""
    scale = np.abs(values).max(axes, keepdims=True) / LEVELS
    scale[scale == 0] = 1
    rounded: Array = (np.round(values / scale) * scale).astype(values.dtype)
    return rounded


def in_eight_bits(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose weights were rounded, by a scale for each output channel."""
    kinds = {name: node.op_type for node in model.graph.node for name in node.input}
    for tensor in model.graph.initializer:
        kind = kinds.get(tensor.name)
        if kind not in WEIGHTED or len(tensor.dims) < 2:
            continue
        values = numpy_helper.to_array(tensor)
        axes = range(1, values.ndim) if kind == "Conv" else range(values.ndim - 1)
        tensor.CopyFrom(numpy_helper.from_array(whole(values, tuple(axes)), tensor.name))
    return model


class Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]  # ships no types
    """Photographs as ONNX Runtime's quantiser asks for them."""

    def __init__(self, images: Feeds) -> None:
        """Take them."""
        count = len(next(iter(images.values())))
        self.each = iter([{k: v[i : i + 1] for k, v in images.items()} for i in range(count)])

    def get_next(self) -> Any:  # noqa: ANN401 - as it is called
        """Return the next one, None behind the last."""
        return next(self.each, None)


def theirs(float_: Path, images: Feeds, method: str) -> onnx.ModelProto:
    """Return what ONNX Runtime's quantiser makes of a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "int8.onnx"
        ort_quantization.quantize_static(
            *(str(float_), str(path), Reader(images)),
            per_channel=True,
            weight_type=ort_quantization.QuantType.QInt8,
            activation_type=ort_quantization.QuantType.QInt8,
            op_types_to_quantize=list(WEIGHTED),
            calibrate_method=ort_quantization.CalibrationMethod[method],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
        )
        return onnx.load(path)


if __name__ == "__main__":
    main()
