"""`quantize` takes graphs as other exporters write them, and proves that they compute the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from foreign_nets import SIDE, WIDTH, Net, two_layers
from onnx import TensorProto, helper, numpy_helper

from deploykit import pipeline
from deploykit.errors import ModelError, ProofError
from deploykit.files import onnxfile
from deploykit.graph.passes import constant_shapes
from deploykit.pipeline import preparing
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.proof import float64
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

RAW = Description(preprocess="unit")


def quantized(path: Path, photos: Path, **options: Any) -> Path:
    output = path.with_suffix(".int8.onnx")
    options = {"about": RAW, "float_type": Precision.FP32, **options}
    pipeline.quantize(path, output, QuantizeOptions(source=f"folder:{photos}", **options))
    return output


def outputs(path: Path, images: NDArray[Any]) -> Any:
    return ort.InferenceSession(path).run(None, {"images": images})[0]


def test_a_file_in_the_right_form_is_taken_as_it_is(tmp_path: Path) -> None:
    net, output = two_layers()
    model = opened.read(net.save(tmp_path / "m.onnx", output))
    assert preparing.prepared(model, 19) is model


def identity(net: Net, kernel: NDArray[Any]) -> str:
    return net.op("Identity", net.weight(kernel))


def half(net: Net, kernel: NDArray[Any]) -> str:
    return net.op("Cast", net.weight(kernel.astype(np.float16)), to=TensorProto.FLOAT)


def turned(net: Net, kernel: NDArray[Any]) -> str:
    return net.op("Transpose", net.weight(kernel.transpose(2, 3, 1, 0)), perm=[3, 2, 0, 1])


def held(net: Net, kernel: NDArray[Any]) -> str:
    return net.op("Constant", value=numpy_helper.from_array(kernel))


def flat(net: Net, kernel: NDArray[Any]) -> str:
    return net.op("Reshape", net.weight(kernel.ravel()), net.weight(np.array(kernel.shape)))


def in_steps(net: Net, kernel: NDArray[Any]) -> str:
    return net.op("Identity", turned(net, kernel))


def stored(net: Net, kernel: NDArray[Any]) -> str:
    scale = (np.abs(kernel).max((1, 2, 3)) / 100).astype(np.float32)
    levels = np.rint(kernel / scale[:, None, None, None]).astype(np.int8)
    return net.op("DequantizeLinear", net.weight(levels), net.weight(scale), axis=0)


@pytest.mark.parametrize("write", [identity, half, turned, held, flat, in_steps, stored])
def test_weights_behind_other_nodes_are_weights(
    tmp_path: Path, photos: Path, write: Callable[[Net, NDArray[Any]], str]
) -> None:
    net = Net()
    x = net.op("Relu", net.conv("images", 3, WIDTH))
    kernel = write(net, net.kernel(WIDTH, WIDTH, 3, 3))
    path = net.save(tmp_path / "m.onnx", net.conv(x, WIDTH, WIDTH, kernel))
    result = quantized(path, photos)
    found = pipeline.inspect(result)
    assert found.shares == {"int8": 1.0}
    assert not found.errors
    kinds = {TensorProto.FLOAT: 0, TensorProto.INT8: 0, TensorProto.INT64: 0}
    graph = onnx.load(result).graph
    for tensor in graph.initializer:
        kinds[tensor.data_type] += int(np.prod(tensor.dims))
    assert kinds[TensorProto.FLOAT] < WIDTH * WIDTH, "no float copy of the weights is left"
    assert not [node for node in graph.node if node.op_type == "Constant"]


@pytest.mark.parametrize("float_type", [Precision.FP32, Precision.FP16])
def test_levels_that_a_file_stored_are_kept(
    tmp_path: Path, photos: Path, float_type: Precision
) -> None:
    net = Net()
    x = net.op("Relu", net.conv("images", 3, WIDTH))
    weights = stored(net, net.kernel(WIDTH, WIDTH, 3, 3))
    levels = next(w for w in net.weights if w.data_type == TensorProto.INT8)
    path = net.save(tmp_path / "m.onnx", net.conv(x, WIDTH, WIDTH, weights))
    graph = onnx.load(quantized(path, photos, float_type=float_type)).graph
    found = [numpy_helper.to_array(w) for w in graph.initializer if list(w.dims) == levels.dims]
    np.testing.assert_array_equal(found[0], numpy_helper.to_array(levels))


def test_one_scale_for_all_weights_becomes_the_same_for_each_channel(
    tmp_path: Path, photos: Path
) -> None:
    net = Net()
    kernel = net.random.integers(-100, 101, (WIDTH, 3, 3, 3)).astype(np.int8)
    weights = net.op("DequantizeLinear", net.weight(kernel), net.weight(np.float32(0.01)))
    path = net.save(tmp_path / "m.onnx", net.conv("images", 3, WIDTH, weights))
    graph = onnx.load(quantized(path, photos)).graph
    arrays = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    assert any(np.array_equal(a, kernel) for a in arrays.values())
    assert any(np.array_equal(a, np.full(WIDTH, 0.01, "f")) for a in arrays.values())


def test_weights_that_are_not_symmetric_are_quantised_anew(tmp_path: Path, photos: Path) -> None:
    net = Net()
    kernel = net.random.integers(0, 256, (WIDTH, 3, 3, 3)).astype(np.uint8)
    parts = [kernel, np.float32(0.01), np.uint8(120)]
    weights = net.op("DequantizeLinear", *(net.weight(np.asarray(part)) for part in parts))
    path = net.save(tmp_path / "m.onnx", net.conv("images", 3, WIDTH, weights))
    found = pipeline.inspect(quantized(path, photos))
    assert found.shares == {"int8": 1.0}
    assert not found.errors


@pytest.mark.parametrize("terms", [2, 3, 4])
def test_a_residual_written_as_sum_reads_the_int8_copy(
    tmp_path: Path, photos: Path, terms: int
) -> None:
    net = Net()
    x = net.op("Relu", net.conv("images", 3, WIDTH))
    branches = [net.conv(x, WIDTH, WIDTH) for _ in range(terms - 1)]
    added = net.op("Relu", net.op("Sum", *branches, x))
    path = net.save(tmp_path / "m.onnx", net.conv(added, WIDTH, WIDTH))
    graph = onnx.load(quantized(path, photos)).graph
    kinds = [node.op_type for node in graph.node]
    assert "Sum" not in kinds
    assert kinds.count("Add") == terms - 1
    made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    (last,) = [n for n in graph.node if n.op_type == "Add"][-1:]
    assert set(last.input) & made


def padded(net: Net, x: str) -> str:
    """Append what torch's older exporter writes for F.pad of the right and the lower side."""
    filled = net.op(
        "ConstantOfShape",
        net.weight(np.array([4])),
        value=numpy_helper.from_array(np.zeros(1, np.int64)),
    )
    pads = net.op("Concat", net.weight(np.array([0, 1, 0, 1])), filled, axis=0)
    pairs = net.op("Reshape", pads, net.weight(np.array([-1, 2])))
    ends = [net.weight(np.array([end])) for end in (-1, -(2**62), 0, -1)]
    turned = net.op("Transpose", net.op("Slice", pairs, *ends), perm=[1, 0])
    flat = net.op("Reshape", turned, net.weight(np.array([-1])))
    return net.op("Pad", x, net.op("Cast", flat, to=TensorProto.INT64))


