"""deploykit: trained PyTorch checkpoint to a proven INT8 TensorRT engine.

The verbs of the command line as functions, and the options they take; each is imported when it
is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.backends import BuildOptions
    from deploykit.benchmarking import BenchOptions
    from deploykit.calibration import CalibrationOptions
    from deploykit.environment import doctor
    from deploykit.exporting import ExportOptions
    from deploykit.fusion import fuse_file as fuse
    from deploykit.pipeline import (
        BenchPlan,
        EvalOptions,
        QuantizeOptions,
        VerifyOptions,
        bench,
        build,
        cast,
        evaluate,
        export,
        inspect,
        quantize,
        report,
        verify,
    )

__all__ = [
    "BenchOptions",
    "BenchPlan",
    "BuildOptions",
    "CalibrationOptions",
    "EvalOptions",
    "ExportOptions",
    "QuantizeOptions",
    "VerifyOptions",
    "__version__",
    "bench",
    "build",
    "cast",
    "doctor",
    "evaluate",
    "export",
    "fuse",
    "inspect",
    "quantize",
    "report",
    "verify",
]
__version__ = "0.1.0"

_ELSEWHERE = {
    "BenchOptions": ("benchmarking", "BenchOptions"),
    "BuildOptions": ("backends", "BuildOptions"),
    "CalibrationOptions": ("calibration", "CalibrationOptions"),
    "ExportOptions": ("exporting", "ExportOptions"),
    "doctor": ("environment", "doctor"),
    "fuse": ("fusion", "fuse_file"),
}
"""Public name -> module and name; all others are in `pipeline`."""


def __getattr__(name: str) -> object:
    """Return the public object called `name`."""
    if name not in __all__:
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
    module, original = _ELSEWHERE.get(name, ("pipeline", name))
    return getattr(importlib.import_module(f"deploykit.{module}"), original)
