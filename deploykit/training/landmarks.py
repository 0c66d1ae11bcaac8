"""Tensors of a graph that training compares: what its heads give, and the features before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deploykit.errors import unknown_name
from deploykit.graph.editing import integer, is_op
from deploykit.precision.placement.rules import moves
from deploykit.precision.placement.weighted import WEIGHTED
from deploykit.training.graphs.learning import learned

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    import onnx_ir as ir


@dataclass(frozen=True)
class Head:
    """What a head gives, as near to its meaning as the graph says it."""

    tensor: str
    kind: Literal["plain", "sigmoid", "softmax"] = "plain"
    """What is computed of it: numbers, independent probabilities, or a distribution."""
    axis: int = -1
    """Of the distribution."""


def heads(graph: ir.Graph) -> tuple[str, ...]:
    """Return what the last layers with weights that learn give, moved but not computed further."""
    return tuple(dict.fromkeys(name for value in _last(graph) for name in _ends(value)))


def named(graph: ir.Graph, names: Iterable[str], logits: Collection[str] = ()) -> tuple[Head, ...]:
    """Return tensors as heads, by what the graph does with them.

    logits: Outputs that are class scores before a softmax over their second axis.

    Raises: OptionError for a tensor that the graph lacks.
    """
    known = {str(value.name): value for node in graph for value in node.outputs}
    found = []
    for name in names:
        if name not in known:
            raise unknown_name("tensor", name, known)
        head = _read_as(known[name])
        chosen = Head(name, "softmax", 1) if name in logits else Head(name)
        found.append(head or chosen)
    return tuple(found)


def _last(graph: ir.Graph) -> list[ir.Value]:
    """Return the products behind which no layer learns, in the order of the graph."""
    weights = set(learned(graph))
    waiting: list[ir.Value | None] = list(graph.outputs)
    seen: set[ir.Value] = set()
    found: set[ir.Node] = set()
    while waiting:
        value = waiting.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is None:
            continue
        if is_op(node, *WEIGHTED) and any(each in weights for each in node.inputs[:2]):
            found.add(node)
        else:
            waiting += node.inputs
    return [node.outputs[0] for node in graph if node in found]


def _ends(start: ir.Value) -> Iterator[str]:
    """Yield where a tensor stops being only moved."""
    waiting = [start]
    while waiting:
        value = waiting.pop()
        readers = [node for node, _ in value.uses() if not is_op(node, "Shape", "Size")]
        onward = [node for node in readers if moves(node)]
        if value.is_graph_output() or _read_as(value) or len(onward) < len(readers):
            yield str(value.name)
        else:
            waiting += [output for node in reversed(onward) for output in node.outputs]


def _read_as(value: ir.Value) -> Head | None:
    """Return a tensor that probabilities are computed of, None for another, or a gate's."""
    name, readers = str(value.name), [node for node, _ in value.uses()]
    for node in readers:
        if is_op(node, "Sigmoid") and not any(is_op(each, "Mul") for each in readers):
            return Head(name, "sigmoid")
        if is_op(node, "Softmax", "LogSoftmax"):
            return Head(name, "softmax", integer(node, "axis", -1))
    return None


def features(graph: ir.Graph, modules: Iterable[str]) -> tuple[str, ...]:
    """Return what modules give to others, by their paths, which node names begin with.

    Raises: OptionError for a module that the graph has no node of.
    """
    found: dict[str, None] = {}
    for path in modules:
        inside = [node for node in graph if _within(node, path)]
        if not inside:
            names = {str(node.name).rpartition(".")[0] for node in graph} - {""}
            raise unknown_name("module", path, names)
        for node in inside:
            found.update((str(v.name), None) for v in node.outputs if _leaves(v, path))
    return tuple(found)


def _within(node: ir.Node, path: str) -> bool:
    return node.name == path or str(node.name).startswith(f"{path}.")


def _leaves(value: ir.Value, path: str) -> bool:
    """Return whether a node outside of a module reads a tensor."""
    return value.is_graph_output() or any(not _within(node, path) for node, _ in value.uses())
