"""Where Q/DQ go: one table of numbered rules for what TensorRT runs in INT8.

| rule | says |
|---|---|
| 1-5 | which weighted layers stay in float (`FLOAT_RULES`, each with its reason) |
| 6 | weights: int8 per output channel (`weight_axis`); the bias stays float |
| 7 | activations: the data input of each INT8 layer, per tensor, so after the activation function |
| 8 | `PASS_THROUGH` ops move values unchanged: Q/DQ on both sides, with one scale for the group |
| 9 | Add: the skip input, with the scale that its producer already has; never both by choice |
| 10 | `READERS` of a tensor that is INT8 anyway read the INT8 copy, so that no float one is stored |

Source: NVIDIA TensorRT developer guide, "Working with Quantized Types"; rules 8 and 9 agree with
the engines that TensorRT-RTX 1.7 builds (a Resize without Q behind it makes the next Conv float).
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import onnx_ir as ir

from deploykit.errors import ModelError, unknown_name
from deploykit.values import Precision, PrecisionPlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from deploykit.metadata import ModelCard

    Reads: TypeAlias = "dict[ir.Value, dict[tuple[str, int], None]]"
    """Quantised tensor -> its readers (node name, input index), in the order they were found."""

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Ops with data as input 0 and weights as input 1."""
MIN_CHANNELS = 16
"""INT8 tensor cores take 32 channels at a time: below half of that, padding eats the gain."""
GROUP_MULTIPLE = 4
"""Channels per group, in and out, of an INT8 grouped convolution are a multiple of this."""
_GATE_DEPTH = 4
"""Nodes between x and the factor that x is multiplied with in an activation: x * clip(x + 3) / 6."""


@dataclass(frozen=True)
class Layer:
    """A weighted node, as the rules see it."""

    node: ir.Node
    weights: tuple[int, ...] | None
    """Shape of its constant weights; None where they are computed."""
    first: bool
    """No other weighted node computes its input."""

    @property
    def group(self) -> int:
        """Return the number of groups of a convolution, else 1."""
        return integer(self.node, "group", 1)

    @property
    def channels(self) -> tuple[int, int]:
        """Return the input and output channels, all groups together."""
        shape, group = self.weights or (), self.group
        if self.node.op_type == "Conv":
            return shape[1] * group, shape[0]
        if self.node.op_type == "ConvTranspose":
            return shape[0], shape[1] * group
        if len(shape) < 2:
            return shape[0], 1
        swapped = integer(self.node, "transB", 0) == 1
        return (shape[-1], shape[-2]) if swapped else (shape[-2], shape[-1])

    @property
    def rows(self) -> int | None:
        """Return the rows of a matrix product, None for a convolution or a dynamic number."""
        shape = self.node.outputs[0].shape
        if self.node.op_type not in ("Gemm", "MatMul") or shape is None:
            return None
        count = 1
        for size in shape[:-1]:
            if not isinstance(size, int):
                return None
            count *= size
        return count


@dataclass(frozen=True)
class Rule:
    """Why a weighted layer stays in float."""

    number: int
    reason: str
    applies: Callable[[Layer], bool]
    optional: bool = True
    """A plan that asks for INT8 by the layer's name overrides it."""


