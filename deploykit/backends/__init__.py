"""The runtimes a model can be built for and run in: each is a module of functions."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from typing import TYPE_CHECKING, cast

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
    "ahead",
    "load",
]

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

NAMES = ("onnxruntime", "tensorrt", "tensorrt_rtx")
_SEPARATE = ("tensorrt", "tensorrt_rtx")
"""Those that build in a process of their own, and are called as the module that it imports."""


def load(name: str) -> Backend:
    """Return the backend called `name`. Raises: OptionError for an unknown name."""
    if name not in NAMES:
        raise unknown_name("backend", name, NAMES)
    return cast("Backend", importlib.import_module(f"deploykit.backends.{name}"))


def ahead(name: str) -> AbstractContextManager[None]:
    """Return a block in which a build begins sooner: its builder starts while the model is read.

    To be entered before anything is imported that takes long; it matters to small models. A backend
    that builds in this process, or that is not here, has nothing to start.
    """
    if name not in _SEPARATE or importlib.util.find_spec(name) is None:
        return contextlib.nullcontext()
    from deploykit.backends import _builder_process  # noqa: PLC0415 - for builds alone

    return _builder_process.ahead(name)
