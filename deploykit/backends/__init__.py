"""The runtimes a model can be built for and run in: each is a module of functions."""

from __future__ import annotations

import importlib
from typing import cast

from deploykit.backends.contract import (
    Arrays,
    Availability,
    Backend,
    BuildOptions,
    Built,
    Session,
    Shapes,
)
from deploykit.errors import unknown_name

__all__ = [
    "NAMES",
    "Arrays",
    "Availability",
    "Backend",
    "BuildOptions",
    "Built",
    "Session",
    "Shapes",
    "load",
]

NAMES = ("onnxruntime", "tensorrt", "tensorrt_rtx")


def load(name: str) -> Backend:
    """Return the backend called `name`. Raises: OptionError for an unknown name."""
    if name not in NAMES:
        raise unknown_name("backend", name, NAMES)
    return cast("Backend", importlib.import_module(f"deploykit.backends.{name}"))
