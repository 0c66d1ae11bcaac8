"""deploykit: trained PyTorch checkpoint to a proven INT8 TensorRT engine.

The verbs of the command line as functions; each is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploykit.environment import doctor
    from deploykit.fusion import fuse_file as fuse
    from deploykit.pipeline import (
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

_ELSEWHERE = {"doctor": ("environment", "doctor"), "fuse": ("fusion", "fuse_file")}


def __getattr__(name: str) -> object:
    """Return the verb called `name`."""
    if name not in __all__:
        raise AttributeError(f"module 'deploykit' has no attribute {name!r}")
    module, function = _ELSEWHERE.get(name, ("pipeline", name))
    return getattr(importlib.import_module(f"deploykit.{module}"), function)
