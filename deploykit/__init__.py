"""deploykit: trained PyTorch checkpoint to a proven INT8 TensorRT engine.

The verbs of the command line as functions, the options they take, what an extension file defines,
and the errors; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.backends import BuildOptions
    from deploykit.data.preprocess import Geometry, Preprocess
    from deploykit.data.sources import Dataset, Sample, Source
    from deploykit.errors import (
        BackendError,
        CheckpointError,
        DataError,
        DeployError,
        InputError,
        ModelError,
        OptionError,
        OutputError,
        ProofError,
    )
    from deploykit.measuring.benchmarking import BenchOptions
    from deploykit.measuring.environment import doctor
    from deploykit.networks.reparam import fold
    from deploykit.ops.plugin import Attribute, Call, Plugin
    from deploykit.pipeline import (
        BenchPlan,
        EvalOptions,
        ExportOptions,
        PlanOptions,
        Prediction,
        PredictOptions,
        Predictor,
        QatOptions,
        QuantizeOptions,
        SensitivityOptions,
        VerifyOptions,
        bench,
        build,
        cast,
        describe,
        evaluate,
        export,
        fuse,
        inspect,
        load,
        plan,
        predict,
        qat,
        quantize,
        report,
        sensitivity,
        verify,
    )
    from deploykit.precision.calibration import CalibrationOptions
    from deploykit.recipes.describing import Description
    from deploykit.recipes.identity import Facts, Found
    from deploykit.recipes.recipe import KeepFloat, Protocol, Recipe, Variant
    from deploykit.tasks.annotations import ImageAnnotations
    from deploykit.tasks.detections import Detections
    from deploykit.tasks.outputs import Output
    from deploykit.tasks.task import Display, Metric, Pair, Pairing, Result, Scores, Task
    from deploykit.training.course import Course
    from deploykit.training.objectives import Loss
    from deploykit.values import Precision

__version__ = "0.1.0"

_HOME = {
    "Attribute": "ops.plugin",
    "BackendError": "errors",
    "BenchOptions": "measuring.benchmarking",
    "BuildOptions": "backends",
    "CalibrationOptions": "precision.calibration",
    "Call": "ops.plugin",
    "CheckpointError": "errors",
    "DataError": "errors",
    "Course": "training.course",
    "Dataset": "data.sources",
    "DeployError": "errors",
    "Description": "recipes.describing",
    "Detections": "tasks.detections",
    "Display": "tasks.task",
    "Facts": "recipes.identity",
    "Found": "recipes.identity",
    "Geometry": "data.preprocess",
    "ImageAnnotations": "tasks.annotations",
    "InputError": "errors",
    "KeepFloat": "recipes.recipe",
    "Loss": "training.objectives",
    "Metric": "tasks.task",
    "ModelError": "errors",
    "OptionError": "errors",
    "Output": "tasks.outputs",
    "OutputError": "errors",
    "Pair": "tasks.task",
    "Pairing": "tasks.task",
    "Plugin": "ops.plugin",
    "Precision": "values",
    "Preprocess": "data.preprocess",
    "ProofError": "errors",
    "Protocol": "recipes.recipe",
    "Recipe": "recipes.recipe",
    "Result": "tasks.task",
    "Sample": "data.sources",
    "Scores": "tasks.task",
    "Source": "data.sources",
    "Task": "tasks.task",
    "Variant": "recipes.recipe",
    "doctor": "measuring.environment",
    "fold": "networks.reparam",
}
"""Public name -> the module that defines it; the others are those of `pipeline`."""

__all__ = [
    "Attribute",
    "BackendError",
    "BenchOptions",
    "BenchPlan",
    "BuildOptions",
    "CalibrationOptions",
    "Call",
    "CheckpointError",
    "Course",
    "DataError",
    "Dataset",
    "DeployError",
    "Description",
    "Detections",
    "Display",
    "EvalOptions",
    "ExportOptions",
    "Facts",
    "Found",
    "Geometry",
    "ImageAnnotations",
    "InputError",
    "KeepFloat",
    "Loss",
    "Metric",
    "ModelError",
    "OptionError",
    "Output",
    "OutputError",
    "Pair",
    "Pairing",
    "PlanOptions",
    "Plugin",
    "Precision",
    "PredictOptions",
    "Prediction",
    "Predictor",
    "Preprocess",
    "ProofError",
    "Protocol",
    "QatOptions",
    "QuantizeOptions",
    "Recipe",
    "Result",
    "Sample",
    "Scores",
    "SensitivityOptions",
    "Source",
    "Task",
    "Variant",
    "VerifyOptions",
    "__version__",
    "bench",
    "build",
    "cast",
    "describe",
    "doctor",
    "evaluate",
    "export",
    "fold",
    "fuse",
    "inspect",
    "load",
    "plan",
    "predict",
    "qat",
    "quantize",
    "report",
    "sensitivity",
    "verify",
]


def __getattr__(name: str) -> object:
    """Return the public object called `name`."""
    if name not in __all__:
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deploykit.{_HOME.get(name, 'pipeline')}"), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
