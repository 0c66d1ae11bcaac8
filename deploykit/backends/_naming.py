"""Names that an engine can repeat: of each node and tensor, plain and its own.

An engine names its layers after the ONNX nodes they were made of, in a text or in JSON of its own.
A quotation mark or a line break would be lost there, and two nodes of one name could not be told
apart. So where the model's names are not plain, what is built has others.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.graph.expanding import expanded, has_functions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ODD = re.compile(r"[^\w!#$%&'()*+,./:;<=>?@\[\]^`|~-]|\.\.\.")
"""What no plain name holds: blanks, control signs, quotation marks, backslashes, braces, and the
dots by which TensorRT abbreviates."""
_LONGEST = 1000
"""Characters of a plain name; TensorRT refuses a layer of 4096."""


def spelt(name: str) -> str:
    """Return `name` with `_` in place of odd signs, as TensorRT-RTX writes quotation marks too."""
    return _ODD.sub("_", name)[:_LONGEST]


def as_built(model: ir.Model) -> tuple[ir.Model, Mapping[str, str]]:
    """Return the model under names that an engine can repeat, and such names -> the model's own.

    Local functions are written out. It is the model itself where nothing is to be done, else a
    copy, weights shared. Raises: ModelError as `expanded`.
    """
    if not has_functions(model) and not _changes(model) and not any(_odd_tensors(model)):
        return model, {}
    copy = expanded(model)
    own: dict[str, str] = {}
    for node, name in _changes(copy).items():
        own[name] = name_of(node)
        node.name = name
    taken = {str(value.name) for value in _tensors(copy)}
    for value in list(_odd_tensors(copy)):
        value.name = _free(spelt(str(value.name)), taken)
        taken.add(value.name)
    return copy, own


def _tensors(model: ir.Model) -> Iterator[ir.Value]:
    """Yield every tensor of the main graph, and what nodes of subgraphs compute."""
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        yield from node.outputs


def _odd_tensors(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the tensors that nobody outside knows, and whose names are not plain."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            name = str(value.name or "")
            if spelt(name) != name and not value.is_graph_output():
                yield value


def name_of(node: ir.Node) -> str:
    """Return a node's name, that of its first output where it has none."""
    return str(node.name or (node.outputs[0].name if node.outputs else ""))


def _changes(model: ir.Model) -> dict[ir.Node, str]:
    """Return the nodes whose names are not plain or stand twice, and the names that they get."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    taken = {name_of(node) for node in nodes}
    found: dict[ir.Node, str] = {}
    seen: set[str] = set()
    for node in nodes:
        name = name_of(node)
        if name in seen or spelt(name) != name:
            found[node] = name = _free(spelt(name), taken)
            taken.add(name)
        seen.add(name)
    return found


def _free(name: str, taken: set[str]) -> str:
    """Return `name`, or with a number behind it where it is taken."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free