@pytest.mark.parametrize("shape", [(1, 3, SIDE, SIDE), ("n", 3, "h", "w")])
def test_computed_padding_becomes_a_constant(tmp_path: Path, photos: Path, shape: Any) -> None:
    net = Net()
    x = padded(net, net.op("Relu", net.conv("images", 3, WIDTH)))
    path = net.save(tmp_path / "m.onnx", net.conv(x, WIDTH, WIDTH), shape)
    about = Description(preprocess="unit", input_size=(SIDE, SIDE))
    result = quantized(path, photos, about=about)
    kinds = {node.op_type for node in onnx.load(result).graph.node}
    assert kinds == {"Conv", "Relu", "Pad", "QuantizeLinear", "DequantizeLinear"}
    (out,) = onnxfile.interface(opened.read(result).graph)[1]
    assert out.shape[1:] == (WIDTH, SIDE + 1, SIDE + 1)


def test_batch_norms_and_nodes_without_names_are_taken(tmp_path: Path, photos: Path) -> None:
    net = Net()
    weights = [net.weight(net.random.uniform(0.5, 1.5, WIDTH).astype("f")) for _ in range(4)]
    norm = net.op("BatchNormalization", net.conv("images", 3, WIDTH), *weights)
    output = net.conv(net.op("Relu", norm), WIDTH, WIDTH)
    for node in net.nodes:
        node.name = ""
    graph = onnx.load(quantized(net.save(tmp_path / "m.onnx", output), photos)).graph
    kinds = [node.op_type for node in graph.node]
    assert "BatchNormalization" not in kinds
    assert kinds.count("Conv") == 2


