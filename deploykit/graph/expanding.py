"""Local functions of a model written out where they are called."""

from __future__ import annotations

from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import common

from deploykit import ops
from deploykit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_NODES = 200_000
"""That functions may grow to: a function that calls another twice, 40 deep, has a billion."""


def has_functions(model: ir.Model) -> bool:
    """Return whether a model has local functions besides those of our ops."""
    return any(domain != ops.NAMESPACE for domain, *_ in model.functions)


def expanded(model: ir.Model) -> ir.Model:
    """Return a copy without local functions, weights shared; nodes of our ops stand as they are.

    A node of a function that is called twice is called `name` and `name_2`.

    Raises: ModelError where functions call in a circle, grow beyond MOST_NODES, or cannot be
    written out.
    """
    copy = model.clone()
    ops.detach(copy)
    if not copy.functions:
        return copy
    _check_size(copy)
    try:
        common.InlinePass()(copy)
    except ValueError as error:
        raise ModelError(
            f"the model's local functions cannot be written out: {error}",
            expected="functions of the model's own opset",
        ) from error
    return copy


def _check_size(model: ir.Model) -> None:
    """Raise ModelError where functions call in a circle, or grow too large."""
    callees = {
        key: {node.op_identifier() for node in function.all_nodes()} & model.functions.keys()
        for key, function in model.functions.items()
    }
    try:
        order = list(TopologicalSorter(callees).static_order())
    except CycleError as error:
        circle = ", ".join("::".join(key[:2]) for key in error.args[1])
        raise ModelError(f"local functions call one another in a circle: {circle}") from error
    sizes: dict[ir.OperatorIdentifier, int] = {}
    for key in order:
        sizes[key] = _size(model.functions[key].all_nodes(), sizes)
    size = _size(ir.traversal.RecursiveGraphIterator(model.graph), sizes)
    if size > MOST_NODES:
        raise ModelError(
            f"with its local functions written out the model has {size} nodes",
            expected=f"{MOST_NODES} at most",
        )


def _size(nodes: Iterable[ir.Node], sizes: dict[ir.OperatorIdentifier, int]) -> int:
    return sum(sizes.get(node.op_identifier(), 1) for node in nodes)
