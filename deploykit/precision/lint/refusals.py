"""What each rule looks for at a node that TensorRT's parser refuses or runs badly, Q/DQ or not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.ops.plugin import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from deploykit.precision.lint.checks import Facts, Message

DYNAMIC_RESULTS: Mapping[str, str] = {
    "NonMaxSuppression": "TensorRT-RTX refuses it, and TensorRT sorts at most 5000 boxes",
    "NonZero": "TensorRT-RTX refuses it",
    "Unique": "TensorRT refuses it",
    "Compress": "TensorRT refuses it",
}
"""Op whose result's size depends on the data -> what the builders do with it."""


def no_namespace(node: ir.Node, _: Facts) -> Message:
    """Find a custom op that TensorRT does not look up among the plugins."""
    plugin = ops.op_of(node)
    if plugin is not None and not plugin.source:
        return None  # standard ops take its place
    given = node.attributes.get("plugin_namespace")
    found = "" if given is None else given.as_string()
    if found == NAMESPACE:
        return None
    return f"plugin_namespace is {found!r}: TensorRT passes the plugin by without a word"


def uneven_branches(node: ir.Node, _: Facts) -> Message:
    """Find an If whose branches give different shapes."""
    graphs = [node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    for pair in zip(*(graph.outputs for graph in graphs), strict=False):
        shapes = [None if value.shape is None else value.shape for value in pair]
        sizes = [None if shape is None else list(map(str, shape)) for shape in shapes]
        if sizes[0] is None or sizes[0] != sizes[1]:
            return "its branches give unknown or different shapes, which TensorRT's parser refuses"
    return None


def dynamic_result(node: ir.Node, _: Facts) -> Message:
    """Find an op whose result's size depends on the data."""
    return (
        f"{node.op_type}: {DYNAMIC_RESULTS[node.op_type]}; its result's size depends on the data, "
        "which costs a copy to the host and forbids CUDA graphs"
    )


def region_align(_: ir.Node, __: Facts) -> Message:
    """Find the standard op that samples regions."""
    return "TensorRT-RTX refuses RoiAlign, and TensorRT computes its coordinates in FP16 with FP16"


def region_pool(_: ir.Node, __: Facts) -> Message:
    """Find the standard op that takes the maximum of regions."""
    return "TensorRT has no parser for MaxRoiPool"
