"""Where Q/DQ go in a model, by the rules of `deploykit.placement.rules`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from deploykit import ops
from deploykit.errors import ModelError, unknown_name
from deploykit.precision.placement.rules import (
    FLOAT_RULES,
    READERS,
    WEIGHTED,
    Layer,
    constant,
    moved_inputs,
    moves,
    weight_axis,
    weighted_layers,
)
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from deploykit.values import PrecisionPlan

Reads: TypeAlias = dict[ir.Value, dict[tuple[str, int], None]]
"""Quantised tensor -> its readers (node name, input index), in the order they were found."""
_GATE_DEPTH = 4
"""Nodes from x to the factor it is multiplied with, as in x * (clip(x + 3) / 6)."""


@dataclass(frozen=True)
class Activation:
    """A tensor to quantise, for the readers that shall see its INT8 values."""

    tensor: str
    readers: tuple[tuple[str, int], ...]
    """(node name, input index)."""
    range_of: str
    """The tensor whose calibrated range it takes: itself, or one upstream that it only moves."""


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
    weights: tuple[Weight, ...]
    groups: tuple[tuple[str, ...], ...]
    """Observed tensors that must share one scale."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Node left in float -> reason: the weighted ones, and the custom ops."""


def activations(placement: Placement) -> tuple[str, ...]:
    """Return the tensors whose range calibration must observe, sorted."""
    return tuple(sorted(a.tensor for a in placement.activations if a.range_of == a.tensor))


def place(model: ir.Model, plan: PrecisionPlan) -> Placement:
    """Return where the Q/DQ of `model` go under `plan`; the model is not changed.

    Raises: ModelError where node names are not unique; OptionError where the plan names a node
    that the model lacks.
    """
    check_names(model, plan)
    chosen, kept = _decide(model, plan)
    reads: Reads = {}
    for layer in chosen:
        _add(reads, layer.node, 0)
    movers = [node for node in model.graph if moves(node) and not _stays(plan, node)]
    _pass_back(movers, reads)
    adds = [node for node in model.graph if node.op_type == "Add" and not _stays(plan, node)]
    _read_skips(adds, reads, {layer.node for layer in chosen})
    _pass_back(movers, reads)
    _read_copies(reads, plan)
    ranges, groups = _share(movers, reads)
    found = (Activation(str(v.name), tuple(readers), ranges[v]) for v, readers in reads.items())
    return Placement(tuple(found), tuple(map(_weight, chosen)), groups, kept)


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
    for rule in FLOAT_RULES:
        if rule.applies(layer) and not (rule.optional and name in plan.layers):
            return f"rule {rule.number}: {rule.reason}"
    return None


def _stays(plan: PrecisionPlan, node: ir.Node) -> bool:
    """Return whether the plan keeps this very node in float."""
    return plan.layers.get(node.name or "", Precision.INT8) is not Precision.INT8


def _pass_back(movers: Iterable[ir.Node], reads: Reads) -> None:
    """Rule 8: where the output of a moving node is INT8, so is what it moves."""
    for node in reversed(list(movers)):
        if any(out in reads for out in node.outputs):
            for index in moved_inputs(node):
                _add(reads, node, index)


def _read_skips(adds: Iterable[ir.Node], reads: Reads, layers: set[ir.Node]) -> None:
    """Rule 9: let each residual Add read its skip input in INT8."""
    for node in adds:
        both = [value for value in node.inputs if value is not None and constant(value) is None]
        if len(both) < 2:
            continue
        stored = [index for index in (0, 1) if _source(both[index]) in reads]
        if not stored and {value.producer() for value in both} <= layers:
            stored = [min((1, 0), key=lambda index: _depth(both[index]))]
        for index in stored:
            _add(reads, node, index)


def _source(value: ir.Value) -> ir.Value:
    """Return the tensor that `value` is a moved copy of."""
    node = value.producer()
    while node is not None and moves(node) and len(list(moved_inputs(node))) == 1:
        value = _input(node, 0)
        node = value.producer()
    return value


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


def _read_copies(reads: Reads, plan: PrecisionPlan) -> None:
    """Rule 10: let float readers of an INT8 tensor read the INT8 copy."""
    for value in tuple(reads):
        for node, index in value.uses():
            in_table = node.op_type in READERS and node.graph is not None
            if in_table and not _stays(plan, node) and not _gates(node, value):
                _add(reads, node, index)


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


def _share(
    movers: Iterable[ir.Node], reads: Reads
) -> tuple[dict[ir.Value, str], tuple[tuple[str, ...], ...]]:
    """Return the tensor that gives each value its range, and the observed tensors of each group."""
    member_of = {value: [value] for value in reads}
    moved: set[ir.Value] = set()
    for node in movers:
        outputs = [out for out in node.outputs if out in reads]
        moved.update(outputs)
        for value in [*(_input(node, i) for i in moved_inputs(node)), *outputs[1:]]:
            if outputs and member_of[value] is not member_of[outputs[0]]:
                member_of[outputs[0]] += member_of[value]
                for member in member_of[value]:
                    member_of[member] = member_of[outputs[0]]
    ranges: dict[ir.Value, str] = {}
    groups: dict[tuple[str, ...], None] = {}
    for value, members in member_of.items():
        observed = tuple(sorted(str(v.name) for v in members if v not in moved))
        ranges[value] = observed[0] if value in moved else str(value.name)
        if len(observed) > 1:
            groups[observed] = None
    return ranges, tuple(groups)


def _add(reads: Reads, node: ir.Node, index: int) -> None:
    value = _input(node, index)
    if constant(value) is None:
        reads.setdefault(value, {})[str(node.name), index] = None


def _input(node: ir.Node, index: int) -> ir.Value:
    value = node.inputs[index]
    assert value is not None  # ONNX requires the inputs that the tables name
    return value
