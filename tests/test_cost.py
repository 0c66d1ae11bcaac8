from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from deploykit.errors import ModelError, OptionError
from deploykit.graph import cost

if TYPE_CHECKING:
    from collections.abc import Sequence

Dims = tuple[int | str, ...]


def single(op: str, shape: Dims, weight: Sequence[int], **attributes: Any) -> onnx.ModelProto:
    """Return a model of one weighted node, all of whose weights are 1."""
    ones = numpy_helper.from_array(np.ones(weight, np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name="layer", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [ones],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def multiplications(model: onnx.ModelProto, shape: tuple[int, ...]) -> int:
    """Count by running: with ones everywhere and no padding, each product adds 1 to the output."""
    (y,) = ReferenceEvaluator(model).run(None, {"x": np.ones(shape, np.float32)})
    return round(float(np.asarray(y, np.float64).sum()))


def counted(model: onnx.ModelProto) -> dict[str, int]:
    return cost.macs(ir.from_proto(model))


small = st.integers(1, 3)


@settings(max_examples=25, deadline=None)
@given(st.tuples(small, small, small), small, st.integers(1, 2))
def test_a_convolution_costs_the_products_that_running_it_adds_up(
    sizes: tuple[int, int, int], kernel: int, stride: int
) -> None:
    batch, group, channels = sizes
    shape = (batch, group * channels, kernel + 3, kernel + 2)
    model = single(
        "Conv", shape, (2 * group, channels, kernel, kernel), group=group, strides=[stride, stride]
    )
    assert counted(model) == {"layer": multiplications(model, shape)}


@settings(max_examples=25, deadline=None)
@given(small, small, st.integers(1, 3), st.integers(1, 3))
def test_a_transposed_convolution_costs_the_products_that_running_it_adds_up(
    batch: int, channels: int, kernel: int, stride: int
) -> None:
    shape = (batch, channels, 3, 4)
    model = single("ConvTranspose", shape, (channels, 2, kernel, kernel), strides=[stride, stride])
    assert counted(model) == {"layer": multiplications(model, shape)}


@pytest.mark.parametrize(
    ("op", "shape", "weight", "attributes"),
    [
        ("Gemm", (3, 5), (5, 7), {}),
        ("Gemm", (5, 3), (7, 5), {"transA": 1, "transB": 1}),
        ("MatMul", (2, 3, 4, 5), (5, 6), {}),
        ("MatMul", (4, 5), (2, 5, 3), {}),
    ],
)
def test_matrix_products_cost_the_products_that_running_them_adds_up(
    op: str, shape: tuple[int, ...], weight: tuple[int, ...], attributes: dict[str, int]
) -> None:
    model = single(op, shape, weight, **attributes)
    assert counted(model) == {"layer": multiplications(model, shape)}


def test_a_dynamic_batch_counts_as_one_image() -> None:
    fixed = single("Conv", (1, 4, 8, 8), (6, 4, 3, 3))
    dynamic = single("Conv", ("batch", 4, 8, 8), (6, 4, 3, 3))
    assert counted(dynamic) == counted(fixed) == {"layer": 6 * 6 * 6 * 4 * 9}


def test_counting_leaves_the_model_as_it_was() -> None:
    model = ir.from_proto(single("Conv", ("batch", 4, 8, 8), (6, 4, 3, 3)))
    before = ir.to_proto(model).SerializeToString()
    cost.macs(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_weights_behind_dequantize_linear_and_nodes_without_names_are_counted() -> None:
    weight = numpy_helper.from_array(np.ones((6, 4, 3, 3), np.int8), "w")
    scale = numpy_helper.from_array(np.ones(6, np.float32), "s")
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["wf"], axis=0),
            helper.make_node("Conv", ["x", "wf"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 4, 8, 8))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [weight, scale],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    assert counted(model) == {"y": 6 * 6 * 6 * 4 * 9}


def test_every_convention_is_what_its_tables_print() -> None:
    model = ir.from_proto(
        single("ConvTranspose", (1, 4, 5, 5), (4, 6, 2, 2), strides=[2, 2], kernel_shape=[2, 2])
    )
    mac = 5 * 5 * 4 * 6 * 2 * 2
    assert cost.total(model) == cost.total(model, "mac") == mac
    assert cost.total(model, "flop2") == 2 * mac
    # Twice as high and wide: thop counts four times a 2x2 stride-2 layer.
    assert cost.total(model, "thop2") == 2 * 4 * mac
    assert cost.total(model, "gimac") == mac / 2**30


def test_thop_and_flop2_agree_where_no_convolution_is_transposed() -> None:
    model = ir.from_proto(single("Conv", (2, 4, 8, 8), (6, 4, 3, 3)))
    assert cost.total(model, "thop2") == cost.total(model, "flop2")


def test_a_network_costs_what_torch_counts() -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        torch.nn.Conv2d(8, 8, 5, padding=2, groups=4, bias=False),
        torch.nn.ConvTranspose2d(8, 6, 2, 2, bias=False),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 16 * 16, 10, bias=False),
    )
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 16, 16))
    text = """<ir_version: 9, opset_import: ["" : 19]>
        g (float[n, 3, 16, 16] x, float[8, 3, 3, 3] a, float[8, 2, 5, 5] b, float[8, 6, 2, 2] c,
           float[10, 1536] d) => (float[n, 10] y) {
            p = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, a)
            q = Conv<group = 4, pads = [2, 2, 2, 2]>(p, b)
            r = ConvTranspose<strides = [2, 2]>(q, c)
            s = Flatten(r)
            y = Gemm<transB = 1>(s, d)
        }"""
    assert sum(cost.macs(ir.from_onnx_text(text)).values()) * 2 == counter.get_total_flops()


