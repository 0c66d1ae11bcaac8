"""How many multiply-accumulates one node does: a rule per op."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    Rule: TypeAlias = Callable[[ir.Node], int]

STANDARD = ("", "ai.onnx")
"""Names of the domain of the ONNX operators."""
_RUNTIME = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""


class UnknownShape(Exception):  # noqa: N818 - a fact about the node, turned into a note
    """The shape of an input or output is open."""


def dims(value: ir.Value | None) -> tuple[int, ...]:
    """Return the sizes of a tensor. Raises: UnknownShape."""
    shape = None if value is None else value.shape
    if value is None or shape is None or not shape.is_static():
        raise UnknownShape(f"the shape of {getattr(value, 'name', None)!r} is {shape}")
    return tuple(int(dim) for dim in shape.numpy())


def constant(value: ir.Value | None) -> NDArray[np.generic] | None:
    """Return a tensor that does not depend on the input, None where it does."""
    if value is None:
        return None
    if value.const_value is not None and not value.is_graph_input():
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "Constant" or "value" not in node.attributes:
        return None
    return node.attributes["value"].as_tensor().numpy()


def _window(weights: int) -> Rule:
    """Return the rule: output elements * window, in-channels-per-group * kernel."""
    return lambda node: math.prod(_output(node)) * math.prod(_input(node, weights)[1:])


def _conv_transpose(node: ir.Node) -> int:
    """Return input elements * window: each is spread over out-channels-per-group * kernel."""
    return math.prod(_input(node, 0)) * math.prod(_input(node, 1)[1:])


def _conv_transpose_thop(node: ir.Node) -> int:
    channels, _, *kernel = _input(node, 1)
    group = node.attributes.get_int("group", 1)
    return math.prod(_output(node)) * (channels // group) * math.prod(kernel)


def _gemm(node: ir.Node) -> int:
    """Return M * N * K."""
    transposed = node.attributes.get_int("transA", 0)
    inner = _input(node, 0)[0 if transposed else 1]
    return math.prod(_output(node)) * inner


def _matmul(node: ir.Node) -> int:
    """Return output elements * K."""
    return math.prod(_output(node)) * _input(node, 0)[-1]


def _fused_matmul(node: ir.Node) -> int:
    """Return output elements * K, where the first operand may be transposed."""
    transposed = node.attributes.get_int("transA", 0)
    return math.prod(_output(node)) * _input(node, 0)[-2 if transposed else -1]


def _einsum(node: ir.Node) -> int:
    """Return the product of the sizes of all indices, for each operand after the first."""
    terms = node.attributes["equation"].as_string().replace(" ", "").split("->")[0].split(",")
    sizes: dict[str, int] = {}
    for place, term in enumerate(terms):
        shape = _input(node, place)
        before, dots, behind = term.partition("...")
        spread = len(shape) - len(before) - len(behind)
        if spread < 0 or (spread and not dots):
            raise UnknownShape(f"its operand {place} does not have the indices {term!r}")
        hidden = [f"...{spread - i}" for i in range(spread)]
        for index, size in zip([*before, *hidden, *behind], shape, strict=True):
            sizes[index] = max(size, sizes.get(index, 1))
    return math.prod(sizes.values()) * (len(terms) - 1)


def _recurrence(node: ir.Node) -> int:
    """Return steps * batch * (elements of W and R): every gate reads the input and the state."""
    steps_and_batch = _input(node, 0)[:2]
    return math.prod(steps_and_batch) * sum(math.prod(_input(node, place)) for place in (1, 2))


def _attention(node: ir.Node) -> int:
    """Return the scores' and the values' products: (elements of Q + of Y) * keys."""
    past = _input(node, 4)[-2] if len(node.inputs) > 4 and node.inputs[4] is not None else 0
    keys = _input(node, 1)[-2] + past
    return (math.prod(_input(node, 0)) + math.prod(_output(node))) * keys


RULES: Mapping[tuple[str, str], Rule] = {
    ("", "Attention"): _attention,
    ("", "Conv"): _window(1),
    ("", "ConvInteger"): _window(1),
    ("", "ConvTranspose"): _conv_transpose,
    ("", "DeformConv"): _window(1),
    ("", "Einsum"): _einsum,
    ("", "GRU"): _recurrence,
    ("", "Gemm"): _gemm,
    ("", "LSTM"): _recurrence,
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "QLinearConv"): _window(3),
    ("", "QLinearMatMul"): _matmul,
    ("", "RNN"): _recurrence,
    (_RUNTIME, "FusedConv"): _window(1),
    (_RUNTIME, "FusedGemm"): _gemm,
    (_RUNTIME, "FusedMatMul"): _fused_matmul,
    (_RUNTIME, "MatMulIntegerToFloat"): _matmul,
    (_RUNTIME, "QGemm"): _gemm,
}
"""(domain, op) -> its rule."""
THOP: Mapping[str, Rule] = {"ConvTranspose": _conv_transpose_thop}


def _input(node: ir.Node, index: int) -> tuple[int, ...]:
    return dims(node.inputs[index] if index < len(node.inputs) else None)


def _output(node: ir.Node) -> tuple[int, ...]:
    return dims(node.outputs[0])
