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
    if version >= TOLD_APART or not _overloaded(graph):
        return data
    plain = inliner.inline_local_functions(onnx.ModelProto.FromString(data))
    found: bytes = plain.SerializeToString()
    return found


def notes(graph: ir.Model) -> tuple[str, ...]:
    """Return what is said of a file whose functions an older version mistakes."""
    names = ", ".join(sorted(_overloaded(graph)))
    version = ".".join(map(str, TOLD_APART))
    said = f"{names} of several settings: ONNX Runtime before {version} mistakes one for another"
    way = "onnx.inliner.inline_local_functions makes a file that it runs"
    return (f"{said}; {way}",) if names else ()


def _overloaded(graph: ir.Model) -> set[str]:
    """Return the names that several functions of a file have."""
    return {name for _, name, overload in graph.functions if overload}
