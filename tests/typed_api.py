"""The public API as a program with types uses it: mypy checks this file, nothing runs it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import assert_type

import deploykit
from deploykit.measuring.records import AccuracyRecord
from deploykit.ops import Input
from deploykit.pipeline import Made
from deploykit.values import Agreement, BenchRecord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn


def verbs(weights: str, folder: Path) -> None:
    model = folder / "model.onnx"
    made = deploykit.export(weights, model, deploykit.ExportOptions(input_size=(480, 640)))
    assert_type(made, Made)
    assert_type(made.notes, tuple[str, ...])
    deploykit.fuse(model, "fused.onnx")
    deploykit.cast(model, str(folder / "half.onnx"), record=folder / "records.jsonl")
    deploykit.quantize(
        "model.onnx",
        "int8.onnx",
        deploykit.QuantizeOptions(
            source="folder:photos",
            calibration=deploykit.CalibrationOptions(observer="entropy", size=256),
            float_type=deploykit.Precision.FP16,
        ),
    )
    wanted = deploykit.SensitivityOptions(metrics=("snr", "output"), images=8)
    sensed = deploykit.sensitivity(model, folder / "layers.json", wanted)
    assert_type(sensed.found.ranked("output"), list[str])
    asked = deploykit.PlanOptions(folder / "layers.json", keep_float=6, gpu="L4")
    assert_type(deploykit.plan(model, folder / "plan.json", asked).met, bool)
    learns = deploykit.QatOptions(
        deploykit.QuantizeOptions(source="folder:photos"),
        course=deploykit.Course(epochs=5, learning_rate=1e-5),
        loss=folder / "my_loss.py",
    )
    assert_type(deploykit.qat(model, "model.qat.onnx", learns), Made)
    shapes = {"images": ((1, 3, 640, 640), (8, 3, 640, 640), (32, 3, 640, 640))}
    target = deploykit.BuildOptions(sms=("86", "89"), shapes=shapes, workspace=4 << 30)
    assert_type(deploykit.build(model, "m.engine", "tensorrt_rtx", target, say=print), Made)
    assert_type(deploykit.inspect("m.engine").shares, dict[str, float])


def checks(model: Path) -> None:
    agreements = deploykit.verify(model, "weights.pth", deploykit.VerifyOptions(count=2))
    assert_type(agreements, tuple[Agreement, ...])
    about = deploykit.Description(task="detection", preprocess="yolo", input_size=(64, 64))
    assert_type(deploykit.describe(model, "described.onnx", about), Made)
    found = deploykit.evaluate(model, deploykit.EvalOptions("coco:val", limit=500))
    assert_type(found, AccuracyRecord)
    plan = deploykit.BenchPlan(deploykit.BenchOptions(duration_seconds=1), batch_sizes=(1, 8))
    assert_type(deploykit.bench([model, "m.engine"], plan), tuple[BenchRecord, ...])
    summary, written = deploykit.report(["records.jsonl"], "report.html", title="T4")
    assert_type(summary, str)
    assert_type(written, tuple[Path, ...])
    assert_type([row.topic for row in deploykit.doctor()], list[str])


def compute(
    found: Mapping[str, Tensor], truth: Sequence[tuple[object, deploykit.Geometry]]
) -> tuple[Tensor, float]:
    return found["scores"].square().sum(), float(len(truth))


assert_type(deploykit.Loss(("scores",), compute).tensors, tuple[str, ...])


def errors() -> str:
    kinds = (
        deploykit.InputError,
        deploykit.OptionError,
        deploykit.CheckpointError,
        deploykit.ModelError,
        deploykit.DataError,
        deploykit.OutputError,
        deploykit.BackendError,
        deploykit.ProofError,
    )
    try:
        raise kinds[0]("found", expected="expected", fix="to do")
    except deploykit.DeployError as error:
        assert_type(error.exit_code, int)
        return error.found + error.expected + error.fix + deploykit.__version__


def recipe(network: nn.Module) -> deploykit.Recipe:
    """What a file in exporters/ defines."""

    def identify(
        state: Mapping[str, Tensor], facts: deploykit.Facts
    ) -> deploykit.Found | tuple[str, int] | None:
        del facts
        return deploykit.Found("small", classes=len(state))

    protocol = deploykit.Protocol("as it is prepared anyway")
    variant = deploykit.Variant(
        deploykit.Preprocess((224, 224), resize="crop"),
        protocols={"evaluation": protocol},
        keep_float=(deploykit.KeepFloat("head", "few channels", deploykit.Precision.FP32),),
    )
    return deploykit.Recipe(
        name="mine",
        task="classification",
        variants={"small": variant},
        build=lambda variant, classes, size: network,  # noqa: ARG005 - a recipe's signature
        identify=identify,
        outputs=(deploykit.Output("logits", "logits"),),
        deploy=deploykit.fold,
    )


def source(pixels: NDArray[np.uint8]) -> deploykit.Source:
    """What a file in calib/ defines."""

    def read(location: str) -> deploykit.Dataset:
        truth = deploykit.ImageAnnotations(1, [], size=(8, 8))
        sample = deploykit.Sample("one", read=lambda: pixels, truth=lambda: truth)
        return deploykit.Dataset(location, [sample], categories={1: "ball"})

    return deploykit.Source("mine", "one image", read)


def plugin(body: Any) -> deploykit.Plugin:
    """What a file in plugins/ defines."""

    def call(given: deploykit.Call) -> Mapping[str, Any]:
        return given.attributes

    attribute = deploykit.Attribute("scale", 1.0, "above 0", lambda value: value > 0)
    return deploykit.Plugin(
        name="DKMine",
        version="1",
        inputs=(Input("x"),),
        outputs=(),
        attributes=(attribute,),
        reference=call,
        fake=call,
        runtime_body=body,
        portable_body=body,
    )


def seen(pixels: NDArray[np.uint8]) -> tuple[deploykit.Prediction, ...]:
    """A model as a function, and its pictures."""
    model: deploykit.Predictor = deploykit.load("model.onnx")
    found = model(pixels)
    if isinstance(found, deploykit.Result):
        assert_type(found.said(model.class_names), str)
    assert_type(model.draw(pixels, found), "NDArray[np.uint8]")
    options = deploykit.PredictOptions(against="fp32.onnx")
    return deploykit.predict("model.onnx", ["photos"], "out", options)


def task(
    mine: deploykit.Task[deploykit.Detections], geometry: deploykit.Geometry
) -> deploykit.Scores:
    """What `evaluate(..., task=)` takes."""
    results = mine.decode({}, [geometry])
    assert_type(results, Sequence[deploykit.Detections])
    metric: deploykit.Metric[deploykit.Detections] = mine.metric({1: "ball"}, ["ball"])
    pairing: deploykit.Pairing = mine.agreement()
    pairs: dict[str, deploykit.Pair] = pairing.pairs({}, {}, 0.0, 0.0)
    del metric, pairs
    display = {"AP": deploykit.Display("box AP", digits=3)}
    return deploykit.Scores({"AP": 0.5}, primary="AP", display=display)
