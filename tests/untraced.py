"""What makes a whole run of the tests shorter, and changes nothing that they see.

Coverage pauses inside torch's exporter, onnxscript's optimiser, and where onnx_ir reads, writes and
copies a graph: Python would call it for every line there, and take twice as long. A line of
deploykit that runs within them alone counts as one that no test runs. And what the exporter reads
anew for each graph, the list of its operators, is read once.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

_MODULES = (
    *("torch", "torch._dynamo", "torch.onnx._internal.exporter._core", "torchvision"),
    *("onnx.reference", "onnx_ir", "onnxscript.optimizer"),
    "onnxscript.function_libs.torch_lib.ops",
)
_FUNCTIONS = (
    ("torch.onnx", "export"),
    ("torch.onnx", "ONNXProgram.optimize"),
    ("onnxscript.optimizer", "fold_constants"),
    *(("onnx_ir.serde", f"{verb}serialize_model") for verb in ("", "de")),
    *(("onnx_ir", path) for path in ("Model.clone", "Graph.clone")),
)


def install() -> None:
    """Import what is slow to import, and pause within these functions, whoever calls them."""
    for module in _MODULES:
        _pausing(importlib.import_module)(module)
    for module, path in _FUNCTIONS:
        *owners, name = path.split(".")
        owner = functools.reduce(getattr, owners, sys.modules[module])
        setattr(owner, name, _pausing(getattr(owner, name)))
    registration: Any = importlib.import_module("torch.onnx._internal.exporter._registration")
    operators = registration.onnxscript_apis
    operators.get_torchlib_ops = functools.cache(operators.get_torchlib_ops)


def _pausing(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        tracer = sys.gettrace()
        sys.settrace(None)  # here, not in a function: the tracer counts calls and returns
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)
            _call()

    return run


def _call() -> None:
    """Do nothing: coverage's tracer goes on at the first call that it sees."""
