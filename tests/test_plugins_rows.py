"""Rows packed and unpacked: in torch, in ONNX Runtime, and in TensorRT's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin_cases import FORMS, TAGS

from deploykit import ops
from deploykit.backends import BuildOptions, tensorrt_rtx
from deploykit.errors import ModelError
from deploykit.graph import cost
from deploykit.ops.tape import Tape
from deploykit.recipes import opened

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[Any]

FLOAT = ir.DataType.FLOAT


def model(rows: Array, count: Array, per_image: int, *, packed: bool = False) -> ir.Model:
    """Return x -> pack -> abs -> unpack, or its first two steps."""
    batch = ir.Value(name="count", type=ir.TensorType(ir.DataType.INT32), shape=ir.Shape(["batch"]))
    x = ir.Value(
        name="rows",
        type=ir.TensorType(ir.DataType.from_numpy(rows.dtype)),
        shape=ir.Shape([f"{per_image}*batch", *rows.shape[1:]]),
    )
    tape = Tape()
    pack = node("DKPackRows", [x, batch], per_image, "packed")
    positive = tape.Abs(pack.outputs[0])
    positive.type, positive.shape = x.type, x.shape
    unpack = node("DKUnpackRows", [positive, batch], per_image, "unpacked")
    assert count.dtype == np.int32
    nodes = [pack, *tape.nodes] if packed else [pack, *tape.nodes, unpack]
    graph = ir.Graph(
        [x, batch],
        [positive if packed else unpack.outputs[0]],
        nodes=nodes,
        opset_imports={"": 19, "deploykit": 1},
    )
    return ir.Model(graph, ir_version=10)


def node(op_type: str, inputs: list[ir.Value], per_image: int, output: str) -> ir.Node:
    """Return a node of ours whose output has the type and shape of its first input."""
    attributes = {"per_image": per_image, **TAGS}
    made = ir.Value(name=output, type=inputs[0].type, shape=inputs[0].shape)
    return ir.node(
        op_type,
        inputs,
        attributes,  # type: ignore[arg-type]  # ir's dict is invariant
        domain="deploykit",
        outputs=[made],
        name=output,
    )


def run(graph: ir.Model, rows: Array, count: Array) -> Array:
    """Return the output in ONNX Runtime."""
    data = ir.to_proto(graph).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: Array = session.run(None, {"rows": rows, "count": count})[0]
    return found


@st.composite
def cases(draw: st.DrawFn) -> tuple[Array, Array, int]:
    """Draw rows of 1 to 4 dimensions, how many are there, and how many there may be."""
    images, per_image = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    size = draw(st.lists(st.integers(1, 5), max_size=3))
    dtype = draw(st.sampled_from([np.float32, np.float16, np.int64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = (rng.standard_normal((images * per_image, *size)) * 100).astype(dtype)
    count = rng.integers(0, per_image + 1, images).astype(np.int32)
    return rows, count, per_image


def expected(rows: Array, count: Array, per_image: int) -> Array:
    """Return the absolute rows, those of the padding zero, by a loop."""
    result = np.zeros_like(rows)
    for image, present in enumerate(count):
        start = image * per_image
        result[start : start + present] = abs(rows[start : start + present])
    return result


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=500, deadline=None)
@given(case=cases())
def test_each_row_comes_back_to_its_place_and_the_padding_is_zero(
    form: str, case: tuple[Array, Array, int]
) -> None:
    rows, count, per_image = case
    graph = model(rows, count, per_image)
    FORMS[form](graph)
    np.testing.assert_array_equal(run(graph, rows, count), expected(*case))
    tensors = torch.from_numpy(rows), torch.from_numpy(count)
    pack, unpack = ops.torch_op("pack_rows"), ops.torch_op("unpack_rows")
    packed = pack(*tensors, per_image=per_image)
    torch_s = unpack(packed.abs(), tensors[1], per_image=per_image)
    np.testing.assert_array_equal(torch_s.numpy(), expected(*case))


def test_onnxruntime_computes_the_rows_that_are_there_alone() -> None:
    rows, count = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([1, 0, 2], np.int32)
    graph = model(rows, count, 2, packed=True)
    ops.attach(graph)
    np.testing.assert_array_equal(run(graph, rows, count), rows[[0, 4, 5]])
    nothing = np.zeros(3, np.int32)
    assert run(graph, rows, nothing).shape == (0, 2)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [[0, 0], [9, 9], [-3, 2]])
def test_counts_beyond_the_rows_and_nan_in_the_padding_do_no_harm(
    form: str, count: list[int]
) -> None:
    rows = np.ones((6, 2), np.float32)
    present = np.clip(count, 0, 3).astype(np.int32)
    rows[expected(rows, present, 3) == 0] = np.nan
    graph = model(rows, present, 3)
    FORMS[form](graph)
    found = run(graph, rows, np.array(count, np.int32))
    np.testing.assert_array_equal(found, expected(rows, present, 3))


def test_sizes_between_the_two_have_a_name_of_their_own_and_cost_as_before() -> None:
    rows, count = np.zeros((4, 3), np.float32), np.zeros(2, np.int32)
    graph = model(rows, count, 2)
    for _ in range(2):  # attaching twice names them once
        ops.attach(graph)
    shapes = {str(v.name): str(v.shape) for node in graph.graph for v in node.outputs}
    assert shapes["packed"] == shapes["Abs_0_0"] == "[at_most(2*batch),3]"
    assert shapes["unpacked"] == "[2*batch,3]"
    weights = ir.Value(name="w", const_value=ir.tensor(np.zeros((3, 5), np.float32), name="w"))
    product = ir.node("MatMul", [graph.graph.node(1).outputs[0], weights], name="product")
    product.outputs[0].shape = ir.Shape(["at_most(2*batch)", 5])
    graph.graph.append(product)
    graph.graph.initializers["w"] = weights
    assert cost.macs(graph) == {"product": 2 * 3 * 5}


def test_there_is_no_plugin_to_look_for() -> None:
    graph = model(np.zeros((4, 3), np.float32), np.zeros(2, np.int32), 2)
    assert not ops.counts(graph)
    assert not ops.shipped()["DKPackRows"].source
    ops.inline(graph, kernels=False)
    assert not any(ops.calls(graph))
    assert "deploykit" not in graph.graph.opset_imports


def test_a_count_per_row_is_an_error() -> None:
    graph = model(np.zeros((4, 3), np.float32), np.zeros(2, np.int32), 2)
    graph.graph.inputs[1].shape = ir.Shape(["batch", 2])
    with pytest.raises(ModelError, match=r"count is \[B, 2\], expected \[B\]"):
        ops.attach(graph)


@pytest.mark.parametrize("plugins", ["auto", "none"])
@pytest.mark.parametrize("sm", ["75", "86"])
def test_tensorrt_builds_it_without_a_plugin(tmp_path: Path, plugins: str, sm: str) -> None:
    graph = model(np.zeros((4, 3, 5, 5), np.float32), np.zeros(2, np.int32), 2)
    for value, size in zip(graph.graph.inputs, (4, 2), strict=True):
        assert value.shape is not None
        value.shape = ir.Shape([size, *value.shape[1:]])
    ops.attach(graph)
    path = tmp_path / "rows.onnx"
    path.write_bytes(ir.to_proto(graph).SerializeToString())
    options = BuildOptions(sms=(sm,), plugins=plugins)
    built = tensorrt_rtx.build(opened.read(path), tmp_path / "rows.engine", options)
    assert built.plugins is None
