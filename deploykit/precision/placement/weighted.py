"""The layers with weights of a graph, as the rules of placement see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.graph.editing import integer, is_op

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Ops with data as input 0 and weights as input 1."""


@dataclass(frozen=True)
class Layer:
    """A weighted node, as the rules see it."""

    node: ir.Node
    weights: tuple[int, ...] | None
    """Shape of its constant weights; None where they are computed."""
    first: bool
    """No other weighted node computes its input."""
    pooled: bool = False
    """Its input is one position of a map: what was pooled, and layers and functions of that."""
    scores: bool = False
    """Its result, a row for each image, is an output of the model behind nothing but functions."""

    @property
    def group(self) -> int:
        """Return the number of groups of a convolution, else 1."""
        return integer(self.node, "group", 1)

    @property
    def multiplies_activations(self) -> bool:
        """Return whether it is a product of two computed tensors, as in attention.

        One that has Q/DQ already is none.
        """
        makers = [None if value is None else value.producer() for value in self.node.inputs]
        has_own = any(is_op(node, "DequantizeLinear") for node in makers)
        return self.weights is None and self.node.op_type == "MatMul" and not has_own

    @property
    def channels(self) -> tuple[int, int]:
        """Return the input and output channels, all groups together."""
        shape, group = self.weights or (), self.group
        if self.node.op_type == "Conv":
            return shape[1] * group, shape[0]
        if self.node.op_type == "ConvTranspose":
            return shape[0], shape[1] * group
        if len(shape) < 2:
            return shape[0] if shape else 1, 1
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
            if not isinstance(size, int) or size < 0:
                return None
            count *= size
        return count


def weighted_layers(graph: ir.Graph) -> Iterator[Layer]:
    """Yield every weighted node of the main graph, in order."""
    computed: set[ir.Value] = set()
    pooled: set[ir.Value] = set()
    for node in graph:
        data = [value for value in node.inputs if value is not None]
        late = any(value in computed for value in data)
        is_layer = is_op(node, *WEIGHTED) and len(node.inputs) > 1
        if is_layer:
            weights = constant(node.inputs[1])
            shape = None if weights is None else tuple(map(int, weights.shape.numpy()))
            yield Layer(
                node, shape, not late, pooled=data[0] in pooled, scores=late and _scores(node)
            )
        if late or is_layer:
            computed.update(node.outputs)
        moving = any(value not in pooled and constant(value) is None for value in data)
        if _pools(node) or (is_op(node, *_OF_ONE) and not moving):
            pooled.update(node.outputs)


_POOLS = ("GlobalAveragePool", "GlobalMaxPool")
_OF_ONE = (
    "Conv",
    "Relu",
    "Clip",
    "Sigmoid",
    "HardSigmoid",
    "HardSwish",
    "Mul",
    "Add",
    "Div",
    "Identity",
)
"""Ops whose result is one position where their data is."""


def _pools(node: ir.Node) -> bool:
    """Return whether a node pools every channel of an image's map to one position that stays."""
    if not is_op(node, "ReduceMean"):
        return is_op(node, *_POOLS)
    given = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    attribute = node.attributes.get("axes")
    found = attribute.as_ints() if attribute is not None else () if given is None else given.numpy()
    return integer(node, "keepdims", 1) == 1 and sorted(map(int, found)) in ([2, 3], [-2, -1])


def _scores(node: ir.Node) -> bool:
    """Return whether a matrix product gives a row for each image, and that is an output."""
    value = node.outputs[0]
    if not is_op(node, "Gemm", "MatMul"):
        return False
    while not value.is_graph_output():
        readers = [reader for reader, _ in value.uses()]
        if len(readers) != 1 or not is_op(readers[0], *_OF_SCORES):
            return False
        others = [each for each in readers[0].inputs if each is not None and each is not value]
        if any(constant(each) is None for each in others):
            return False
        value = readers[0].outputs[0]
    return node.op_type == "Gemm" if value.shape is None else len(value.shape) == 2


_OF_SCORES = ("Add", "Cast", "Flatten", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax")


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
