"""Which nodes FP16 would break on real inputs: their tensors leave its range, or its precision.

How far tensors reach is measured on the float32 model, see `probing`: an FP16 model in ONNX Runtime
on a CPU computes most in float32 and shows no overflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deploykit.graph.editing import is_op
from deploykit.precision.float16.rules import MAX_HALF, Wide

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import onnx_ir as ir

HEADROOM = 2.0
"""A tensor may become so many times larger on other inputs than on those it was seen on."""
MIN_NORMAL = 2.0**-14
"""FP16 numbers below it have fewer digits the smaller they are."""


def unfit(graph: ir.Graph, reached: Mapping[str, float]) -> Wide:
    """Return each node that must not compute in FP16, for a tensor it reads or writes."""
    found: Wide = {}
    for node in graph:
        values = (*node.inputs, *node.outputs)
        reasons = (_reason(value, reached) for value in values if value is not None)
        reason = next(filter(None, reasons), None)
        if reason is not None:
            found[str(node.name)] = reason
    return found


def _reason(value: ir.Value, reached: Mapping[str, float]) -> str | None:
    largest = reached.get(str(value.name))
    if largest is None or value.const_value is not None:
        return None
    if not largest * HEADROOM <= MAX_HALF:
        return f"{value.name} reaches {largest:.3g}, and FP16 ends at {MAX_HALF:g}"
    if 0 < largest < MIN_NORMAL:
        return f"{value.name} stays below {largest:.2g}, where FP16 has few digits"
    return None


def with_int8(graph: ir.Graph, wide: Wide) -> Wide:
    """Return `wide` and what must follow it in a graph with Q/DQ.

    A Cast between a DequantizeLinear and its reader would cost the reader its INT8. So the pairs
    that a node in FP32 reads are FP32 too, and so are all that read these. Where a scale is no
    number of FP16, its pair is where this begins.
    """
    found = dict(wide)
    for node in graph:
        if is_op(node, "QuantizeLinear", "DequantizeLinear") and not _is_half(node.inputs[1]):
            found.setdefault(str(node.name), "its step is too small for FP16")
    waiting = [node for node in graph if str(node.name) in found]
    while waiting:
        for node, reason in _neighbours(waiting.pop()):
            if str(node.name) not in found:
                found[str(node.name)] = reason
                waiting.append(node)
    return found


def _neighbours(node: ir.Node) -> Iterator[tuple[ir.Node, str]]:
    """Yield the nodes that must be FP32 because `node` is, over pairs of Q/DQ."""
    if is_op(node, "DequantizeLinear"):
        for reader, _ in node.outputs[0].uses():
            yield reader, f"reads {node.name}, which is FP32"
    for value in node.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and is_op(producer, "DequantizeLinear", "QuantizeLinear"):
            yield producer, f"feeds {node.name}, which is FP32"


def _is_half(scale: ir.Value | None) -> bool:
    """Return whether a scale is made of FP16 numbers."""
    if scale is None or scale.const_value is None:
        return True
    array = scale.const_value.numpy()
    with np.errstate(over="ignore"):
        return bool((array.astype(np.float16) == array).all())