@pytest.mark.parametrize(("opset", "float_type"), [(11, "fp32"), (12, "fp16"), (17, "fp16")])
def test_an_older_opset_is_raised(
    tmp_path: Path, photos: Path, opset: int, float_type: str
) -> None:
    net, output = two_layers()
    output = net.op("Softmax", net.op("Flatten", output), axis=1)
    path = net.save(tmp_path / "m.onnx", output, opset=opset, ir_version=6)
    result = quantized(path, photos, float_type=Precision(float_type))
    found = onnx.load(result)
    assert found.opset_import[0].version == (19 if float_type == "fp16" else 13)
    images = net.random.random((1, 3, SIDE, SIDE), np.float32)
    assert np.abs(outputs(result, images) - outputs(path, images)).max() < 0.02


def test_an_opset_that_onnx_cannot_raise_is_refused(tmp_path: Path, photos: Path) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output, opset=12, ir_version=6)
    model = onnx.load(path)
    model.graph.node.append(onnx.helper.make_node("Foo", ["images"], ["y"], domain="com.x"))
    model.opset_import.append(onnx.helper.make_opsetid("com.x", 1))
    onnx.save(model, path)
    with pytest.raises(ModelError):
        quantized(path, photos)


def half_quantised(net: Net) -> str:
    """Append a net whose first of two convolutions has Q/DQ already."""
    scale, zero = net.weight(np.float32(0.01)), net.weight(np.int8(0))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", "images", scale, zero), scale, zero)
    first = net.op("Relu", net.conv(x, 3, WIDTH, stored(net, net.kernel(WIDTH, 3, 3, 3))))
    return net.conv(first, WIDTH, WIDTH)


@pytest.mark.parametrize("float_type", [Precision.FP32, Precision.FP16])
def test_a_partly_quantised_graph_keeps_its_own(
    tmp_path: Path, photos: Path, float_type: Precision
) -> None:
    net = Net()
    path = net.save(tmp_path / "m.onnx", half_quantised(net))
    result = quantized(path, photos, float_type=float_type)
    found = pipeline.inspect(result)
    assert found.shares == {"int8": 1.0}
    assert not found.errors
    graph = onnx.load(result).graph
    assert [node.op_type for node in graph.node].count("QuantizeLinear") == 2
    (own,) = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "images"]
    scales = {w.name: float(numpy_helper.to_array(w)) for w in graph.initializer if not w.dims}
    assert scales[own.input[1]] == pytest.approx(0.01, rel=1e-3)


def test_its_own_can_be_taken_off(tmp_path: Path, photos: Path) -> None:
    net = Net()
    path = net.save(tmp_path / "m.onnx", half_quantised(net))
    result = quantized(path, photos, strip_qdq=True)
    graph = onnx.load(result).graph
    (own,) = [n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "images"]
    scales = {w.name: float(numpy_helper.to_array(w)) for w in graph.initializer if not w.dims}
    assert scales[own.input[1]] == pytest.approx(1 / 127, rel=0.2), "of the images, 0 to 1"
    again = quantized(result, photos, strip_qdq=True)
    assert pipeline.inspect(again).shares == {"int8": 1.0}


