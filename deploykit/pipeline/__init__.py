"""The stages joined: one function per verb, for the command line and for Python."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.pipeline.benching import BenchPlan, bench
    from deploykit.pipeline.building import build
    from deploykit.pipeline.casting import cast
    from deploykit.pipeline.checking import EvalOptions, VerifyOptions, evaluate, verify
    from deploykit.pipeline.describing import describe
    from deploykit.pipeline.exporting import ExportOptions, export
    from deploykit.pipeline.fusing import fuse
    from deploykit.pipeline.inspecting import Inspection, inspect, report
    from deploykit.pipeline.made import Made
    from deploykit.pipeline.opening import Model, open_model
    from deploykit.pipeline.planning import PlanOptions, plan
    from deploykit.pipeline.predicting import Prediction, predict
    from deploykit.pipeline.predictor import PredictOptions, Predictor, load
    from deploykit.pipeline.quantizing import QuantizeOptions, quantize
    from deploykit.pipeline.retraining import QatOptions, qat
    from deploykit.pipeline.sensing import SensitivityOptions, sensitivity

__all__ = [
    "BenchPlan",
    "EvalOptions",
    "ExportOptions",
    "Inspection",
    "Made",
    "Model",
    "PlanOptions",
    "PredictOptions",
    "Prediction",
    "Predictor",
    "QatOptions",
    "QuantizeOptions",
    "SensitivityOptions",
    "VerifyOptions",
    "bench",
    "build",
    "cast",
    "describe",
    "evaluate",
    "export",
    "fuse",
    "inspect",
    "load",
    "open_model",
    "plan",
    "predict",
    "qat",
    "quantize",
    "report",
    "sensitivity",
    "verify",
]

_HOME = {
    "BenchPlan": "benching",
    "EvalOptions": "checking",
    "ExportOptions": "exporting",
    "Inspection": "inspecting",
    "Made": "made",
    "Model": "opening",
    "PlanOptions": "planning",
    "PredictOptions": "predictor",
    "Prediction": "predicting",
    "Predictor": "predictor",
    "QatOptions": "retraining",
    "QuantizeOptions": "quantizing",
    "SensitivityOptions": "sensing",
    "VerifyOptions": "checking",
    "bench": "benching",
    "build": "building",
    "cast": "casting",
    "describe": "describing",
    "evaluate": "checking",
    "export": "exporting",
    "fuse": "fusing",
    "inspect": "inspecting",
    "load": "predictor",
    "open_model": "opening",
    "plan": "planning",
    "predict": "predicting",
    "qat": "retraining",
    "quantize": "quantizing",
    "report": "inspecting",
    "sensitivity": "sensing",
    "verify": "checking",
}
"""Name -> its module, imported when it is first used: no verb pays for another's."""


def __getattr__(name: str) -> object:
    """Return what is called `name`."""
    if name not in _HOME:
        raise AttributeError(f"module 'deploykit.pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(f"deploykit.pipeline.{_HOME[name]}"), name)
