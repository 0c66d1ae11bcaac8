"""Nodes added to a graph that ask something about its tensors, and give the answers as outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from deploykit.files import protos
from deploykit.graph import inferring
from deploykit.graph.editing import unique, value_names
from deploykit.recipes.opened import Opened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SINGLE = ir.DataType.FLOAT
_LEVEL = ir.DataType.INT8


class Appended:
    """What is added behind the nodes of a model, which stays as it is."""

    def __init__(self, model: Opened, prefix: str) -> None:
        """Add nothing yet; all names will begin with `prefix`."""
        self.whole = model.copy()
        """The graph with what is added, and with the types that follow from its own."""
        inferring.infer(self.whole)
        self.graph = graph = self.whole.graph
        self._model = model
        made = (value for node in graph for value in node.outputs)
        inputs = (value for value in graph.inputs if not value.is_initializer())
        self.values = {str(value.name): value for value in (*inputs, *made) if value.name}
        """What the graph computed before: name -> tensor, its inputs included."""
        self._prefix = prefix
        self._taken = value_names(graph)
        self._constants: dict[str, ir.Value] = {}
        self._nodes: list[ir.Node] = []
        self._answers: list[ir.Value] = []

    def node(
        self,
        op: str,
        *values: ir.Value | None,
        dtype: ir.DataType = SINGLE,
        **attributes: int | Sequence[int],
    ) -> ir.Value:
        """Return the output of a new node of the standard ops."""
        name = unique(f"{self._prefix}.{len(self._taken)}", self._taken)
        result = ir.Value(name=name, type=ir.TensorType(dtype))
        self._add(ir.node(op, values, attributes, outputs=[result], name=name))
        return result

    def again(self, node: ir.Node, values: list[ir.Value | None]) -> ir.Value:
        """Return the only output of a copy of `node` that reads `values`."""
        name = unique(f"{self._prefix}.{len(self._taken)}", self._taken)
        result = ir.Value(name=name, type=node.outputs[0].type, shape=node.outputs[0].shape)
        copy = ir.Node(
            node.domain,
            node.op_type,
            values,
            attributes=node.attributes.values(),
            overload=node.overload,
            outputs=[result],
            name=name,
        )
        self._add(copy)
        return result

    def constant(self, name: str, array: NDArray[np.generic]) -> ir.Value:
        """Return a new initializer; asked for by the same name it is the same one."""
        if name not in self._constants:
            own = unique(f"{self._prefix}.{name}", self._taken)
            tensor = ir.tensor(array, name=own)
            kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
            value = ir.Value(name=own, shape=shape, type=kind, const_value=tensor)
            self.graph.register_initializer(value)
            self._constants[name] = value
        return self._constants[name]

    def stored(self, value: ir.Value, step: float) -> ir.Value:
        """Return a tensor as INT8 with such a step holds it."""
        scale = self.constant(f"{step!r}", np.array(step, np.float32))
        zero = self.constant("level", np.array(0, np.int8))
        levels = self.node("QuantizeLinear", value, scale, zero, dtype=_LEVEL)
        return self.node("DequantizeLinear", levels, scale, zero)

    def answer(self, value: ir.Value, rank: int = 0) -> str:
        """Make a value one of the graph's outputs and return its name."""
        if value.shape is None:
            value.shape = ir.Shape([None] * rank)
        self.graph.outputs.append(value)
        self._answers.append(value)
        return str(value.name)

    def opened(self) -> Opened:
        """Return the model with what was added.

        Its weights are not written again, see `protos.joined`.
        """
        tensors = (value.const_value for value in self._constants.values())
        added = onnx.GraphProto(
            node=map(ir.serde.serialize_node, self._nodes),
            initializer=[ir.serde.serialize_tensor(each) for each in tensors if each is not None],
            output=map(ir.serde.serialize_value, self._answers),
        )
        return Opened(self._model.path, protos.joined(self._model.data, added), self.whole)

    def _add(self, node: ir.Node) -> None:
        self.graph.append(node)
        self._nodes.append(node)
