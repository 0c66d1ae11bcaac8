"""Which constants of a graph are weights that learn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.errors import ModelError
from deploykit.graph.editing import is_op, set_constant
from deploykit.precision.placement.weighted import WEIGHTED, constant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor

_NORMS = (
    "BatchNormalization",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
)
_LEARNED = {
    **dict.fromkeys(WEIGHTED, (0, 1, 2)),
    **dict.fromkeys(_NORMS, (1, 2)),
    "PRelu": (1,),
}
"""Op -> its inputs that are weights where they are constant."""


def learned(graph: ir.Graph) -> Iterator[ir.Value]:
    """Yield the weights, in the order of their readers: kernels, biases, and scales of norms.

    Weights that are whole numbers were set by hand, as the bins of a distribution or a shift are,
    but for those that are all 0, as a layer may begin.
    All other constants, such as anchors, are no weights.
    """
    seen: set[ir.Value] = set()
    for node in graph:
        for value in _weights(node):
            if value in seen or value.is_graph_output():
                continue
            seen.add(value)
            tensor = constant(value)
            if tensor is None or tensor.dtype.numpy().kind != "f":
                continue
            array = tensor.numpy()
            whole = array.ndim > 1 and array.any() and np.array_equal(array, np.rint(array))
            if array.size and not whole:
                yield value


def relearned(model: ir.Model, weights: Mapping[str, Tensor]) -> None:
    """Put weights by name into a model, in place; what was kept of the old ones is forgotten.

    Raises: ModelError for one that is not finite.
    """
    for value in tuple(learned(model.graph)):
        name = str(value.name)
        array = np.ascontiguousarray(weights[name].detach().cpu().numpy())
        if not np.isfinite(array).all():
            raise ModelError(f"the weights {name!r} that were learnt are not finite")
        node = value.producer()
        if node is not None:
            set_constant(node, array)
            continue
        value.const_value = ir.tensor(array, name=name)
        value.meta.clear()


def _weights(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the constants of a node that are weights."""
    indices = _LEARNED.get(node.op_type, ()) if is_op(node, node.op_type) else ()
    if is_op(node, "Add") and any(_multiplies(value) for value in node.inputs):
        indices = (0, 1)  # the bias of a product
    for index in indices:
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is not None and constant(value) is not None:
            yield value


def _multiplies(value: ir.Value | None) -> bool:
    """Return whether a tensor is a product with constant weights."""
    node = None if value is None else value.producer()
    if node is None or not is_op(node, "MatMul"):
        return False
    return any(constant(each) is not None for each in node.inputs)
