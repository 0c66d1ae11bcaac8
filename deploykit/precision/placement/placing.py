"""Where Q/DQ go in a model, by the rules of `deploykit.placement.rules`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from deploykit import ops
from deploykit.errors import ModelError, unknown_name
from deploykit.graph.editing import is_op
from deploykit.precision.placement.crossing import reaches_float
from deploykit.precision.placement.ranges import domains
from deploykit.precision.placement.rules import (
    READERS,
    float_rule,
    moved_inputs,
    moves,
    taken_apart,
    weight_axis,
)
from deploykit.precision.placement.weighted import WEIGHTED, Layer, constant, weighted_layers
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from deploykit.values import PrecisionPlan

Reads: TypeAlias = dict[ir.Value, dict[tuple[ir.Node, int], None]]
"""Quantised tensor -> its readers (node, input index), in the order they were found."""
_GATE_DEPTH = 4
"""Nodes from x to the factor it is multiplied with, as in x * (clip(x + 3) / 6)."""


@dataclass(frozen=True)
class Activation:
    """A tensor to quantise, for the readers that shall see its INT8 values."""

    tensor: str
    readers: tuple[tuple[str, int], ...]
    """(node name, input index)."""
    ranges: tuple[str, ...]
    """The calibrated tensors whose largest range it takes: itself, or those upstream that it only
    moves; for a Concat, all that meets there."""


@dataclass(frozen=True)
class Weight:
    """The constant weights of a layer to quantise."""

    tensor: str
    node: str
    axis: int | None
    """The output channel's; None: one scale for all."""


@dataclass(frozen=True)
class Placement:
    """Every Q/DQ of a model, and why the other layers have none."""

    activations: tuple[Activation, ...]
    """A tensor stands once for each range that its readers need."""
    weights: tuple[Weight, ...]
    kept: Mapping[str, str] = field(default_factory=dict)
    """Node left in float -> reason: the weighted ones, and the custom ops."""


def activations(placement: Placement) -> tuple[str, ...]:
    """Return the tensors whose range calibration must observe, sorted."""
    return tuple(sorted({name for found in placement.activations for name in found.ranges}))


def layers(graph: ir.Graph, placed: Placement) -> list[ir.Node]:
    """Return the nodes that multiply in INT8, in the graph's order: by weights, or two tensors."""
    weighted = {weight.node for weight in placed.weights}
    reads: dict[str, set[int]] = {}
    for activation in placed.activations:
        for name, index in activation.readers:
            reads.setdefault(name, set()).add(index)
    both = {name for name, indices in reads.items() if len(indices) > 1}
    return [
        node
        for node in graph
        if node.name in weighted or (node.name in both and is_op(node, "MatMul", "Gemm"))
    ]


def place(model: ir.Model, plan: PrecisionPlan) -> Placement:
    """Return where the Q/DQ of `model` go under `plan`; the model is not changed.

    Raises: ModelError where node names are not unique; OptionError where the plan names a node
    that the model lacks.
    """
    check_names(model, plan)
    chosen, kept = _decide(model, plan)
    found = _Reads(model.graph, plan)
    for layer in chosen:
        found.add(layer.node, 0)
        if layer.weights is None:
            found.add(layer.node, 1)
        found.close(layer.node)
    found.pass_back()
    found.read_skips({layer.node for layer in chosen})
    found.pass_back()
    found.read_copies()
    weights = tuple(_weight(layer) for layer in chosen if layer.weights is not None)
    return Placement(tuple(_activations(found.reads)), weights, kept)


def _activations(reads: Reads) -> Iterator[Activation]:
    """Yield every tensor to quantise, once for each range that its readers need (rules 7, 8)."""
    needed = domains({value: tuple(readers) for value, readers in reads.items()})
    for value, readers in reads.items():
        by_range: dict[tuple[str, ...], list[tuple[str, int]]] = {}
        for node, index in readers:
            by_range.setdefault(needed[node, index], []).append((str(node.name), index))
        for names, those in by_range.items():
            yield Activation(str(value.name), tuple(those), names)


def _weight(layer: Layer) -> Weight:
    """Return the weights of a layer (rule 6)."""
    tensor = str(_input(layer.node, 1).name)
    return Weight(tensor, str(layer.node.name), weight_axis(layer.node))


def check_names(model: ir.Model, plan: PrecisionPlan) -> None:
    """Check that nodes can be told apart by name. Raises: ModelError, OptionError."""
    names = Counter(node.name or "" for node in model.graph)
    twice = sorted(name for name, count in names.items() if count > 1 or not name)
    if twice:
        raise ModelError(
            f"{len(twice)} node names are empty or stand twice, such as {twice[0]!r}",
            expected="a name of its own for every node",
            fix="run `deploykit fuse` on the model first",
        )
    for name in plan.layers:
        if name not in names:
            raise unknown_name("node in the plan", name, names)


def _decide(model: ir.Model, plan: PrecisionPlan) -> tuple[list[Layer], dict[str, str]]:
    """Return the layers to quantise, and every node of `Placement.kept` with its reason."""
    chosen, kept = [], {}
    for layer in weighted_layers(model.graph):
        weights = layer.node.inputs[1]
        if weights is not None and is_op(weights.producer(), "DequantizeLinear"):
            continue  # the file has its Q/DQ already
        name = str(layer.node.name)
        reason = _reason(layer, plan)
        if reason is None:
            chosen.append(layer)
        else:
            kept[name] = reason
    for node in model.graph:
        plugin = ops.op_of(node)
        if plugin is not None and plugin.source:
            kept[str(node.name)] = f"rule 11: {plugin.name} stays in float: it {plugin.why_float}"
    return chosen, kept


