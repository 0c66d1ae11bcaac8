"""Remove nodes, weights, local functions and opset imports that no output needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import (
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from deploykit.graph.editing import Pass

if TYPE_CHECKING:
    import onnx_ir as ir


def apply(model: ir.Model) -> bool:
    """Return whether something was removed; the model's inputs and outputs all stay."""
    removals: tuple[ir.passes.InPlacePass, ...] = (
        RemoveUnusedNodesPass(),
        RemoveUnusedFunctionsPass(),  # type: ignore[no-untyped-call]  # onnx_ir left it untyped
        RemoveUnusedOpsetsPass(),
    )
    return sum(removal(model).modified for removal in removals) > 0


PASS = Pass("dead_code", apply)
