"""What INT8 layers add to their results on average, taken off their biases."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deploykit.errors import InputError
from deploykit.graph import scaling
from deploykit.graph.editing import constant, is_op, real, set_weight

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import onnx_ir as ir


class Bias(NamedTuple):
    """Where a layer's bias stands, or would."""

    node: ir.Node
    """The layer itself, or the Add behind a product."""
    place: int
    """Among the node's inputs."""
    factor: float
    """What it is multiplied by."""
    channels: int


def bias(node: ir.Node) -> Bias | None:
    """Return where a constant number per output channel can be added to a layer's result."""
    count = scaling.channels(node) if is_op(node, "Conv", "Gemm", "MatMul") else None
    if count is None:
        return None
    if is_op(node, "Conv", "Gemm"):
        factor = real(node, "beta", 1.0) if is_op(node, "Gemm") else 1.0
        return Bias(node, 2, factor, count) if factor else None
    readers = list(node.outputs[0].uses())
    if len(readers) != 1 or not is_op(readers[0][0], "Add") or node.outputs[0].is_graph_output():
        return None
    add, index = readers[0]
    held = constant(add.inputs[1 - index])
    row = held is not None and held.size == count == held.shape[-1]
    return Bias(add, 1 - index, 1.0, count) if row else None


def shift(graph: ir.Graph, shifts: Mapping[str, Sequence[float]], layers: Collection[str]) -> None:
    """Add `shifts`, one number per output channel, to the biases of `layers`, in place.

    shifts: of these and of further layers, which stay. Raises: InputError where they do not fit.
    """
    nodes = {str(node.name): node for node in graph}
    for name, amounts in shifts.items():
        place = bias(nodes[name]) if name in nodes else None
        if place is None or place.channels != len(amounts):
            raise InputError(
                f"shifts of the biases of {name!r} do not fit the model",
                expected="one number for each output channel of a layer with constant weights",
                fix="use the table with the file that it was made for",
            )
        if name in layers:
            _shift(place, np.asarray(amounts, np.float64) / place.factor)


def _shift(where: Bias, amounts: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> None:
    node, index = where.node, where.place
    value = node.inputs[index] if index < len(node.inputs) else None
    held = constant(value)
    old = np.zeros(where.channels, np.float32) if held is None else held
    stem = node.name if value is None else value.name
    set_weight(node, index, old.astype(np.float64) + amounts, old.dtype, f"{stem}.shifted")
