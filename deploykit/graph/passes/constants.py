"""Compute what depends on weights alone; Constant nodes become weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import LiftConstantsToInitializersPass

from deploykit.graph.editing import Pass

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST = 1 << 22
"""Elements that a folded constant may have (16 MB of float32); a bigger one stays computed."""


def apply(model: ir.Model) -> bool:
    """Return whether something was folded. Q/DQ of weights and ConstantOfShape stay nodes."""
    from onnxscript import optimizer  # noqa: PLC0415 - slow, and most commands fold nothing

    folded = optimizer.fold_constants(
        model, onnx_shape_inference=True, input_size_limit=LARGEST, output_size_limit=LARGEST
    )
    lifted = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return bool(folded.modified or lifted.modified)


PASS = Pass("constants", apply)
