"""The rules of placement, numbered: op -> what TensorRT can do with it in INT8.

| rule | says |
|---|---|
| 1-5 | which weighted layers stay in float (`FLOAT_RULES`, each with its reason) |
| 6 | weights: int8 per output channel (`weight_axis`); the bias stays float |
| 7 | activations: the data input of each INT8 layer, per tensor, so after the activation function |
| 8 | `PASS_THROUGH` ops move values unchanged: in INT8 where all their readers are, else in float |
| 9 | Add: its skip input, with the scale that the producer already has |
| 10 | `READERS` of a tensor that is INT8 anyway read the INT8 copy: no float one is stored |
| 11 | custom ops with kernels read and write floats, whoever else reads their inputs in INT8 |

Source: NVIDIA TensorRT developer guide, "Working with Quantized Types"; 8 to 10 agree with the
engines that TensorRT-RTX 1.7 builds (a Resize without Q behind it makes the next Conv float).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.graph.editing import integer, is_op

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as ir

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Ops with data as input 0 and weights as input 1."""
MIN_CHANNELS = 16
"""INT8 tensor cores take 32 channels at a time: below half of that, padding eats the gain."""
GROUP_MULTIPLE = 4
"""Channels per group, in and out, of an INT8 grouped convolution are a multiple of this."""


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

READERS = frozenset(("Div", "Mul", "Sub"))
"""Rule 10: pointwise ops, which take the DQ into their kernel. An activation is not among them,
for it must stay fused to the layer before it; nor is a float layer, which would store it again."""


def float_rule(layer: Layer, *, asked: bool = False) -> Rule | None:
    """Return the rule that keeps a layer in float; None: it is INT8.

    asked: a plan asks for INT8 by the layer's name.
    """
    rules = (rule for rule in FLOAT_RULES if not (asked and rule.optional))
    return next((rule for rule in rules if rule.applies(layer)), None)


def weighted_layers(graph: ir.Graph) -> Iterator[Layer]:
    """Yield every weighted node of the main graph, in order."""
    computed: set[ir.Value] = set()
    for node in graph:
        data = [value for value in node.inputs if value is not None]
        late = any(value in computed for value in data)
        is_layer = is_op(node, *WEIGHTED) and len(node.inputs) > 1
        if is_layer:
            weights = constant(node.inputs[1])
            shape = None if weights is None else tuple(map(int, weights.shape.numpy()))
            yield Layer(node, shape, first=not late)
        if late or is_layer:
            computed.update(node.outputs)


def moves(node: ir.Node) -> bool:
    """Return whether `node` only moves values (rule 8)."""
    check = PASS_THROUGH.get(node.op_type)
    return check is not None and is_op(node, node.op_type) and check(node)


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


def text(node: ir.Node, name: str, default: str) -> str:
    """Return a string attribute, `default` where it is absent."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()