def _reason(layer: Layer, plan: PrecisionPlan) -> str | None:
    """Return why a layer stays in float, None where it does not."""
    name = str(layer.node.name)
    wanted = plan.layers.get(name, plan.default)
    if wanted is not Precision.INT8:
        return plan.reasons.get(name, f"the plan says {wanted}")
    rule = float_rule(layer, asked=name in plan.layers)
    return None if rule is None else rule.text()


def _stays(plan: PrecisionPlan, node: ir.Node) -> bool:
    """Return whether the plan keeps this very node in float."""
    return plan.layers.get(node.name or "", Precision.INT8) is not Precision.INT8


class _Reads:
    """Who reads which tensor in INT8."""

    def __init__(self, graph: ir.Graph, plan: PrecisionPlan) -> None:
        self.reads: Reads = {}
        nodes = [node for node in graph if not _stays(plan, node)]
        self._movers = dict.fromkeys(node for node in nodes if moves(node))
        self._adds = dict.fromkeys(node for node in nodes if len(_summands(node)) > 1)
        self._pointwise = {node for node in nodes if is_op(node, *READERS)}

    def add(self, node: ir.Node, index: int) -> None:
        """Let an input be read in INT8, unless it is constant."""
        value = _input(node, index)
        if constant(value) is None:
            self.reads.setdefault(value, {})[node, index] = None

    def close(self, layer: ir.Node) -> None:
        """Rule 13: let whoever takes a product apart read it in INT8."""
        value = layer.outputs[0]
        biased = [node for node, _ in value.uses() if is_op(node, "Add")]
        if len(value.uses()) == 1 and biased and not _summands(biased[0]):
            value = biased[0].outputs[0]
        if is_op(layer, "MatMul", "Gemm") and taken_apart(value):
            for node, index in value.uses():
                self.add(node, index)

    def pass_back(self) -> None:
        """Rule 8: where all readers of what a node moves are INT8, so is what it moves."""
        for node in reversed(tuple(self._movers)):
            if any(out in self.reads for out in node.outputs) and self._is_int8(node):
                for index in moved_inputs(node):
                    self.add(node, index)

    def read_skips(self, layers: set[ir.Node]) -> None:
        """Rule 9: let each residual Add read its skip input in INT8."""
        for node in self._adds:
            both = _summands(node)
            stored = [index for index in (0, 1) if self._source(both[index]) in self.reads]
            if not stored and {value.producer() for value in both} <= layers:
                stored = [min((1, 0), key=lambda index: _depth(both[index]))]
            for index in stored:
                self.add(node, index)

    def read_copies(self) -> None:
        """Rule 10: let float readers of an INT8 tensor read the INT8 copy."""
        for value in tuple(self.reads):
            for node, index in value.uses():
                if self._takes_copy(node, value):
                    self.add(node, index)

    def _is_int8(self, mover: ir.Node) -> bool:
        """Return whether no reader of what a node moves needs it in float."""
        return not any(
            out.is_graph_output()
            or any(self._needs_float(out, node, index) for node, index in out.uses())
            for out in mover.outputs
        )

    def _needs_float(self, value: ir.Value, node: ir.Node, index: int) -> bool:
        """Return whether a reader takes neither INT8 (rules 7 to 10) nor the shape alone."""
        takes = (node, index) in self.reads.get(value, ()) or is_op(node, "Shape", "Size")
        return not (takes or node in self._adds or self._takes_copy(node, value))

    def _takes_copy(self, node: ir.Node, value: ir.Value) -> bool:
        if node not in self._pointwise or _gates(node, value):
            return False
        return not reaches_float(node, self.reads)

    def _source(self, value: ir.Value) -> ir.Value:
        """Return the tensor that `value` is a moved copy of, in INT8 where that one is."""
        node = value.producer()
        while node in self._movers and len(list(moved_inputs(node))) == 1 and self._is_int8(node):
            value = _input(node, 0)
            node = value.producer()
        return value


def _summands(node: ir.Node) -> list[ir.Value]:
    """Return what an Add adds up, none where that is no more than one computed tensor."""
    both = [value for value in node.inputs if value is not None and constant(value) is None]
    return both if is_op(node, "Add") and len(both) > 1 else []


def _depth(value: ir.Value) -> int:
    """Return the number of layers between `value` and the fork that its branch starts from."""
    depth, node = 0, value.producer()
    while node is not None and node.inputs and node.inputs[0] is not None:
        depth += node.op_type in WEIGHTED
        value = node.inputs[0]
        if len({reader for reader, _ in value.uses()}) > 1:
            break
        node = value.producer()
    return depth


def _gates(node: ir.Node, value: ir.Value) -> bool:
    """Return whether `node` is x * f(x) with x = `value`: an activation such as SiLU."""
    factors = [v for v in node.inputs if v is not None and v is not value]
    for _ in range(_GATE_DEPTH):
        factors = [
            v
            for factor in factors
            if (producer := factor.producer()) is not None
            for v in producer.inputs
            if v is not None
        ]
        if value in factors:
            return True
    return False


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # ONNX requires the inputs that the tables name
    return value
