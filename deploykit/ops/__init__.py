"""The ops of plugins/ in PyTorch and in ONNX models: traced, called, and written out.

An ONNX node of such an op is `deploykit::DK...` with its attributes and `plugin_namespace`, by
which TensorRT finds the plugin. For ONNX Runtime the model carries a local function per kind of
call (`attach`); a TensorRT build without plugins gets the nodes replaced by standard ops
(`inline`), and one with plugins gets no functions at all (`detach`): a missing plugin must be an
error, not a silent fallback. Ops without a kernel are replaced in both.
"""

from __future__ import annotations

from deploykit.ops.attributes import complete
from deploykit.ops.nodes import (
    AT_MOST,
    attach,
    calls,
    check,
    counts,
    detach,
    fill,
    inline,
)
from deploykit.ops.plugin import (
    NAMESPACE,
    Attribute,
    Call,
    Input,
    Launcher,
    Output,
    Plugin,
    Suppression,
)
from deploykit.ops.registry import everything, known, library, load, op_of, shipped
from deploykit.ops.tracing import torch_op, translations

__all__ = [
    "AT_MOST",
    "NAMESPACE",
    "Attribute",
    "Call",
    "Input",
    "Launcher",
    "Output",
    "Plugin",
    "Suppression",
    "attach",
    "calls",
    "check",
    "complete",
    "counts",
    "detach",
    "everything",
    "fill",
    "inline",
    "known",
    "library",
    "load",
    "op_of",
    "shipped",
    "torch_op",
    "translations",
]
