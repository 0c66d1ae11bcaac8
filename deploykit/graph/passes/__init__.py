"""ONNX rewrites, one per file; each keeps what the model computes."""

from __future__ import annotations

from deploykit.graph.editing import Pass, per_node
from deploykit.graph.passes import (
    batch_norm,
    channel_arithmetic,
    constants,
    dead_code,
    kernel_shape,
    module_names,
    no_ops,
    reshapes,
    transposes,
    unique_names,
)

__all__ = ["DEFAULT", "Pass", "per_node"]

DEFAULT: tuple[Pass, ...] = (
    module_names.PASS,  # first: the exporter's notes do not survive a rewrite
    constants.PASS,
    no_ops.PASS,
    transposes.PASS,
    reshapes.PASS,
    batch_norm.PASS,
    channel_arithmetic.PASS,
    dead_code.PASS,
    kernel_shape.PASS,
    unique_names.PASS,
)
