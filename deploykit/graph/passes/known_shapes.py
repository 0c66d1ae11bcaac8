"""Infer shapes anew: what was open when the file was written may be known behind a rewrite."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.graph import inferring
from deploykit.graph.editing import Pass, dims

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir


def apply(model: ir.Model) -> bool:
    """Return whether a shape became known that was open; nothing else is touched.

    Shapes behind our ops are formulas of what they hold, and stay.
    """
    if ops.counts(model):
        return False
    return bool(infer(model))


def infer(model: ir.Model) -> list[ir.Value]:
    """Return the values whose shapes have more known sizes than before, inferred in place."""
    stale = {value: value.shape for value in _open(model.graph)}
    for value in stale:
        value.shape = None
    inferring.infer(model)
    better = [value for value, old in stale.items() if _known(value.shape) > _known(old)]
    for value, old in stale.items():
        if value not in better:
            value.shape = old
    return better


def _open(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield what the nodes of a graph make in shapes that are not wholly known."""
    for node in graph:
        yield from (value for value in node.outputs if dims(value) is None)


def _known(shape: ir.Shape | None) -> int:
    """Return how many sizes of a shape are known, a shape itself counting as one."""
    return 0 if shape is None else 1 + sum(isinstance(size, int) for size in shape)


PASS = Pass("known_shapes", apply)
