"""Types and shapes by ONNX's inference, which goes as far as it can."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from deploykit.graph.editing import is_op

if TYPE_CHECKING:
    from collections.abc import Iterator

_SEQUENCES = (
    *("SplitToSequence", "SequenceConstruct", "SequenceInsert", "SequenceErase"),
    *("SequenceEmpty", "SequenceMap"),
)
"""Ops that make sequences of tensors."""


def infer(model: ir.Model) -> None:
    """Infer types and shapes in place; what cannot be known stays open, nothing raises."""
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    for value in list(_sequences(model)):
        value.type, value.shape = ir.SequenceType(ir.TensorType(_element(value))), None


def is_sequence(value: ir.Value | None) -> bool:
    """Return whether a value is no tensor, though its elements may be some."""
    return value is not None and not isinstance(value.type, ir.TensorType | None)


def _sequences(model: ir.Model) -> Iterator[ir.Value]:
    """Yield the sequences that the inference has taken for tensors."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if is_op(node, *_SEQUENCES) and isinstance(node.outputs[0].type, ir.TensorType | None):
            yield node.outputs[0]


def _element(value: ir.Value) -> ir.DataType:
    """Return the type of a sequence's elements: that of what it is made of."""
    node = value.producer()
    found = (each.dtype for each in (value, *(node.inputs if node else ())) if each is not None)
    return next(filter(None, found), ir.DataType.FLOAT)
