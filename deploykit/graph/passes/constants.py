"""Compute what depends on weights alone; Constant nodes become weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import LiftConstantsToInitializersPass

from deploykit.graph import folding
from deploykit.graph.editing import Pass

if TYPE_CHECKING:
    import onnx_ir as ir

LARGEST = 1 << 22
"""Elements that a folded constant may have (16 MB of float32); a bigger one stays computed."""


def apply(model: ir.Model) -> bool:
    """Return whether something was folded. Q/DQ of weights and ConstantOfShape stay nodes."""
    changed = folding.folded(model, LARGEST)
    lifted = LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    return bool(changed or lifted.modified)


PASS = Pass("constants", apply)
