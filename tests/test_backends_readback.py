"""What engines say of themselves, read back: plan text, inspector JSON, and their proof."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.backends import _inspector, _layers, _naming, _plan_text
from deploykit.backends._layers import EngineLayer
from deploykit.errors import BackendError, ProofError
from deploykit.values import LayerPrecision

if TYPE_CHECKING:
    from pathlib import Path

QUANTIZED = """<ir_version: 9, opset_import: ["" : 19]>
g (float[1, 4, 8, 8] x, float s, int8 z, float[4, 4, 3, 3] w) => (float[1, 4, 4, 4] out) {
    xq = QuantizeLinear(x, s, z)
    xd = DequantizeLinear(xq, s, z)
    wq = QuantizeLinear(w, s, z)
    wd = DequantizeLinear(wq, s, z)
    [conv1] y = Conv<kernel_shape = [3, 3]>(xd, wd)
    [relu1] r = Relu(y)
    [conv2] out = Conv<kernel_shape = [3, 3]>(r, w)
}"""


def kernel(kind: str, dtypes: str, *nodes: str) -> EngineLayer:
    return EngineLayer(
        kind, kind, tuple(dtypes.split()), (), nodes, weighted=kind in _plan_text.WEIGHTED
    )


def program(version: int, statements: str, types: str = "", accelerators: str = "sm86 ") -> bytes:
    """Return the text of one program, between bytes that are no text."""
    return (
        b"\x00\xffNLYM\x00"
        + f"header {{\n  version = {version}\n  accelerators={{{accelerators}}}\n}}\n"
        f"descriptors {{\n{types}}}\nmain {{\n label bb1: \n{statements}}}\n"
        "shape_main {\n}\n".encode()
        + b"\x00\x01\x02"
    )


def tensor(name: str, dtype: str) -> str:
    return f'  tensor={{ alignment=128 dims={{ 1 }} name="{name}" offset=0 type={dtype} }}\n'


CONV = (
    '  corrltn={ name="c" output={"y" } input={"x" "w" } stream=0 '
    'layers="[ONNX Layer: conv1]\x1f[ONNX Layer: xd]\x1f[ONNX Layer: conv1]" }\n'
)
MOVE = (
    '  function={ name=__myl_Move args={ "x" "y" } input_args={ "x" } output_args={ "y" } '
    'layers="[ONNX Layer: relu1]" }\n'
)


def test_a_plan_s_kernels_carry_the_types_of_their_operands_and_their_onnx_nodes() -> None:
    types = tensor("x", "int8") + tensor("w", "int8") + tensor("y", "float")
    conv, move = _plan_text.kernels(program(5, CONV + MOVE, types))
    assert conv == EngineLayer(
        "corrltn", "c", ("int8", "int8"), ("float",), ("conv1", "xd"), weighted=True
    )
    assert conv.precision == "int8"
    assert (move.kind, move.inputs, move.outputs) == ("function", ("int8",), ("float",))
    assert not move.weighted


def test_each_program_of_a_plan_has_its_own_tensors() -> None:
    plan = program(5, CONV, tensor("x", "int8") + tensor("w", "int8"))
    plan += program(5, CONV, tensor("x", "half") + tensor("w", "half"), "sm75 sm86 ")
    assert [k.precision for k in _plan_text.kernels(plan)] == ["int8", "fp16"]
    assert _plan_text.targets(plan) == ("86", "75")


def test_a_fused_product_is_described_by_its_nested_program_alone() -> None:
    outer = (
        '  runtime_fusion={ name=f input_args={ "a" "b" } output_args={ "y" } '
        'layers="[ONNX Layer: fc]" }\n'
    )
    inner = '  fully_connected={ name="fc" input={"p" "q" } layers="[ONNX Layer: fc]" }\n'
    types = tensor("a", "float") + tensor("b", "float")
    alone = program(5, outer, types)
    both = alone + program(4, inner, tensor("p", "int8") + tensor("q", "int8"), "*")
    assert [k.kind for k in _plan_text.kernels(alone)] == ["runtime_fusion"]
    assert [(k.kind, k.precision) for k in _plan_text.kernels(both)] == [
        ("fully_connected", "int8")
    ]


def test_a_version_of_the_text_that_was_never_seen_yields_nothing() -> None:
    types = tensor("x", "int8") + tensor("w", "int8")
    assert _plan_text.kernels(program(6, CONV, types)) == ()


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_can_be_read_as_a_plan_without_failing(noise: bytes) -> None:
    whole = program(5, CONV, tensor("x", "int8"))
    for plan in (noise, whole + noise, whole[: len(noise)] + noise + whole):
        _plan_text.kernels(plan)
        _plan_text.targets(plan)


@pytest.mark.parametrize(
    ("types", "precision"),
    [
        ("int8 int8 float", "int8"),
        ("half half float", "fp16"),
        ("float float", "fp32"),
        ("int8 half", "fp16"),
        ("float int8", "fp32"),
        ("int8 fp8", "unknown"),
        ("int8 ?", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_weighted_kernel_is_int8_only_where_activation_and_weight_both_are(
    types: str, precision: str
) -> None:
    assert kernel("corrltn", types, "conv1").precision == precision


def test_read_back_gives_each_weighted_node_once_with_its_macs_and_then_the_rest() -> None:
    model = ir.from_onnx_text(QUANTIZED)
    kernels = [
        kernel("function", "float", "conv1", "xq"),
        kernel("corrltn", "int8 int8", "conv1", "xd", "wd"),
        kernel("function", "float", "relu1", "conv1"),
        kernel("corrltn", "float float", "conv2"),
    ]
    layers = _layers.read_back(kernels, model).layers
    assert layers[:2] == (
        LayerPrecision("conv1", "Conv", "int8", 6 * 6 * 4 * 36),
        LayerPrecision("conv2", "Conv", "fp32", 4 * 4 * 4 * 36),
    )
    assert [(n.name, n.op, n.macs) for n in layers[2:]] == [
        ("conv1 + xq", "QuantizeLinear", 0),
        ("relu1 + conv1", "Relu", 0),
    ]


def test_a_kernel_that_only_rescales_for_a_node_does_not_hide_what_computes_it() -> None:
    model = ir.from_onnx_text(QUANTIZED)
    kernels = [
        kernel("corrltn", "int8 int8", "conv1", "xd", "wd"),
        kernel("corrltn", "float float", "conv2"),
        kernel("function", "float float", "conv1"),
    ]
    found = _layers.read_back(kernels, model)
    assert [(n.name, n.precision) for n in found.asked] == [("conv1", "int8")]
    assert not _layers.prove(found, "builder")


def test_pointwise_kernels_tell_of_a_product_that_was_not_to_be_int8_and_of_no_other() -> None:
    model = ir.from_onnx_text(QUANTIZED)
    kernels = [kernel("function", "float ?", "conv1"), kernel("function", "half ?", "conv2")]
    found = _layers.read_back(kernels, model)
    assert [n.precision for n in found.nodes] == ["unknown", "fp16"]


def test_two_nodes_of_one_name_are_told_apart() -> None:
    model = ir.from_onnx_text(QUANTIZED.replace("[conv2]", "[conv1]"))
    built, own = _naming.as_built(model)
    kernels = [kernel("corrltn", "int8 int8", "conv1"), kernel("corrltn", "half half", "conv1_2")]
    found = _layers.read_back(kernels, built, own)
    assert [(n.name, n.precision) for n in found.nodes] == [("conv1", "int8"), ("conv1", "fp16")]
    assert not _layers.prove(found, "builder")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=8), max_size=6))
def test_whatever_nodes_are_called_what_is_built_has_plain_names_of_its_own(
    names: list[str],
) -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    nodes = [ir.node("Relu", [x], name=name) for name in names]
    outputs = [node.outputs[0] for node in nodes]
    for value, name in zip(outputs, names, strict=True):
        value.name = f"{name}.{len(name)}.{outputs.index(value)}"
    graph = ir.Graph([x], [], nodes=nodes, opset_imports={"": 19})
    built, own = _naming.as_built(ir.Model(graph, ir_version=9))
    found = [str(_naming.name_of(node)) for node in built.graph]
    assert len(set(found)) == len(found)
    assert not any(set(name) & set(' "\\{}\n\x1e\x1f') for name in found)
    assert [own.get(name, name) for name in found] == [
        name or f".0.{place}" for place, name in enumerate(names)
    ]


def test_a_node_that_several_kernels_compute_has_the_widest_precision() -> None:
    model = ir.from_onnx_text(QUANTIZED)
    kernels = [kernel("corrltn", "int8 int8", "conv1"), kernel("corrltn", "half half", "conv1")]
    assert _layers.read_back(kernels, model).nodes[0].precision == "fp16"


def test_a_kernel_that_computes_several_nodes_counts_for_each() -> None:
    model = ir.from_onnx_text(QUANTIZED)
    found = _layers.read_back([kernel("corrltn", "int8 int8", "conv1", "conv2")], model)
    assert [n.precision for n in found.layers] == ["int8", "int8"]


def test_a_node_without_a_name_is_known_by_its_output() -> None:
    model = ir.from_onnx_text(QUANTIZED.replace("[conv2] ", ""))
    found = _layers.read_back([kernel("corrltn", "half half", "node_of_out")], model)
    assert {n.name: n.precision for n in found.nodes} == {"conv1": "unknown", "out": "fp16"}


def test_an_open_height_leaves_the_precision_known_and_the_macs_not() -> None:
    model = ir.from_onnx_text(QUANTIZED.replace("1, 4, 8, 8", "1, 4, h, 8"))
    found = _layers.read_back([kernel("corrltn", "int8 int8", "conv1")], model)
    first = found.nodes[0]
    assert (first.name, first.precision, first.macs) == ("conv1", "int8", 0)
    assert first.note.startswith("the shape of 'y' is [1,4,")


def test_the_proof_fails_where_a_quantized_layer_runs_in_float() -> None:
    model = ir.from_onnx_text(QUANTIZED)
    found = _layers.read_back([kernel("corrltn", "half half", "conv1")], model)
    with pytest.raises(
        ProofError, match=r"builder runs 1 of 1 quantized layers in float: conv1 \(Conv, fp16\)"
    ) as caught:
        _layers.prove(found, "builder")
    assert caught.value.exit_code == 1


def test_what_cannot_be_read_back_is_neither_proven_nor_disproven() -> None:
    model = ir.from_onnx_text(QUANTIZED)
    note = _layers.prove(_layers.read_back([], model), "builder")
    assert note == "precision not proven: 2 layers could not be read back: conv1, conv2"


def test_the_proof_passes_where_int8_is_int8_and_float_was_not_asked_to_be() -> None:
    model = ir.from_onnx_text(QUANTIZED)
    kernels = [kernel("corrltn", "int8 int8", "conv1"), kernel("corrltn", "float float", "conv2")]
    assert not _layers.prove(_layers.read_back(kernels, model), "builder")


def test_many_floats_are_named_up_to_a_few() -> None:
    lines = "\n".join(
        f"[c{i}] y{i} = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(xd, wd)" for i in range(12)
    )
    text = QUANTIZED.replace("[relu1]", lines + "\n[relu1]")
    model = ir.from_onnx_text(text)
    kernels = [kernel("corrltn", "float float", f"c{i}") for i in range(12)]
    with pytest.raises(ProofError, match=r"12 of 13 .*c7 \(Conv, fp32\) and 4 more"):
        _layers.prove(_layers.read_back(kernels, model), "builder")


def test_an_engine_without_its_model_beside_it_speaks_for_itself(tmp_path: Path) -> None:
    assert _layers.origin(tmp_path / "none.engine") is None


def io(name: str, **fields: Any) -> dict[str, Any]:
    return {"Name": name, "Dimensions": [1, 64, 8, 8], "Location": "Device", **fields}


INT8 = "Thirty-two wide channel vectorized row major Int8 format"
HALF = "Channel major FP16 format where channel % 8 == 0"
FLOAT = "Row major linear FP32"
METADATA = "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]"


def old(*formats: str) -> list[dict[str, Any]]:
    """Return tensors as TensorRT up to 10 writes them."""
    return [io(f"t{i}", **{"Format/Datatype": text}) for i, text in enumerate(formats)]


def new(*formats: tuple[str, str]) -> list[dict[str, Any]]:
    """Return tensors as TensorRT 11 writes them."""
    return [io(f"t{i}", Format=f, Datatype=d) for i, (f, d) in enumerate(formats)]


def convolution(inputs: list[dict[str, Any]], weights: str | None) -> dict[str, Any]:
    return {
        "Name": "conv1 + relu1",
        "LayerType": "CaskConvolution",
        "Inputs": inputs,
        "Outputs": old(INT8),
        "ParameterType": "Convolution",
        "Metadata": METADATA,
        **({} if weights is None else {"Weights": {"Type": weights, "Count": 36864}}),
    }


@pytest.mark.parametrize(
    ("inputs", "weights", "precision"),
    [
        (old(INT8), "Int8", "int8"),
        (old(INT8, FLOAT), "Int8", "int8"),
        (old(HALF), "Half", "fp16"),
        (old(FLOAT), "Float", "fp32"),
        (old(INT8), None, "int8"),
        (old("N/A due to dynamic shapes"), "Int8", "unknown"),
        (new(("kCHW32", "Int8")), "Int8", "int8"),
        (new(("kHWC8", "Half")), "Half", "fp16"),
        (new(("kLINEAR", "Float")), "Float", "fp32"),
        (new(("kLINEAR", "FP8")), "FP8", "unknown"),
    ],
)
def test_both_forms_of_the_inspector_s_json_give_a_convolution_s_precision(
    inputs: list[dict[str, Any]], weights: str | None, precision: str
) -> None:
    (layer,) = _inspector.layers(json.dumps({"Layers": [convolution(inputs, weights)]}))
    assert layer.weighted
    assert layer.nodes == ("conv1", "relu1")
    assert layer.precision == precision


@pytest.mark.parametrize(
    ("kind", "name", "weighted"),
    [
        ("CaskGemmConvolution", "conv1", True),
        ("CaskDeconvolutionV2", "conv1", True),
        ("MatrixMultiply", "fc", True),
        ("gemm", "__myl_Fc", True),
        ("Reformat", "Reformatting CopyNode for Input Tensor 0 to conv1", False),
        ("PointWiseV2", "PWN(sigmoid, mul)", False),
        ("kgen", "__myl_Convert", False),
        ("Convert", "cast", False),
    ],
)
def test_layers_that_prepare_data_are_told_from_those_that_compute(
    kind: str, name: str, *, weighted: bool
) -> None:
    found = {"Name": name, "LayerType": kind, "Inputs": old(HALF), "Outputs": old(HALF)}
    (layer,) = _inspector.layers(json.dumps({"Layers": [found], "Bindings": ["a"]}))
    assert layer.weighted is weighted


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("w + QuantizeLinear_3 + Conv_4", ("w", "QuantizeLinear_3", "Conv_4")),
        ("q_proj || k_proj || v_proj", ("q_proj", "k_proj", "v_proj")),
        ("PWN(PWN(sig), mul)", ("sig", "mul")),
        ("{ForeignNode[a...b]}", ("a", "b")),
    ],
)
def test_without_metadata_the_nodes_are_in_the_layer_s_name(
    name: str, nodes: tuple[str, ...]
) -> None:
    (layer,) = _inspector.layers(json.dumps({"Layers": [{"Name": name}], "I/O Tensors": []}))
    assert layer.nodes == nodes


def test_an_engine_with_layer_names_alone_has_unknown_precisions() -> None:
    (layer,) = _inspector.layers(json.dumps({"Layers": ["conv1 + relu1"]}))
    assert layer.nodes == ("conv1", "relu1")
    assert layer.precision == "unknown"


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"Layers": 3}', '{"Layers": [{}]}'])
def test_json_of_another_form_is_one_error(text: str) -> None:
    with pytest.raises(BackendError, match="unknown form"):
        _inspector.layers(text)


@pytest.mark.parametrize("name", ['say "hi"', 'a", "b', "back\\slash", "two\nlines", "tab\tbed"])
@pytest.mark.parametrize("escaped", [True, False])
def test_the_inspector_s_json_is_read_whatever_its_names_hold(name: str, *, escaped: bool) -> None:
    if name == 'a", "b' and not escaped:
        pytest.skip("it is two names then")
    layer = {**convolution(old(INT8), "Int8"), "Metadata": f"[ONNX Layer: {name}]"}
    text = json.dumps({"Layers": [layer]}, indent=1)
    if not escaped:
        text = text.replace(json.dumps(name)[1:-1], name)
    (found,) = _inspector.layers(text)
    assert (found.nodes, found.precision) == ((name,), "int8")


@pytest.mark.parametrize(
    "plan",
    [
        b"header {\n  version = 5\n" * 100_000,
        b"header {\n  version = \n" * 100_000 + b"\ndescriptors {\nmain {\n}\n",
        b"header {\n  version = 5\n\ndescriptors {" + b'tensor={ name="' * 100_000 + b"\nmain {\n"
        b'  a={ layers="' + b'" input={"' * 100_000 + b"\n}\n",
    ],
)
def test_a_hostile_program_text_is_read_in_a_moment(plan: bytes) -> None:
    started = time.perf_counter()
    assert _plan_text.kernels(plan) == ()
    assert _plan_text.targets(plan) == ()
    assert time.perf_counter() - started < 10