def test_what_is_quantised_already_is_refused_by_that_word(tmp_path: Path, photos: Path) -> None:
    net, output = two_layers()
    result = quantized(net.save(tmp_path / "m.onnx", output), photos)
    with pytest.raises(ModelError, match="quantised already") as caught:
        quantized(result, photos)
    assert "--strip-qdq" in caught.value.fix


def test_a_preparation_that_changes_an_output_is_refused(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", net.op("Sum", output, output))

    def spoil(model: ir.Model) -> list[str]:
        model.graph[-1].replace_input_with(1, model.graph[0].outputs[0])
        return ["spoilt"]

    monkeypatch.setattr(preparing, "_brought", spoil)
    with pytest.raises(ProofError, match="preparing changed output"):
        quantized(path, photos)


def test_a_bias_stored_as_int32_becomes_float(tmp_path: Path, photos: Path) -> None:
    net = Net()
    scale, zero = net.weight(np.float32(0.01)), net.weight(np.int8(0))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", "images", scale, zero), scale, zero)
    weights = stored(net, net.kernel(WIDTH, 3, 3, 3))
    numbers = net.random.integers(-9, 9, WIDTH).astype(np.int32)
    bias = net.op("DequantizeLinear", net.weight(numbers), net.weight(np.float32(1e-3)))
    first = net.op("Conv", x, weights, bias, kernel_shape=[3, 3], pads=[1] * 4)
    output = net.conv(net.op("Relu", first), WIDTH, WIDTH)
    found = pipeline.inspect(quantized(net.save(tmp_path / "m.onnx", output), photos))
    assert found.shares == {"int8": 1.0}
    assert not found.errors


def test_own_steps_that_tensorrt_refuses_are_named_with_the_way_out(
    tmp_path: Path, photos: Path
) -> None:
    net = Net()
    scale, zero = net.weight(np.float32(0.01)), net.weight(np.uint8(128))
    x = net.op("DequantizeLinear", net.op("QuantizeLinear", "images", scale, zero), scale, zero)
    first = net.op("Relu", net.conv(x, 3, WIDTH, stored(net, net.kernel(WIDTH, 3, 3, 3))))
    path = net.save(tmp_path / "m.onnx", net.conv(first, WIDTH, WIDTH))
    with pytest.raises(ModelError, match=r"in a way that TensorRT refuses .* zero-point 128"):
        quantized(path, photos)
    assert pipeline.inspect(quantized(path, photos, strip_qdq=True)).shares == {"int8": 1.0}


def test_ops_on_integers_are_refused_by_name(tmp_path: Path, photos: Path) -> None:
    net = Net()
    levels = net.op("Cast", "images", to=TensorProto.UINT8)
    kernel = net.weight(net.random.integers(-9, 9, (WIDTH, 3, 3, 3)).astype(np.int8))
    output = net.op("Cast", net.op("ConvInteger", levels, kernel), to=TensorProto.FLOAT)
    path = net.save(tmp_path / "m.onnx", output)
    with pytest.raises(ModelError, match="quantised already, in ops on integers: ConvInteger"):
        quantized(path, photos)


LARGE = 1100
"""Rows of a square matrix with more than 2**20 elements."""


def filled(read_as: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f"""
        <ir_version: 9, opset_import: ["" : 19]>
        g (float[{LARGE},{LARGE}] x) => (float[{LARGE},{LARGE}] y)
        <int64[2] sizes = {{{LARGE}, {LARGE}}}>
        {{
            w = ConstantOfShape<value: tensor = float[1] {{0.5}}>(sizes)
            y = {read_as}
        }}""")


@pytest.mark.parametrize(("read_as", "folded"), [("MatMul(x, w)", True), ("Add(x, w)", False)])
def test_large_weights_of_one_number_become_weights_and_other_large_tensors_stay_computed(
    read_as: str, *, folded: bool
) -> None:
    model = ir.from_proto(filled(read_as))
    assert constant_shapes.PASS.apply(model) is folded
    found = model.graph.initializers.get("w")
    assert (found is not None and found.const_value is not None) is folded
    if found is not None and found.const_value is not None:
        assert np.array_equal(found.const_value.numpy(), np.full((LARGE, LARGE), 0.5, "f"))


def test_weights_of_one_number_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constant_shapes, "MOST", LARGE**2 - 1)
    assert not constant_shapes.PASS.apply(ir.from_proto(filled("MatMul(x, w)")))


