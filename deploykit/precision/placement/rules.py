"""The rules of placement, numbered: op -> what TensorRT can do with it in INT8.

| rule | says |
|---|---|
| 1-5, 12, 14 | which weighted layers stay in float (`FLOAT_RULES`, each with its reason) |
| 6 | weights: int8 per output channel (`weight_axis`); the bias stays float |
| 7 | activations: the data input of each INT8 layer, per tensor, so after the activation function |
| 8 | `PASS_THROUGH` ops move values unchanged: in INT8 where all their readers are, else in float |
| 9 | Add: its skip input, with the scale that the producer already has |
| 10 | `READERS` of a tensor that is INT8 anyway read the INT8 copy: no float one is stored |
| 13 | a product that is taken apart, as packed Q, K and V, is INT8 behind its bias too: else \
TensorRT-RTX takes the weights apart, in float |
| 11 | custom ops with kernels read and write floats, whoever else reads their inputs in INT8 |

Source: NVIDIA TensorRT developer guide, "Working with Quantized Types"; 8 to 10 agree with the
engines that TensorRT-RTX 1.7 builds (a Resize without Q behind it makes the next Conv float).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from deploykit.graph.editing import integer, is_op, real, text
from deploykit.precision.placement.weighted import Layer, constant

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import onnx_ir as ir

MIN_CHANNELS = 16
"""INT8 tensor cores take 32 channels at a time: below half of that, padding eats the gain."""
GROUP_MULTIPLE = 4
"""Channels per group, in and out, of an INT8 grouped convolution are a multiple of this."""


When: TypeAlias = Literal["always", "turing", "asked"]
"""On which targets a rule holds: on all, on those below SM80, or where its name is asked for."""
AMPERE = 80
"""First compute capability whose INT8 kernels take any number of channels per group."""


@dataclass(frozen=True)
class Rule:
    """Why a weighted layer stays in float."""

    number: int
    name: str
    """Of the kind of layer, for the options that choose it."""
    reason: str
    applies: Callable[[Layer], bool]
    holds: When = "always"

    def text(self) -> str:
        """Return what a plan says of a layer that the rule keeps."""
        return f"rule {self.number}: {self.reason}"


def _uneven(layer: Layer) -> bool:
    return layer.group > 1 and any(c // layer.group % GROUP_MULTIPLE for c in layer.channels)


FLOAT_RULES = (
    Rule(
        1,
        "computed",
        "its weights are not constant",
        lambda s: s.weights is None,
    ),
    Rule(
        2,
        "transposed",
        "TensorRT has no INT8 kernel for ConvTranspose with a scale per channel",
        lambda s: s.node.op_type == "ConvTranspose",
    ),
    Rule(
        3,
        "narrow",
        f"fewer than {MIN_CHANNELS} channels: padding to the tensor cores' 32 costs the gain",
        lambda s: min(s.channels) < MIN_CHANNELS and not (s.first and s.node.op_type == "Conv"),
    ),
    Rule(
        4,
        "grouped",
        f"channels per group are no multiple of {GROUP_MULTIPLE}, as of a depthwise layer: "
        "no INT8 kernel on Turing",
        _uneven,
        holds="turing",
    ),
    Rule(
        5,
        "vector",
        "a matrix times one vector: reading the weights takes the time, not the arithmetic",
        lambda s: s.rows == 1,
    ),
    Rule(
        14,
        "scores",
        "it gives an output's scores: its rounding goes into them as it is, for next to no time",
        lambda s: s.scores,
    ),
    Rule(
        12,
        "squeeze",
        "it reads what was pooled to one position, and its rounding scales whole channels",
        lambda s: s.pooled,
        holds="asked",
    ),
)
NAMES = tuple(rule.name for rule in FLOAT_RULES)
"""Kinds of layers that options can choose."""


def _pads_zeros(node: ir.Node) -> bool:
    """Return whether a Pad fills with zeros, or with what is there."""
    if text(node, "mode", "constant") != "constant":
        return True
    given = node.inputs[2] if len(node.inputs) > 2 else None
    if given is None:
        return real(node, "value", 0.0) == 0
    filling = constant(given)
    return filling is not None and not filling.numpy().any()


PASS_THROUGH: Mapping[str, Callable[[ir.Node], bool]] = {
    "Concat": lambda _: True,
    "DepthToSpace": lambda _: True,
    "Expand": lambda _: True,
    "Flatten": lambda _: True,
    "Gather": lambda node: constant(node.inputs[1]) is not None,
    "Identity": lambda _: True,
    "MaxPool": lambda node: len(node.outputs) == 1,
    "Pad": _pads_zeros,
    "Reshape": lambda _: True,
    "Resize": lambda node: text(node, "mode", "nearest") == "nearest",
    "Slice": lambda _: True,
    "SpaceToDepth": lambda _: True,
    "Split": lambda _: True,
    "Squeeze": lambda _: True,
    "Tile": lambda _: True,
    "Transpose": lambda _: True,
    "Unsqueeze": lambda _: True,
}
"""Rule 8: op -> whether a node of it only moves values, so that INT8 passes unchanged."""

READERS = frozenset(("Div", "Mul", "Sub"))
"""Rule 10: pointwise ops, which take the DQ into their kernel. An activation is not among them,
for it must stay fused to the layer before it; nor is a float layer, which would store it again."""


def float_rule(layer: Layer, *, asked: bool = False) -> Rule | None:
    """Return the rule that keeps a layer in float on every target; None: it is INT8.

    asked: a plan asks for INT8 by the layer's name, which overrides all but impossibilities.
    """
    if layer.weights is None:
        return None if asked and layer.multiplies_activations else FLOAT_RULES[0]
    rules = (rule for rule in FLOAT_RULES if not asked and rule.holds == "always")
    return next((rule for rule in rules if rule.applies(layer)), None)


def moves(node: ir.Node) -> bool:
    """Return whether `node` only moves values (rule 8)."""
    check = PASS_THROUGH.get(node.op_type)
    return check is not None and is_op(node, node.op_type) and check(node)


def taken_apart(value: ir.Value) -> bool:
    """Return whether several parts of a tensor are read, behind nodes that reorder it (rule 13)."""
    readers = [node for node, _ in value.uses()]
    while len(readers) == 1 and is_op(readers[0], *_REORDER):
        readers = [node for node, _ in readers[0].outputs[0].uses()]
    parts = [node for node in readers if is_op(node, "Split", "Slice", "Gather")]
    return bool(parts) and sum(len(node.outputs) for node in parts) > 1


_REORDER = ("Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


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
