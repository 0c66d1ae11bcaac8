"""The peers' part of `foreign.py`, where ONNX Runtime's tools and ModelOpt are installed.

    python benchmarks/foreign_job.py FLOAT.onnx IMAGES.npy ort-MinMax modelopt-max

IMAGES: float32[N, C, H, W], already prepared. Written are FLOAT.METHOD.onnx, or FLOAT.METHOD.failed
with the reason. Deploykit need not be there.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

METHODS = ("ort-MinMax", "ort-Entropy", "modelopt-max", "modelopt-entropy")
LAYERS = ["Conv", "Gemm", "MatMul"]
"""What ONNX Runtime quantises the inputs of: with its default, all ops, it loses several dB."""


def ort(method: str, model: Path, images: Any, output: Path) -> None:  # noqa: ANN401 - an array
    """Run quantize_static: symmetric INT8, weights per channel, bias float, Q/DQ."""
    from onnxruntime import InferenceSession, quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ready = output.with_suffix(".ready.onnx")
    try:
        quant_pre_process(model, ready, skip_symbolic_shape=True)
    except Exception:  # noqa: BLE001 - it is advised, not needed, and fails on odd graphs
        ready.write_bytes(model.read_bytes())
    name = InferenceSession(str(ready), providers=["CPUExecutionProvider"]).get_inputs()[0].name

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # untyped package
        def __init__(self) -> None:
            self.left: Iterator[Any] = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {name: image[None]}

    quantization.quantize_static(
        ready,
        output,
        Reader(),
        per_channel=True,
        op_types_to_quantize=LAYERS,
        calibrate_method=quantization.CalibrationMethod[method],
        activation_type=quantization.QuantType.QInt8,
        extra_options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
        },
    )
    ready.unlink()


def modelopt(method: str, model: Path, images: Any, output: Path) -> None:  # noqa: ANN401
    """Run modelopt.onnx.quantization.quantize on the CPU."""
    import onnx
    from modelopt.onnx import quantization

    graph = onnx.load(model, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    name = next(value.name for value in graph.input if value.name not in weights)
    quantization.quantize(
        str(model),
        quantize_mode="int8",
        calibration_data={name: images},
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(output),
    )


def main() -> None:
    """Do the job."""
    model, images, *methods = sys.argv[1:]
    quantize(Path(model), np.load(images), methods)


def quantize(model: Path, images: Any, methods: Sequence[str]) -> None:  # noqa: ANN401
    """Quantise a model by each method."""
    for method in methods:
        output = model.with_suffix(f".{method}.onnx")
        tool, _, how = method.partition("-")
        try:
            {"ort": ort, "modelopt": modelopt}[tool](how, model, images, output)
        except Exception as error:  # noqa: BLE001 - why a peer fails is a result
            output.unlink(missing_ok=True)
            output.with_suffix(".failed").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