def test_an_unknown_convention_lists_the_known_ones() -> None:
    model = ir.from_proto(single("Conv", (1, 1, 3, 3), (1, 1, 3, 3)))
    with pytest.raises(OptionError, match=r"unknown convention 'flops2'.*\n.*flop2"):
        cost.total(model, "flops2")  # type: ignore[arg-type]


def test_a_dynamic_height_is_an_error_that_names_the_node_and_the_way_out() -> None:
    with pytest.raises(ModelError, match="Conv 'layer'") as caught:
        counted(single("Conv", (1, 4, "height", 8), (6, 4, 3, 3)))
    assert "fixed height and width" in str(caught.value)


def test_sizes_below_zero_are_open_ones() -> None:
    model = single("Conv", (-1, 3, 8, 8), (4, 3, 3, 3))
    between = helper.make_tensor_value_info("y", TensorProto.FLOAT, [-1, 4, -1, -1])
    model.graph.output[0].CopyFrom(between)
    assert counted(model) == {"layer": 4 * 6 * 6 * 3 * 3 * 3}
    model = single("Conv", (-1, 3, -1, 8), (4, 3, 3, 3))
    with pytest.raises(ModelError, match="cannot count the cost of Conv 'layer'"):
        counted(model)


def padded(batch: str) -> onnx.ModelProto:
    """Return a convolution of 10 rows filled up to a multiple of 4, as exporters write it."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 19]>
        g (float[{batch},3,10,8] x) => (float[n,c,h,w] y)
        <int64[1] row = {{2}}, int64[1] four = {{4}}, int64[1] first = {{6}}, int64[1] last = {{1}}>
        {{
            sizes = Shape(x)
            rows = Gather(sizes, row)
            over = Mod(rows, four)
            lacking = Sub(four, over)
            behind = Mod(lacking, four)
            before = ConstantOfShape<value: tensor = int64[1] {{0}}>(first)
            end = ConstantOfShape<value: tensor = int64[1] {{0}}>(last)
            pads = Concat<axis=0>(before, behind, end)
            filled = Pad(x, pads)
            [layer] y = Conv(filled, w)
        }}""")
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 3, 3, 3), np.float32), "w"))
    return model


@pytest.mark.parametrize("batch", ["1", "batch"])
def test_sizes_that_a_graph_computes_are_followed_through_its_arithmetic(batch: str) -> None:
    model = padded(batch)
    (y,) = ReferenceEvaluator(model).run(None, {"x": np.ones((1, 3, 10, 8), np.float32)})
    assert np.asarray(y).shape == (1, 4, 10, 6)
    assert counted(model) == {"layer": np.asarray(y).size * 3 * 3 * 3}
