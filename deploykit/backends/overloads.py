"""Functions of one name in a file, which not every ONNX Runtime tells apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import onnxruntime as ort
from onnx import inliner

if TYPE_CHECKING:
    import onnx_ir as ir

TOLD_APART = (1, 27)
"""The first version that tells functions of one name by their overloads; those before it take one
for the other. Source: microsoft/onnxruntime, pull request 28275."""


def runnable(data: bytes, graph: ir.Model) -> bytes:
    """Return a file as the installed version runs it: without functions that it would mistake."""
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version >= TOLD_APART or not any(overload for *_, overload in graph.functions):
        return data
    plain = inliner.inline_local_functions(onnx.ModelProto.FromString(data))
    found: bytes = plain.SerializeToString()
    return found
