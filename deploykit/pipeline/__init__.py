"""The stages joined: one function per verb, for the command line and for Python."""

from deploykit.pipeline.checking import (
    BenchPlan,
    EvalOptions,
    Inspection,
    VerifyOptions,
    bench,
    evaluate,
    inspect,
    report,
    verify,
)
from deploykit.pipeline.making import Made, QuantizeOptions, build, cast, export, quantize
from deploykit.pipeline.opening import Opened, open_model

__all__ = [
    "BenchPlan",
    "EvalOptions",
    "Inspection",
    "Made",
    "Opened",
    "QuantizeOptions",
    "VerifyOptions",
    "bench",
    "build",
    "cast",
    "evaluate",
    "export",
    "inspect",
    "open_model",
    "quantize",
    "report",
    "verify",
]
