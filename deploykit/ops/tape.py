"""Write ONNX nodes as Python calls: `op.Add(x, 1.0)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    Constant: TypeAlias = float | Sequence[int] | Sequence[float] | NDArray[np.generic]
    Operand: TypeAlias = ir.Value | Constant | None


class Tape:
    """Standard ONNX nodes in the order in which they were called for.

    Any operator is a method. Operands are values, None for an absent optional input, or
    constants: int and bool become INT64 and BOOL, float becomes FLOAT, an array keeps its type.

        op = Tape()
        area = op.Mul(width, op.Max(height, 0.0))
        best, index = op.TopK(scores, [100], axis=-1, outputs=2)
    """

    def __init__(self, prefix: str = "") -> None:
        """Start with no nodes; `prefix` stands before the name of each node and value."""
        self.nodes: list[ir.Node] = []
        self._prefix = prefix

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        """Return the function that appends a node of this type and returns what it computes.

        Its keyword `outputs` is the number of results, a tuple from 2 on; all other keywords are
        attributes.
        """
        if op_type.startswith("_"):
            raise AttributeError(op_type)
        return lambda *inputs, outputs=1, **attributes: self._append(
            op_type, inputs, outputs, attributes
        )

    def loop(
        self,
        trips: Operand,
        condition: Operand,
        carried: Sequence[ir.Value],
        body: Callable[[Tape, ir.Value, Sequence[ir.Value]], tuple[Operand, Sequence[Operand]]],
    ) -> tuple[ir.Value, ...]:
        """Return the carried values after an ONNX Loop.

        Args:
            trips: Most iterations, int64[]; None for no limit.
            condition: Whether to start at all, bool[]; None for yes.
            carried: Values at the start.
            body: (tape, iteration, carried) -> (whether to go on, or None; new carried values).
                It may use values from outside.
        """
        inner = Tape(f"{self._prefix}loop{len(self.nodes)}_")
        name = inner._prefix
        count = ir.Value(name=f"{name}i", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([]))
        going = ir.Value(name=f"{name}go", type=ir.TensorType(ir.DataType.BOOL), shape=ir.Shape([]))
        states = [
            ir.Value(name=f"{name}in{k}", type=value.type, shape=value.shape)
            for k, value in enumerate(carried)
        ]
        proceed, results = body(inner, count, states)
        last = inner.Identity(going if proceed is None else proceed)
        ends = [inner.Identity(value) for value in results]
        last.type, last.shape = going.type, going.shape
        for end, state in zip(ends, states, strict=True):
            end.type, end.shape = state.type, state.shape
        graph = ir.Graph([count, going, *states], [last, *ends], nodes=inner.nodes, name=name)
        inputs = [trips, True if condition is None else condition, *carried]
        found = self._append("Loop", inputs, len(states), {"body": graph})
        return found if isinstance(found, tuple) else (found,)

    def operand(self, value: Operand) -> ir.Value | None:
        """Return `value` itself, or the Constant that holds it."""
        if value is None or isinstance(value, ir.Value):
            return value
        array = np.asarray(value)
        if not isinstance(value, np.ndarray | np.generic) and array.dtype == np.float64:
            array = array.astype(np.float32)
        known = ir.AttrTensor("value", ir.Tensor(array))  # a tenth of the time of finding its kind
        constant: ir.Value = self._append("Constant", (), 1, {"value": known})
        return constant

    def _append(
        self, op_type: str, inputs: Sequence[Operand], outputs: int, attributes: dict[str, Any]
    ) -> Any:  # noqa: ANN401 - a value, or a tuple of them
        operands = [self.operand(value) for value in inputs]
        name = f"{self._prefix}{op_type}_{len(self.nodes)}"
        node = ir.node(
            op_type,
            operands,
            attributes,
            outputs=[ir.Value(name=f"{name}_{k}") for k in range(outputs)],
            name=name,
        )
        self.nodes.append(node)
        return node.outputs[0] if outputs == 1 else tuple(node.outputs)
