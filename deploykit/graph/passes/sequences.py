"""SplitToSequence of known sizes -> Split, ConcatFromSequence -> Concat: no sequence is left.

Each is written in the form that the model's opset has. SequenceAt of a known place is left to
`constants`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.graph import opsets
from deploykit.graph.editing import (
    Pass,
    constant,
    integer,
    is_op,
    new_weight,
    nodes,
    take_place,
    unique,
    value_names,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

_AXES_ARE_INPUTS = 13
"""Opset from which on Split, Squeeze and Unsqueeze have numbers as an input, not an attribute."""
_LISTS = {"Split": "split", "Squeeze": "axes", "Unsqueeze": "axes"}
"""Op -> its numbers, as an attribute of older opsets."""


def apply(model: ir.Model) -> bool:
    """Return whether a sequence was replaced by tensors. Those in subgraphs stay."""
    version = opsets.version(model)
    return sum(_rewritten(node, version) for node in nodes(model) if node.graph is model.graph) > 0


def _rewritten(node: ir.Node, version: int) -> bool:
    if is_op(node, "SplitToSequence"):
        return _split(node, version)
    return is_op(node, "ConcatFromSequence") and _joined(node, version)


def _split(node: ir.Node, version: int) -> bool:
    """Return whether a SplitToSequence became a Split and a SequenceConstruct."""
    sizes = _sizes(node)
    if not sizes:
        return False
    writer = _Writer(node, version)
    axis = integer(node, "axis", 0)
    parts = writer.add("Split", node.inputs[:1], sizes, len(sizes), axis=axis)
    if len(node.inputs) < 2 and not integer(node, "keepdims", 1):
        parts = [writer.add("Squeeze", [part], [axis])[0] for part in parts]
    writer.replace("SequenceConstruct", parts)
    return True


def _sizes(node: ir.Node) -> list[int]:
    """Return how long each part is along the axis; empty: not known."""
    data = node.inputs[0]
    if data is None or data.shape is None:
        return []
    axis = integer(node, "axis", 0)
    whole = data.shape[axis] if -len(data.shape) <= axis < len(data.shape) else None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    split = np.array(1) if given is None else constant(given)
    if split is None or np.less(split, 0).any():
        return []
    if split.ndim:
        return [int(size) for size in split]
    step = int(split)
    if not isinstance(whole, int) or whole < 1 or step < 1:
        return []
    return [min(step, whole - start) for start in range(0, whole, step)]


def _joined(node: ir.Node, version: int) -> bool:
    """Return whether a ConcatFromSequence of a SequenceConstruct became a Concat."""
    made = None if node.inputs[0] is None else node.inputs[0].producer()
    if made is None or not is_op(made, "SequenceConstruct"):
        return False
    writer, axis, parts = _Writer(node, version), integer(node, "axis", 0), list(made.inputs)
    if integer(node, "new_axis", 0):
        parts = [writer.add("Unsqueeze", [part], [axis])[0] for part in parts]
    writer.replace("Concat", parts, axis=axis)
    return True


class _Writer:
    """Puts nodes before one, named after it."""

    def __init__(self, node: ir.Node, version: int) -> None:
        assert isinstance(node.graph, ir.Graph)  # the pass offers nodes of the main graph
        self._node, self._graph, self._version = node, node.graph, version
        self._taken = value_names(node.graph)

    def add(
        self,
        op: str,
        inputs: Sequence[ir.Value | None],
        numbers: Sequence[int],
        count: int = 1,
        **attributes: int,
    ) -> Sequence[ir.Value]:
        """Return what a new node makes that is told some numbers in the form of its opset."""
        given: dict[str, int | list[int]] = dict(attributes)
        if self._version < _AXES_ARE_INPUTS:
            given[_LISTS[op]] = list(numbers)
        else:
            name = f"{self._node.name or op}.{_LISTS[op]}"
            array = np.array(numbers, np.int64)
            inputs = [*inputs, new_weight(self._graph, array, name, self._taken)]
        name = unique(f"{self._node.name or self._node.op_type}.{op}", self._taken)
        outputs = [ir.Value(name=unique(f"{name}_{i}", self._taken)) for i in range(count)]
        made = ir.node(op, inputs, given, outputs=outputs, name=name)
        for value in outputs:
            value.type = None if inputs[0] is None else inputs[0].type
        self._graph.insert_before(self._node, made)
        return outputs

    def replace(self, op: str, inputs: Sequence[ir.Value | None], **attributes: int) -> None:
        """Let a new node stand where the old one was."""
        made = ir.node(op, inputs, attributes, name=self._node.name)
        self._graph.insert_before(self._node, made)
        take_place(self._node, made)


PASS = Pass("sequences", apply)