def half_of(path: Path, *, keep_io: bool) -> Path:
    """The network as onnxconverter writes FP16: weights, and the tensors between."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    if keep_io:
        (given,), (result,) = model.graph.input, model.graph.output
        for value in (given, result):
            value.type.tensor_type.elem_type = TensorProto.FLOAT
        first, last = model.graph.node[0], model.graph.node[-1]
        first.input[0], last.output[0] = "half", "half_result"
        model.graph.node.insert(0, helper.make_node("Cast", [given.name], ["half"], to=10))
        model.graph.node.append(helper.make_node("Cast", ["half_result"], [result.name], to=1))
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return path


@pytest.mark.parametrize("keep_io", [False, True])
@pytest.mark.parametrize("float_type", [Precision.FP32, Precision.FP16])
def test_a_network_in_fp16_is_widened_and_quantised_as_its_float32_form_is(
    *, keep_io: bool, float_type: Precision, tmp_path: Path, photos: Path
) -> None:
    net, output = two_layers()
    single = net.save(tmp_path / "single.onnx", output)
    for tensor in (model := onnx.load(single)).graph.initializer:
        array = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(model, single)
    half = half_of(net.save(tmp_path / "half.onnx", output), keep_io=keep_io)
    found = quantized(half, photos, float_type=float_type)
    assert pipeline.inspect(found).shares == {"int8": 1.0}
    ours = onnx.load(found)
    theirs = onnx.load(quantized(single, photos, float_type=float_type))
    scales = [
        sorted(float(numpy_helper.to_array(w)) for w in m.graph.initializer if not w.dims)
        for m in (ours, theirs)
    ]
    assert scales[0] == pytest.approx(scales[1], rel=1e-2)
    assert ours.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_what_is_computed_otherwise_in_float32_is_refused(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, output = two_layers()
    path = half_of(net.save(tmp_path / "half.onnx", output), keep_io=True)

    def spoilt(proto: onnx.ModelProto) -> onnx.ModelProto:
        wide = widened(proto)
        tensor = next(t for t in wide.graph.initializer if t.data_type == TensorProto.FLOAT)
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
        return wide

    widened = float64.in_single
    monkeypatch.setattr(float64, "in_single", spoilt)
    with pytest.raises(ProofError, match="differs in float32 from what it is in FP16"):
        quantized(path, photos)


@pytest.mark.parametrize("both", [False, True])
def test_the_long_name_of_the_standard_ops_is_theirs_too(
    both: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    photos: Path,
) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output, opset=13)
    x = net.random.random((1, 3, SIDE, SIDE), np.float32)
    expected = outputs(path, x)
    model = onnx.load(path)
    for node in model.graph.node[:: 2 if both else 1]:
        node.domain = "ai.onnx"
    if both:
        model.opset_import.append(helper.make_opsetid("ai.onnx", 13))
    else:
        model.opset_import[0].domain = "ai.onnx"
    onnx.save(model, path)
    pipeline.fuse(path, tmp_path / "fused.onnx")
    np.testing.assert_allclose(outputs(tmp_path / "fused.onnx", x), expected, atol=1e-5)
    made = onnx.load(quantized(path, photos))
    assert [entry.domain for entry in made.opset_import] == [""]