FLOAT_RULES = (
    Rule(1, "its weights are not constant", lambda s: s.weights is None, optional=False),
    Rule(
        2,
        "TensorRT has no INT8 kernel for ConvTranspose with a scale per channel",
        lambda s: s.node.op_type == "ConvTranspose",
    ),
    Rule(
        3,
        f"fewer than {MIN_CHANNELS} channels: padding to the tensor cores' 32 costs the gain",
        lambda s: min(s.channels) < MIN_CHANNELS and not (s.first and s.node.op_type == "Conv"),
    ),
    Rule(
        4,
        f"channels per group are no multiple of {GROUP_MULTIPLE}: no INT8 kernel on every target",
        lambda s: s.group > 1 and any(c // s.group % GROUP_MULTIPLE for c in s.channels),
    ),
    Rule(
        5,
        "a matrix times one vector: reading the weights takes the time, not the arithmetic",
        lambda s: s.rows == 1,
    ),
)

PASS_THROUGH: Mapping[str, Callable[[ir.Node], bool]] = {
    "Concat": lambda _: True,
    "DepthToSpace": lambda _: True,
    "Flatten": lambda _: True,
    "Identity": lambda _: True,
    "MaxPool": lambda node: len(node.outputs) == 1,
    "Reshape": lambda _: True,
    "Resize": lambda node: text(node, "mode", "nearest") == "nearest",
    "Slice": lambda _: True,
    "SpaceToDepth": lambda _: True,
    "Split": lambda _: True,
    "Squeeze": lambda _: True,
    "Transpose": lambda _: True,
    "Unsqueeze": lambda _: True,
}
"""Rule 8: op -> whether a node of it only moves values, so that INT8 passes unchanged."""

READERS = frozenset(
    {*WEIGHTED, "AveragePool", "Div", "GlobalAveragePool", "Mul", "ReduceMean", "Sub"}
)
"""Rule 10. An activation is not among them: it must stay fused to the layer before it."""


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
    """Weighted node left in float -> reason."""


def activations(placement: Placement) -> tuple[str, ...]:
    """Return the tensors whose range calibration must observe, sorted."""
    return tuple(sorted(a.tensor for a in placement.activations if a.range_of == a.tensor))


def default_plan(model: ir.Model, card: ModelCard | None) -> PrecisionPlan:
    """Return INT8 for every node except those that a `keep_float` pattern finds in its name.

    Raises: ModelError for a pattern that is not a regular expression.
    """
    layers: dict[str, Precision] = {}
    reasons: dict[str, str] = {}
    for keep in card.keep_float if card else ():
        try:
            pattern = re.compile(keep.pattern)
        except re.error as error:
            raise ModelError(f"keep_float pattern {keep.pattern!r} is wrong: {error}") from error
        for node in model.graph:
            if node.name and node.name not in layers and pattern.search(node.name):
                layers[node.name], reasons[node.name] = keep.precision, keep.reason
    return PrecisionPlan(Precision.INT8, layers, reasons)


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
    return Placement(
        activations=tuple(
            Activation(str(value.name), tuple(readers), ranges[value])
            for value, readers in reads.items()
        ),
        weights=tuple(
            Weight(str(_input(s.node, 1).name), str(s.node.name), weight_axis(s.node))
            for s in chosen
        ),
        groups=groups,
        kept=kept,
    )


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
    """Return the layers to quantise, and every other weighted node with its reason."""
    chosen, kept = [], {}
    for layer in weighted_layers(model.graph):
        name = str(layer.node.name)
        reason = _reason(layer, plan)
        if reason is None:
            chosen.append(layer)
        else:
            kept[name] = reason
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


def weighted_layers(graph: ir.Graph) -> Iterator[Layer]:
    """Yield every weighted node of the main graph, in order."""
    computed: set[ir.Value] = set()
    for node in graph:
        data = [value for value in node.inputs if value is not None]
        late = any(value in computed for value in data)
        is_layer = node.op_type in WEIGHTED and node.domain == "" and len(node.inputs) > 1
        if is_layer:
            weights = constant(node.inputs[1])
            shape = None if weights is None else tuple(map(int, weights.shape.numpy()))
            yield Layer(node, shape, first=not late)
        if late or is_layer:
            computed.update(node.outputs)


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


def moves(node: ir.Node) -> bool:
    """Return whether `node` only moves values (rule 8)."""
    check = PASS_THROUGH.get(node.op_type)
    return node.domain == "" and check is not None and check(node)


def moved_inputs(node: ir.Node) -> Iterator[int]:
    """Yield the inputs of a moving node that hold data; the others are shapes and constants."""
    for index, value in enumerate(node.inputs if node.op_type == "Concat" else node.inputs[:1]):
        if value is not None and constant(value) is None:
            yield index


def weight_axis(node: ir.Node) -> int | None:
    """Return the output channel's axis of a layer's weights (rule 6), None: one scale for all."""
    if node.op_type == "MatMul":
        weights = constant(node.inputs[1])
        return 1 if weights is not None and len(weights.shape) == 2 else None
    return {"Conv": 0, "Gemm": 1 - integer(node, "transB", 0)}.get(node.op_type)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """Return the tensor of an initializer or a Constant node, None for anything computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value
    node = value.producer()
    if node is None or node.op_type != "Constant" or "value" not in node.attributes:
        return None
    return node.attributes["value"].as_tensor()


def integer(node: ir.Node, name: str, default: int) -> int:
    """Return an integer attribute, `default` where it is absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def text(node: ir.Node, name: str, default: str) -> str:
    """Return a string attribute, `default` where it is absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()
