"""One node as the operators see it: its attributes as plain Python values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx_ir as ir
import torch
from torch import Tensor

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Op: TypeAlias = Callable[..., Tensor | Sequence[Tensor]]
    Ops: TypeAlias = Mapping[str, Op]
    """Operator -> a function of the node and its inputs, None for one that is left out."""


@dataclass(frozen=True)
class Node:
    """A node without its inputs."""

    name: str
    op: str
    attributes: Mapping[str, Any]
    outputs: int = 1

    @classmethod
    def of(cls, node: ir.Node) -> Node:
        """Return what a node of a graph says of itself."""
        found = {name: _plain(each) for name, each in node.attributes.items()}
        return cls(str(node.name), node.op_type, found, len(node.outputs))

    def get(self, name: str, default: Any = None) -> Any:  # noqa: ANN401 - of any type
        """Return an attribute, `default` where it is absent."""
        return self.attributes.get(name, default)

    def refuse(self, what: str) -> ModelError:
        """Return the error for a node that cannot be computed here."""
        return ModelError(
            f"{self.name!r} is a {self.op} {what}, which training does not compute",
            expected="operators of convolutional networks and transformers",
            fix="train in the framework that the network comes from, or keep to `quantize`",
        )


def _plain(attribute: ir.Attr) -> Any:  # noqa: ANN401 - of any type
    """Return the value of an attribute; a tensor as torch's."""
    if attribute.type == ir.AttributeType.TENSOR:
        return torch.from_numpy(attribute.as_tensor().numpy().copy())
    if attribute.type == ir.AttributeType.INTS:
        return [int(value) for value in attribute.as_ints()]
    return attribute.value


def numbers(value: Tensor | None) -> list[int] | None:
    """Return the whole numbers of an input that holds a shape or axes, None for none."""
    return None if value is None else [int(each) for each in value.reshape(-1).tolist()]


def axes_of(node: Node, given: Tensor | None) -> list[int] | None:
    """Return the axes that an input or, before opset 13 or 18, an attribute names."""
    found = numbers(given)
    return node.get("axes") if found is None else found


def positive(axis: int, rank: int) -> int:
    """Return an axis counted from the first."""
    return axis + rank if axis < 0 else axis


DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}
