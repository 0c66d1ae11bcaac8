"""Which channels of a graph may be scaled without a change of what it computes.

Every channel of every tensor is given the number of a slot: channels with one slot have one factor.
A layer with constant weights takes any factor of its input into its weights, and gives its output
any other. Between them stand nodes that keep factors: x / s goes in, y / s comes out. What is none
of these, and what a caller sees, has the slot FIXED, whose factor is 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from deploykit.graph import canvases, inferring, scaling
from deploykit.graph.editing import integer, is_op
from deploykit.precision.quantization import given
from deploykit.precision.repairs.keeping import KEEPING

if TYPE_CHECKING:
    import onnx_ir as ir
    from numpy.typing import NDArray

    Slots: TypeAlias = NDArray[np.int64]

FIXED = 0
"""The slot of what may not be scaled."""
LAYERS = (*scaling.OPS, "MatMul")


@dataclass(frozen=True)
class Layer:
    """Weights, the nodes that multiply by them, and the slots of both sides."""

    weight: str
    nodes: tuple[ir.Node, ...]
    inputs: Slots
    """int64[in]; all groups of a convolution together."""
    outputs: Slots
    """int64[out]."""


@dataclass(frozen=True)
class Channels:
    """The slots of a graph."""

    tensors: dict[str, Slots]
    """Tensor -> int64[channels]."""
    layers: tuple[Layer, ...]
    count: int
    """Of slots, FIXED included."""


def trace(model: ir.Model) -> Channels:
    """Return the slots of every tensor of the main graph; shapes are inferred in place."""
    inferring.infer(model)
    tracing = _Tracing(canvases.constants(model))
    graph = model.graph
    for node in graph:
        tracing.take(node)
    for value in tuple(tracing.slots):
        if value.is_graph_output() or any(node.graph is not graph for node, _ in value.uses()):
            tracing.fix(value)  # a caller sees it, or a branch or a loop
    return tracing.found()


@dataclass
class _Shared:
    """What the nodes with one weight have in common."""

    nodes: list[ir.Node]
    inputs: Slots
    outputs: Slots


@dataclass
class _Tracing:
    """Slots on their way through a graph; slots that must be one are joined."""

    untouchable: frozenset[str]
    """Weights that have other values for other sizes of image."""
    parents: list[int] = field(default_factory=lambda: [FIXED])
    slots: dict[ir.Value, Slots] = field(default_factory=dict)
    layers: dict[ir.Value, _Shared] = field(default_factory=dict)

    def take(self, node: ir.Node) -> None:
        """Give the outputs of a node their slots, after those of its inputs."""
        if is_op(node, *LAYERS) and self._layer(node):
            return
        keep = KEEPING.get(node.op_type) if is_op(node, node.op_type) else None
        found = None if keep is None else keep(node, self.of, self.join)
        if found is None:
            for value in node.inputs:
                self.fix(value)
            return
        self.slots.update(found)

    def fix(self, value: ir.Value | None) -> None:
        """Let nothing scale a tensor."""
        if value is not None and value in self.slots:
            self.join(self.slots[value], np.zeros_like(self.slots[value]))

    def of(self, value: ir.Value | None) -> Slots | None:
        """Return the slots of a tensor, all FIXED where they were given none; None: unknown."""
        if value is None:
            return None
        if value in self.slots:
            return self.slots[value]
        shape = value.shape
        count = shape[1] if shape is not None and len(shape) > 1 else None
        return np.zeros(count, np.int64) if isinstance(count, int) and count > 0 else None

    def join(self, left: Slots, right: Slots) -> None:
        """Make the slots of two tensors one, channel by channel."""
        for a, b in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((self._root(a), self._root(b)))
            self.parents[high] = low

    def _root(self, slot: int) -> int:
        while self.parents[slot] != slot:
            self.parents[slot] = self.parents[self.parents[slot]]
            slot = self.parents[slot]
        return slot

    def _layer(self, node: ir.Node) -> bool:
        """Return whether the weights of a node can take factors of both sides."""
        weight, given = node.inputs[1], self.of(node.inputs[0])
        if weight is None or given is None or not _takes(node, len(given), self.untouchable):
            return False
        shared = self.layers.get(weight)
        if shared is None:
            count = scaling.channels(node)
            assert count is not None  # `_takes` has looked
            shared = self.layers[weight] = _Shared([], given, self._new(count))
        elif len(given) != len(shared.inputs) or not _alike(node, shared.nodes[0]):
            return False
        self.join(given, shared.inputs)
        shared.nodes.append(node)
        self.slots[node.outputs[0]] = shared.outputs
        return True

    def _new(self, count: int) -> Slots:
        first = len(self.parents)
        self.parents += range(first, first + count)
        return np.arange(first, first + count)

    def found(self) -> Channels:
        """Return the slots, those that are one under one number."""
        roots = np.array([self._root(slot) for slot in range(len(self.parents))])
        unique, numbers = np.unique(roots, return_inverse=True)
        layers = tuple(
            Layer(str(weight.name), tuple(s.nodes), numbers[s.inputs], numbers[s.outputs])
            for weight, s in self.layers.items()
        )
        tensors = {str(value.name): numbers[slots] for value, slots in self.slots.items()}
        return Channels(tensors, layers, len(unique))


def _takes(node: ir.Node, count: int, untouchable: frozenset[str]) -> bool:
    """Return whether a node has weights for so many input channels that may be changed."""
    if scaling.channels(node) is None or scaling.read_channels(node) != count:
        return False
    data = node.inputs[0]
    if is_op(node, "MatMul") and (data is None or data.shape is None or len(data.shape) != 2):
        return False
    numbers = [value for value in node.inputs[1:] if value is not None]
    if any(given.has_levels(value) for value in numbers):
        return False  # they may have been trained as these levels
    return all(value.is_initializer() and value.name not in untouchable for value in numbers)


def _alike(node: ir.Node, other: ir.Node) -> bool:
    """Return whether two nodes with the same weights take the same channels to the same."""
    same = node.op_type == other.op_type
    names = ("group", "transB")
    return same and all(integer(node, name, 0) == integer(other, name, 0) for name in names)
