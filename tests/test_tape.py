"""The tape writes the nodes it is asked for; ONNX Runtime runs them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from deploykit.ops.tape import Tape

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.generic]


def value(name: str, dtype: ir.DataType = ir.DataType.FLOAT, rank: int = 1) -> ir.Value:
    """Return a free value."""
    shape = ir.Shape([f"{name}{i}" for i in range(rank)])
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=shape)


def run(
    inputs: Sequence[ir.Value], outputs: Sequence[ir.Value], op: Tape, *feeds: Array
) -> list[Array]:
    """Return what the nodes of a tape compute in ONNX Runtime."""
    for output in outputs:
        output.type = output.type or ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(inputs, outputs, nodes=op.nodes, opset_imports={"": 19}, name="test")
    data = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(
        None, {str(v.name): feed for v, feed in zip(inputs, feeds, strict=True)}
    )
    return found


def test_operands_may_be_numbers_and_arrays() -> None:
    op, x = Tape(), value("x")
    y = op.Mul(op.Add(x, 1.0), np.array([2, 3], np.float32))
    (found,) = run([x], [y], op, np.array([1, 2], np.float32))
    np.testing.assert_array_equal(found, [4, 9])


@pytest.mark.parametrize(
    ("constant", "dtype"),
    [
        (1, "int64"),
        (1.5, "float32"),
        (True, "bool"),
        ([1, 2], "int64"),
        ([0.5], "float32"),
        (np.float64(2), "float64"),
        (np.zeros(2, np.int32), "int32"),
    ],
)
def test_a_constant_has_the_type_that_a_reader_expects(constant: object, dtype: str) -> None:
    made = Tape().operand(constant)  # type: ignore[arg-type]  # every kind on purpose
    assert made is not None
    node = made.producer()
    assert node is not None
    assert node.attributes["value"].as_tensor().dtype.numpy().name == dtype


def test_an_operator_with_several_outputs_returns_a_tuple() -> None:
    op, x = Tape(), value("x")
    best, index = op.TopK(x, [2], outputs=2)
    index.type = ir.TensorType(ir.DataType.INT64)
    found = run([x], [best, index], op, np.array([1, 3, 2], np.float32))
    np.testing.assert_array_equal(found[0], [3, 2])
    np.testing.assert_array_equal(found[1], [1, 2])


def test_an_absent_optional_input_stays_absent() -> None:
    op, x = Tape(), value("x")
    y = op.Clip(x, None, 2.0)
    (found,) = run([x], [y], op, np.array([-5, 5], np.float32))
    np.testing.assert_array_equal(found, [-5, 2])


def test_a_loop_carries_values_until_its_condition_ends_it() -> None:
    op, x = Tape(), value("x", rank=0)
    limit = op.Mul(x, 100.0)

    def double(
        inner: Tape, _: ir.Value, state: Sequence[ir.Value]
    ) -> tuple[ir.Value, list[ir.Value]]:
        doubled = inner.Mul(state[0], 2.0)
        return inner.Less(doubled, limit), [doubled]

    (y,) = op.loop(None, None, [x], double)
    (found,) = run([x], [y], op, np.array(3, np.float32))
    assert found == 384


def test_a_loop_counts_its_iterations_and_may_pass_a_value_on_unchanged() -> None:
    op, x = Tape(), value("x", rank=0)

    def add(inner: Tape, i: ir.Value, state: Sequence[ir.Value]) -> tuple[None, list[ir.Value]]:
        return None, [inner.Add(state[0], inner.Cast(i, to=ir.DataType.FLOAT)), state[1]]

    total, kept = op.loop(4, None, [x, x], add)
    found = run([x], [total, kept], op, np.array(10, np.float32))
    assert [float(v) for v in found] == [16, 10]


def test_names_start_with_the_prefix_and_never_repeat() -> None:
    op = Tape("layer.")
    x = value("x")
    op.loop(2, None, [op.Add(x, 1.0)], lambda _op, _i, state: (None, state))
    op.loop(2, None, [op.Add(x, 1.0)], lambda _op, _i, state: (None, state))
    graphs = [n.attributes["body"].as_graph() for n in op.nodes if n.op_type == "Loop"]
    nodes = [*op.nodes, *(node for graph in graphs for node in graph)]
    names = [str(v.name) for node in nodes for v in node.outputs]
    names += [str(v.name) for graph in graphs for v in graph.inputs]
    assert len(set(names)) == len(names)
    assert all(name.startswith("layer.") for name in names)


def test_only_operators_become_nodes() -> None:
    with pytest.raises(AttributeError):
        Tape().__deepcopy__  # noqa: B018 - what copy.deepcopy asks for
