"""Remove nodes, weights, local functions and opset imports that no output needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import (
    RemoveUnusedFunctionsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
)

from deploykit.passes._graph import Pass

if TYPE_CHECKING:
    import onnx_ir as ir


def apply(model: ir.Model) -> bool:
    """Return whether something was removed; the model's inputs and outputs all stay."""
    removals = (RemoveUnusedNodesPass(), RemoveUnusedFunctionsPass(), RemoveUnusedOpsetsPass())
    return any([removal(model).modified for removal in removals])


PASS = Pass("dead_code", apply)
