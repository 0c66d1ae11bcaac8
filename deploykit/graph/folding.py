"""What depends on constants alone, computed once: by ONNX's reference, where it is right."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.graph import opsets
from deploykit.graph.editing import is_op, nodes, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir

_NEVER = 1 << 30
_UNLIKE: Mapping[str, int] = {
    "BatchNormalization": 14,
    "Hardmax": 13,
    "LRN": _NEVER,
    "LogSoftmax": 13,
    "LpNormalization": _NEVER,
    "RoiAlign": 16,
    "Softmax": 13,
}
"""Op -> the first opset at which ONNX's reference computes what the op means: below, it has the
later meaning. LpNormalization of p = 1, and LRN of more channels than images, it computes
otherwise; Resize too, where the corners are aligned."""
_SEQUENCES = ("SplitToSequence", "ConcatFromSequence")
"""Ops for which the optimizer writes others in the form of opset 18; `sequences` has their own."""
_ASIDE = "deploykit.aside"
"""Domain of what the optimizer is not to see."""


def is_unlike(op_type: str, version: int, places: str = "") -> bool:
    """Return whether ONNX's reference computes another op than is meant at an opset.

    places: how a Resize finds its samples.
    """
    return version < _UNLIKE.get(op_type, 0) or (op_type == "Resize" and places == "align_corners")


def folded(
    model: ir.Model, most: int, foldable: Callable[[ir.Node], bool | None] = lambda _: None
) -> bool:
    """Return whether nodes of constants became constants, in place.

    most: elements that a constant has at most, read or made. foldable: whether to compute a node;
    None: by the optimizer's own rules, which leave Q/DQ and ConstantOfShape.
    """
    from onnxscript import optimizer  # noqa: PLC0415 - slow, and most commands fold nothing

    version = opsets.version(model)

    def decide(node: ir.Node) -> bool | None:
        places = text(node, "coordinate_transformation_mode", "")
        own = node.domain in opsets.STANDARD
        return False if own and is_unlike(node.op_type, version, places) else foldable(node)

    functions = (node for function in model.functions.values() for node in function.all_nodes())
    aside = [node for node in (*nodes(model), *functions) if is_op(node, *_SEQUENCES)]
    domains = [node.domain for node in aside]
    for node in aside:
        node.domain = _ASIDE
    try:
        result = optimizer.fold_constants(
            model,
            onnx_shape_inference=True,
            input_size_limit=most,
            output_size_limit=most,
            should_fold=decide,
        )
    finally:
        for node, domain in zip(aside, domains, strict=True):
            node.domain = domain
    return bool(result.modified)
