"""Nodes that keep factors of channels: what is scaled before them is scaled alike behind them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.graph.editing import constant, integer, text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    Slots: TypeAlias = NDArray[np.int64]
    Of: TypeAlias = Callable[[ir.Value | None], Slots | None]
    """Tensor -> the slots of its channels, which are axis 1."""
    Join: TypeAlias = Callable[[Slots, Slots], None]
    Found: TypeAlias = "dict[ir.Value, Slots] | None"
    """Output -> slots; None: the node keeps no factors."""
    Keep: TypeAlias = Callable[[ir.Node, Of, Join], Found]

_HUGE = 1e30
"""A limit from which on nothing is cut."""


def _same(node: ir.Node, of: Of, _: Join) -> Found:
    """Each output value is of one channel and in proportion to it; other inputs are settings."""
    slots = of(node.inputs[0])
    if slots is None or any(other.uses() for other in node.outputs[1:]):
        return None
    if any(value is not None and constant(value) is None for value in node.inputs[1:]):
        return None
    return {node.outputs[0]: slots}


def _sized(node: ir.Node, of: Of, _: Join) -> Found:
    """As `_same`, with inputs that are computed from shapes; the channels stay as many."""
    slots = of(node.inputs[0])
    shape = node.outputs[0].shape
    stays = slots is not None and shape is not None and len(shape) > 1 and shape[1] == len(slots)
    return {node.outputs[0]: slots} if stays and slots is not None else None


def _resize(node: ir.Node, of: Of, join: Join) -> Found:
    mode = text(node, "coordinate_transformation_mode", "half_pixel")
    return None if mode == "tf_crop_and_resize" else _sized(node, of, join)


def _pad(node: ir.Node, of: Of, join: Join) -> Found:
    value = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    given = len(node.inputs) > 2 and node.inputs[2] is not None
    zeros = not given or (value is not None and not value.any())
    if text(node, "mode", "constant") == "constant" and not zeros:
        return None
    return _sized(node, of, join)


def _clip(node: ir.Node, of: Of, _: Join) -> Found:
    """A Clip at zero is a Relu."""
    low, high = (constant(v) for v in (*node.inputs[1:], None, None)[:2])
    given = [value is not None for value in (*node.inputs[1:], None, None)[:2]]
    slots = of(node.inputs[0])
    cut_below = given[0] and (low is None or low.size != 1 or float(low.reshape(())) != 0)
    cut_above = given[1] and (high is None or high.size != 1 or float(high.reshape(())) < _HUGE)
    return None if slots is None or cut_below or cut_above else {node.outputs[0]: slots}


def _sum(node: ir.Node, of: Of, join: Join) -> Found:
    """What is added up has one factor per channel."""
    left, right = (of(value) for value in node.inputs)
    ranks = {None if v is None or v.shape is None else len(v.shape) for v in node.inputs}
    if left is None or right is None or len(left) != len(right) or len(ranks) != 1:
        return None
    join(left, right)
    return {node.outputs[0]: left}


def _product(node: ir.Node, of: Of, _: Join) -> Found:
    """A product with what is not scaled, such as a gate or a number per channel."""
    given = [(value, of(value)) for value in node.inputs if constant(value) is None]
    scaled = [(v, slots) for v, slots in given if v and slots is not None and slots.any()]
    output = node.outputs[0]
    if len(scaled) != 1 or output.shape is None:
        return None
    value, slots = scaled[0]
    divides = node.op_type == "Div" and value is node.inputs[1]
    alike = value.shape is not None and len(value.shape) == len(output.shape) > 1
    return None if divides or not alike or output.shape[1] != len(slots) else {output: slots}


def _concat(node: ir.Node, of: Of, _: Join) -> Found:
    first = node.inputs[0]
    rank = len(first.shape) if first is not None and first.shape is not None else 0
    axis = integer(node, "axis", 0)
    if not rank or axis % rank != 1:
        return None
    parts = [of(value) for value in node.inputs]
    known = [part for part in parts if part is not None]
    return {node.outputs[0]: np.concatenate(known)} if len(known) == len(parts) else None


def _split(node: ir.Node, of: Of, _: Join) -> Found:
    slots, value = of(node.inputs[0]), node.inputs[0]
    shapes = [output.shape for output in node.outputs]
    if slots is None or value is None or value.shape is None or any(s is None for s in shapes):
        return None
    axis = integer(node, "axis", 0) % len(value.shape)
    if axis > 1:
        return dict.fromkeys(node.outputs, slots)
    counts = [shape[1] for shape in shapes if shape is not None]
    sizes = [count for count in counts if isinstance(count, int)]
    if axis != 1 or len(sizes) != len(counts) or sum(sizes) != len(slots):
        return None
    return dict(zip(node.outputs, np.split(slots, np.cumsum(sizes)[:-1]), strict=True))


def _slice(node: ir.Node, of: Of, _: Join) -> Found:
    slots, value = of(node.inputs[0]), node.inputs[0]
    starts, ends, axes, steps = (constant(v) for v in (*node.inputs[1:], None, None)[:4])
    given = len(node.inputs) < 5 or node.inputs[4] is None or steps is not None
    if slots is None or value is None or value.shape is None or axes is None or not given:
        return None
    for place, axis in enumerate(axes.reshape(-1).tolist()):
        if axis % len(value.shape) > 1:
            continue
        if axis % len(value.shape) == 0 or starts is None or ends is None:
            return None
        step = 1 if steps is None else int(steps.reshape(-1)[place])
        slots = slots[int(starts.reshape(-1)[place]) : int(ends.reshape(-1)[place]) : step]
    shape = node.outputs[0].shape
    return {node.outputs[0]: slots} if shape is not None and shape[1] == len(slots) else None


def _reshape(node: ir.Node, of: Of, _: Join) -> Found:
    """Channels that stay, or that are flattened together with their places."""
    slots, value, output = of(node.inputs[0]), node.inputs[0], node.outputs[0]
    before, after = (None if v is None else _sizes(v) for v in (value, output))
    if slots is None or not before or not after or math.prod(before) != math.prod(after):
        return None
    if after[0] == before[0]:
        return {output: slots}
    return {output: np.repeat(slots, math.prod(before[1:]))} if len(after) == 1 else None


def _sizes(value: ir.Value) -> tuple[int, ...]:
    """Return the sizes behind the batch, empty where one is not known."""
    shape = () if value.shape is None else tuple(value.shape)[1:]
    known = tuple(size for size in shape if isinstance(size, int) and size > 0)
    return known if len(known) == len(shape) else ()


def _mean(node: ir.Node, of: Of, _: Join) -> Found:
    """A mean over the places of a map."""
    slots, value = of(node.inputs[0]), node.inputs[0]
    attribute = node.attributes.get("axes")
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = attribute.as_ints() if attribute is not None else () if given is None else given.tolist()
    if slots is None or value is None or value.shape is None or not axes:
        return None
    places = all(axis % len(value.shape) > 1 for axis in axes)
    return {node.outputs[0]: slots} if places else None


def _nothing(_node: ir.Node, _of: Of, _join: Join) -> Found:
    """Only the shape is read."""
    return {}


KEEPING: Mapping[str, Keep] = {
    **dict.fromkeys(("Relu", "LeakyRelu", "PRelu", "Identity", "Neg", "Abs"), _same),
    **dict.fromkeys(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"), _same),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _reshape),
    **dict.fromkeys(("Add", "Sub"), _sum),
    **dict.fromkeys(("Mul", "Div"), _product),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax"), _mean),
    **dict.fromkeys(("Shape", "Size"), _nothing),
    "Dropout": _same,
    "Clip": _clip,
    "Concat": _concat,
    "Pad": _pad,
    "Resize": _resize,
    "Slice": _slice,
    "Split": _split,
}
"""Op -> what becomes of the factors; an op that is not here keeps none."""
