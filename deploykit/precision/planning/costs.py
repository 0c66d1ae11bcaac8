"""How long each layer takes in INT8 and in FP16, and what it costs where the two meet.

Roofline: a layer takes as long as its arithmetic at the GPU's peak or its traffic at the memory's,
whichever is longer, and a start. Where an FP16 result is read in INT8, a kernel of its own converts
it; where an INT8 layer's result is read in FP16, the layer writes two bytes in place of one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from deploykit.errors import ModelError
from deploykit.graph import cost
from deploykit.graph.editing import integer
from deploykit.precision import functions

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import onnx_ir as ir

    from deploykit.precision.planning.gpus import Gpu


class Reached(NamedTuple):
    """How much of a GPU's peaks the kernels of one precision reach."""

    arithmetic: float
    bandwidth: float
    start: float
    """Seconds of a kernel without work."""
    inner: int
    """Terms that every sum takes longer than it has: filling and draining the pipeline."""
    multiple: int
    """Terms of a sum are filled up to a multiple of this."""


FP16 = Reached(0.576, 0.733, 2.36e-6, 324, 32)
INT8 = Reached(0.482, 0.80, 4.9e-6, 0, 64)
_CONVERTED = 3
"""Bytes that a conversion moves for each value: two read, one written."""


class Seconds(NamedTuple):
    """How long a layer takes."""

    int8: float
    half: float


@dataclass(frozen=True)
class Meeting:
    """A tensor that a layer writes, or the images, and the layers that read it."""

    writer: str | None
    readers: tuple[str, ...]
    convert: float
    """Seconds where it is written in FP16 and a reader is INT8."""
    widen: float
    """Seconds where it is written by an INT8 layer and a reader is FP16."""


@dataclass(frozen=True)
class Costs:
    """The model of time that a plan is chosen by."""

    layers: Mapping[str, Seconds]
    meetings: tuple[Meeting, ...]

    def seconds(self, kept: Iterable[str]) -> float:
        """Return the time of all layers where those `kept` are float and the others INT8."""
        half = set(kept)
        total = sum(each.half if name in half else each.int8 for name, each in self.layers.items())
        for meeting in self.meetings:
            int8_read = any(reader not in half for reader in meeting.readers)
            if meeting.writer is None or meeting.writer in half:
                total += meeting.convert * int8_read
            elif any(reader in half for reader in meeting.readers):
                total += meeting.widen
        return total


def roofline(model: ir.Model, layers: Sequence[str], gpu: Gpu, *, batch: int = 1) -> Costs:
    """Return the costs of `layers`, nodes of a float model, on a GPU.

    Raises: ModelError where shapes are not known.
    """
    shaped = cost.shaped(model)
    macs = {work.name: work.macs for work in cost.works(model)}
    nodes = {str(node.name): node for node in shaped.graph}
    return Costs(
        {name: _seconds(nodes[name], macs.get(name), gpu, batch) for name in layers},
        tuple(_meetings(shaped.graph, [nodes[name] for name in layers], gpu, batch)),
    )


def _seconds(node: ir.Node, macs: int | None, gpu: Gpu, batch: int) -> Seconds:
    if macs is None:
        raise ModelError(
            f"the work of {node.name!r} is not known",
            fix="export the model with a fixed height and width, or give a layer profile",
        )
    moved = batch * sum(map(_size, (node.inputs[0], functions.result(node))))
    weights = node.inputs[1]
    constant = weights is not None and weights.const_value is not None
    moved += _size(weights) * (1 if constant else batch)
    terms = _terms(node)
    return Seconds(
        _roof(INT8, 2 * batch * macs / gpu.int8, terms, moved / gpu.bandwidth),
        _roof(FP16, 2 * batch * macs / gpu.fp16, terms, 2 * moved / gpu.bandwidth),
    )


def _roof(reached: Reached, arithmetic: float, terms: int, traffic: float) -> float:
    """Return the seconds of a layer; the other two are what it would take at the peaks."""
    filled = -(-terms // reached.multiple) * reached.multiple + reached.inner
    computing = arithmetic * filled / terms / reached.arithmetic
    return max(computing, traffic / reached.bandwidth) + reached.start


def _terms(node: ir.Node) -> int:
    """Return how many products each result of a layer is the sum of."""
    weights = node.inputs[1]
    shape = () if weights is None or weights.shape is None else tuple(weights.shape.numpy())
    if node.op_type == "Conv":
        return max(1, math.prod(shape[1:]))
    if node.op_type == "Gemm" and integer(node, "transB", 0):
        return int(shape[-1])
    return int(shape[-2] if len(shape) > 1 else shape[0])


def _meetings(
    graph: ir.Graph, layers: Sequence[ir.Node], gpu: Gpu, batch: int
) -> Iterable[Meeting]:
    """Yield every tensor at which the precision of two layers can differ."""
    chosen = {node: str(node.name) for node in layers}
    written = [(chosen[node], functions.result(node)) for node in layers]
    images = [(None, value) for value in graph.inputs if not value.is_initializer()]
    for writer, value in (*images, *written):
        readers = _readers(value, chosen)
        if readers:
            values = batch * _size(value)
            convert = _CONVERTED * values / (FP16.bandwidth * gpu.bandwidth) + FP16.start
            widen = values / (FP16.bandwidth * gpu.bandwidth)
            yield Meeting(writer, readers, convert, widen)


def _readers(value: ir.Value, layers: Mapping[ir.Node, str]) -> tuple[str, ...]:
    """Return the layers that read a tensor, or what others make of it, before the next layer."""
    found: dict[str, None] = {}
    seen: set[ir.Value] = set()
    waiting = [value]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for node, _ in current.uses():
            if node in layers:
                found[layers[node]] = None
            else:
                waiting += node.outputs
    return tuple(sorted(found))


def _size(value: ir.Value | None) -> int:
    """Return the elements of a tensor for one image. Raises: ModelError."""
    shape = None if value is None else value.shape
    if shape is None or not shape.is_static():
        raise ModelError(
            f"the shape of {getattr(value, 'name', None)!r} is {shape}",
            expected="shapes that follow from the inputs, with only the batch dynamic",
            fix="export the model with a fixed height and width",
        )
    return math.prod(map(int, shape.numpy()))
