"""What several rewrites need: constants, removal of a node, free names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    Array = NDArray[np.generic]
    Doubles = NDArray[np.float64]

_EXACT = "deploykit.exact"
"""Key of what a rewrite keeps beside a weight that it computed."""
WAYS = "deploykit.ways"
"""Key of which way each number of a weight is rounded: int8, 1 up, -1 down, 0 to the nearest."""


@dataclass(frozen=True)
class Pass:
    """One rewrite of a whole model."""

    name: str
    apply: Callable[[ir.Model], bool]
    """Rewrites the model in place; returns whether it changed."""


def per_node(name: str, rewrite: Callable[[ir.Node], bool], *, nested: bool = True) -> Pass:
    """Return the pass that offers every node to `rewrite`; nested: those of subgraphs too."""

    def apply(model: ir.Model) -> bool:
        offered = nodes(model) if nested else list(model.graph)
        return sum(rewrite(node) for node in offered if node.graph is not None) > 0

    return Pass(name, apply)


def nodes(model: ir.Model) -> list[ir.Node]:
    """Return every node of the model and its subgraphs, none of its local functions."""
    return list(ir.traversal.RecursiveGraphIterator(model.graph))


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Return whether `node` is one of these standard ONNX operators."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def constant(value: ir.Value | None) -> Array | None:
    """Return the value of a weight that no caller can replace, else None."""
    if value is None or value.const_value is None or value.is_graph_input():
        return None
    return value.const_value.numpy()


def source(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node of one of these types whose only product, used once, is `value`."""
    node = None if value is None else value.producer()
    if node is None or value is None or not is_op(node, *op_types):
        return None
    sole = len(value.uses()) == 1 and not value.is_graph_output()
    return node if sole and not any(other.uses() for other in node.outputs[1:]) else None


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute."""
    return node.attributes[name].as_int() if name in node.attributes else default


def real(node: ir.Node, name: str, default: float) -> float:
    """Return a float attribute as a file holds it: a float32."""
    given = node.attributes[name].as_float() if name in node.attributes else default
    return float(np.float32(given))


def text(node: ir.Node, name: str, default: str) -> str:
    """Return a text attribute."""
    return node.attributes[name].as_string() if name in node.attributes else default


def dims(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the shape of `value` where every dimension is known, else None."""
    if value is None or value.shape is None:
        return None
    known = tuple(dim for dim in value.shape if isinstance(dim, int) and dim >= 0)
    return known if len(known) == len(value.shape) else None


def bypass(node: ir.Node, value: ir.Value) -> bool:
    """Return whether `node` could be removed, its first output being equal to `value`.

    The model's outputs keep their names, so a node between an input or a weight and an output
    stays, and so does one between two outputs.
    """
    output, graph = node.outputs[0], node.graph
    fixed = value.is_graph_output() or value.producer() is None or value.graph is not graph
    if graph is None or (output.is_graph_output() and fixed):
        return False
    name = output.name if output.is_graph_output() else value.name
    value.shape = value.shape or output.shape
    value.type = value.type or output.type
    output.replace_all_uses_with(value, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    value.name = name
    return True


def exact(value: ir.Value | None) -> Doubles | None:
    """Return a weight in float64: as a rewrite computed it, before it was rounded to its type.

    What was not computed here is what it is; None where `value` is no weight.
    """
    array = constant(value)
    if value is None or array is None:
        return None
    kept: Doubles | None = value.meta.get(_EXACT)
    with np.errstate(over="ignore"):
        known = kept is not None and np.array_equal(kept.astype(array.dtype), array)
    return kept if known else array.astype(np.float64)


def set_weight(node: ir.Node, index: int, number: Doubles, dtype: np.dtype[Any], name: str) -> None:
    """Give `node` its own weight as input `index`; a new one is called `name`, made unique.

    number is rounded to dtype; as it is it is kept for proofs and for rewrites that follow.
    """
    old = node.inputs[index] if index < len(node.inputs) else None
    array = number.astype(dtype)
    tensor = ir.tensor(array)
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        tensor.name, old.const_value = old.name, tensor
        old.shape = ir.Shape(array.shape)
        old.meta[_EXACT] = number
        return
    graph = node.graph
    assert isinstance(graph, ir.Graph)  # callers rewrite no local functions
    tensor.name = unique(name, value_names(graph))
    fresh = ir.Value(
        name=tensor.name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    fresh.meta[_EXACT] = number
    graph.register_initializer(fresh)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, fresh)


def set_constant(node: ir.Node, array: Array) -> bool:
    """Return whether `node` could be replaced by a weight, called as its only output is."""
    graph, output = node.graph, node.outputs[0]
    if not isinstance(graph, ir.Graph) or output.is_graph_output():
        return False
    name = output.name or unique("constant", value_names(graph))
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)
    fresh = ir.Value(
        name=name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    output.replace_all_uses_with(fresh)
    graph.remove(node, safe=True)
    graph.register_initializer(fresh)
    return True


def new_weight(graph: ir.Graph, array: Array, name: str, taken: set[str]) -> ir.Value:
    """Return a new weight of `graph`, called `name`, made unique among `taken`."""
    tensor = ir.tensor(array, name=unique(name, taken))
    value = ir.Value(
        name=tensor.name,
        shape=ir.Shape(array.shape),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def take_place(old: ir.Node, new: ir.Node) -> None:
    """Let `new` stand where `old` was: its output is called, typed and read as the other's."""
    before, after, graph = old.outputs[0], new.outputs[0], old.graph
    assert graph is not None  # it is offered as a part of one
    after.type, after.shape = before.type, before.shape
    before.replace_all_uses_with(after, replace_graph_outputs=True)
    name = before.name
    graph.remove(old, safe=True)
    after.name = name


def value_names(graph: ir.Graph) -> set[str]:
    """Return the names of all values in `graph` and its subgraphs."""
    found = set(_names([*graph.inputs, *graph.initializers.values()]))
    for node in ir.traversal.RecursiveGraphIterator(graph):
        found.update(_names(node.outputs))
        found.update(_names(value for value in node.inputs if value is not None))
    return found


def _names(values: Iterable[ir.Value]) -> Iterator[str]:
    return (value.name for value in values if value.name)


def unique(name: str, taken: set[str]) -> str:
    """Return `name`, numbered (`name_1`) where it is taken, and add it to `taken`."""
    found, count = name, 0
    while found in taken:
        count += 1
        found = f"{name}_{count}"
    taken.add(found)
    return found
