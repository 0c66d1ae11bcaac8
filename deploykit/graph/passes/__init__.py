"""ONNX rewrites, one per file; each keeps what the model computes."""

from __future__ import annotations

from deploykit.graph.editing import Pass, per_node
from deploykit.graph.passes import (
    batch_norm,
    channel_arithmetic,
    constant_shapes,
    constants,
    dead_code,
    gelu,
    kernel_shape,
    known_shapes,
    module_names,
    moved_weights,
    no_ops,
    reshapes,
    resize_scales,
    sequences,
    sums,
    transposes,
    unique_names,
)

__all__ = ["DEFAULT", "FOREIGN", "Pass", "per_node"]

DEFAULT: tuple[Pass, ...] = (
    module_names.PASS,  # first: the exporter's notes do not survive a rewrite
    constant_shapes.PASS,
    moved_weights.PASS,
    sequences.PASS,
    constants.PASS,
    no_ops.PASS,
    sums.PASS,
    transposes.PASS,
    reshapes.PASS,
    resize_scales.PASS,
    batch_norm.PASS,
    channel_arithmetic.PASS,
    gelu.PASS,
    dead_code.PASS,
    kernel_shape.PASS,
    unique_names.PASS,
    known_shapes.PASS,
)
FOREIGN: tuple[Pass, ...] = DEFAULT[1:]
"""For files of other exporters: their nodes keep the names that the user knows."""
