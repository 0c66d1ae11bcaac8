"""The CUDA runtime, through cuda-python; everything here says why where there is none."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from deploykit.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

RUNTIME = "cuda.bindings.runtime"


def absence() -> str:
    """Return why no GPU can be used here, empty where one can."""
    try:
        runtime = importlib.import_module(RUNTIME)
    except ImportError:
        return "cuda-python is not installed"
    status, count = runtime.cudaGetDeviceCount()
    if int(status):
        return f"no CUDA driver or GPU ({status.name})"
    return "" if count else "no GPU"


def call(runtime: Any, name: str, *args: Any) -> Any:  # noqa: ANN401 - native handles
    """Return what a runtime function gives besides its status: None, a value, or a tuple.

    Raises: BackendError with the function and the status.
    """
    status, *values = getattr(runtime, name)(*args)
    if int(status):
        raise BackendError(f"{name} failed: {getattr(status, 'name', status)}")
    return values[0] if len(values) == 1 else tuple(values) or None


def compute_capability() -> str:
    """Return the first GPU's, such as `86`. Raises: BackendError. Not run in CI: needs a GPU."""
    runtime = importlib.import_module(RUNTIME)
    properties = call(runtime, "cudaGetDeviceProperties", 0)
    return f"{properties.major}{properties.minor}"


def unloadable(path: Path, log: Sequence[str]) -> BackendError:
    """Return the error for an engine that the runtime does not accept."""
    return BackendError(
        "\n".join([f"{path} cannot be loaded here", *log[-5:]]),
        expected="an engine built with this version for this GPU",
        fix="build it again on this machine, or for its --sm",
    )
