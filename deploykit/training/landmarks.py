"""Tensors of a graph that training compares: what its heads give, and the features before them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.errors import unknown_name
from deploykit.graph.editing import is_op
from deploykit.precision.placement.rules import WEIGHTED
from deploykit.training.graphs.learning import learned

if TYPE_CHECKING:
    from collections.abc import Iterable

    import onnx_ir as ir


def heads(graph: ir.Graph) -> tuple[str, ...]:
    """Return what the last layers with weights that learn give, in the order of the graph.

    Behind them is only what is computed of it: activations, decoding, joints.
    """
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
    return tuple(str(node.outputs[0].name) for node in graph if node in found)


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
