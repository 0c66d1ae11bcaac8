"""Custom ops in PyTorch and ONNX, shown on a toy op with two inputs or more."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from deploykit import ops
from deploykit.backends import overloads
from deploykit.errors import ModelError, OptionError
from deploykit.files import extensions
from deploykit.ops import registry
from deploykit.ops.plugin import OPS, Attribute, Call, Input, Output, Plugin

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploykit.ops.tape import Tape


def reference(  # noqa: PLR0913 - two inputs and the toy op's four attributes
    boxes: torch.Tensor,
    features: list[torch.Tensor],
    *,
    gain: int,
    bias: float,
    mode: str,
    steps: Sequence[float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return boxes * gain + bias, and the weighted sums of the features' channels."""
    sums = [f.sum(dim=(2, 3)) * s for f, s in zip(features, steps, strict=True)]
    return boxes * gain + bias, torch.stack(sums).sum(0) * (2 if mode == "double" else 1)


def fake(
    boxes: torch.Tensor, features: list[torch.Tensor], **_: object
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tensors of the right shape."""
    return boxes.new_empty(boxes.shape), features[0].new_empty(features[0].shape[:2])


def body(op: Tape, call: Call) -> Sequence[ir.Value]:
    """Return the same in ONNX."""
    boxes, *features = call.inputs
    gain, bias = float(call.attributes["gain"]), call.attributes["bias"]
    double = 2.0 if call.attributes["mode"] == "double" else 1.0
    sums = [
        op.Mul(op.ReduceSum(f, [2, 3], keepdims=0), step * double)
        for f, step in zip(features, call.attributes["steps"], strict=True)
    ]
    return op.Add(op.Mul(boxes, gain), bias), op.Sum(*sums)


def levels_match(attributes: Any, sizes: Sequence[tuple[int, ...]]) -> str:
    """Return what is wrong between the number of steps and of features."""
    steps, levels = len(attributes["steps"]), len(sizes) - 1
    return "" if steps == levels else f"{steps} steps for {levels} levels"


TOY = Plugin(
    name="DKToy",
    version="1",
    inputs=(Input("boxes", "float32"), Input("features...")),
    outputs=(Output("scaled", "float32"), Output("sums", "features")),
    attributes=(
        Attribute("gain", 2, "1 to 9", lambda v: 1 <= v <= 9),
        Attribute("bias", 0.0, "0 or more", lambda v: v >= 0),
        Attribute("mode", "single", "single or double", lambda v: v in ("single", "double")),
        Attribute("steps", (1.0, 1.0), "numbers", lambda v: len(v) > 0),
    ),
    reference=reference,
    fake=fake,
    runtime_body=body,
    portable_body=body,
    source="toy.cu",
    check=levels_match,
)


class Net(torch.nn.Module):
    """Two calls of the toy op with different attributes, and one that repeats the first."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all results."""
        toy = ops.torch_op("toy")
        boxes = x.mean(dim=(2, 3)).reshape(-1, 1, 3)
        levels = [x, x[:, :, ::2, ::2]]
        first = toy(boxes, levels, gain=3, steps=[0.5, 0.25])
        second = toy(boxes, levels, gain=4, mode="double", bias=1)
        third = toy(first[0], levels, gain=3, steps=(0.5, 0.25))
        return (*first, *second, *third)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(extensions.Kind, "load", lambda *_: TOY)
    monkeypatch.setattr(extensions.Kind, "shipped", lambda _: {"toy": Path("toy.py")})
    monkeypatch.setattr(registry, "_called", {})
    ops.shipped.cache_clear()
    yield
    ops.shipped.cache_clear()


@pytest.fixture
def traced() -> ir.Model:
    """The network as the exporter writes it, without functions."""
    model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(traced_once()))
    return model


@cache
def traced_once() -> bytes:
    """Return the file of the network, as the exporter writes it."""
    Net()(torch.zeros(1, 3, 8, 8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Net().eval(),
            (torch.zeros(2, 3, 8, 8),),
            dynamo=True,
            opset_version=19,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table=ops.translations(),
            verbose=False,
        )
    assert program is not None
    data: bytes = ir.to_proto(program.model).SerializeToString()
    return data


def run(model: ir.Model, images: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Return the outputs in ONNX Runtime."""
    data = ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    found: list[np.ndarray[Any, Any]] = session.run(None, {str(model.graph.inputs[0].name): images})
    return found


@pytest.mark.parametrize("form", [ops.attach, ops.inline])
@pytest.mark.parametrize("batch", [1, 3])
def test_both_written_forms_compute_what_torch_computes(
    traced: ir.Model, form: Any, batch: int
) -> None:
    form(traced)
    images = np.random.default_rng(0).random((batch, 3, 8, 8), np.float32)
    expected = Net()(torch.from_numpy(images))
    for found, wanted in zip(run(traced, images), expected, strict=True):
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)


def test_a_traced_node_says_where_tensorrt_finds_its_plugin(traced: ir.Model) -> None:
    assert ops.counts(traced) == {"DKToy": 3}
    for node, plugin in ops.calls(traced):
        assert plugin.name == TOY.name
        assert node.attributes["plugin_namespace"].as_string() == "deploykit"
        assert node.attributes["plugin_version"].as_string() == "1"
        assert [v.name for v in node.inputs if v is not None].count(node.inputs[0].name) == 1  # type: ignore[union-attr]


def test_equal_calls_share_one_function_and_others_have_an_overload(traced: ir.Model) -> None:
    ops.attach(traced)
    assert sorted(traced.functions) == [("deploykit", "DKToy", ""), ("deploykit", "DKToy", "1")]
    ops.attach(traced)
    assert len(traced.functions) == 2
    assert traced.ir_version >= 10
    ops.detach(traced)
    assert not traced.functions
    assert {node.overload for node, _ in ops.calls(traced)} == {""}


def test_a_runtime_that_takes_functions_of_one_name_for_each_other_gets_none(
    traced: ir.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ops.attach(traced)
    data = ir.to_proto(traced).SerializeToString()
    images = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    expected = run(traced, images)
    assert overloads.runnable(data, traced) is data
    (note,) = overloads.notes(traced)
    assert note.startswith("DKToy of several settings: ONNX Runtime before 1.27")
    monkeypatch.setattr(onnxruntime, "__version__", "1.26.0")
    plain = onnx.ModelProto.FromString(overloads.runnable(data, traced))
    assert not plain.functions
    for found, wanted in zip(run(ir.from_proto(plain), images), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    ops.detach(traced)
    assert overloads.runnable(data, traced) is data
    assert not overloads.notes(traced)


def test_inlining_leaves_no_trace_of_the_ops_and_keeps_the_outputs_names(traced: ir.Model) -> None:
    names = [value.name for value in traced.graph.outputs]
    ops.attach(traced)
    ops.inline(traced)
    assert not ops.counts(traced)
    assert not traced.functions
    assert "deploykit" not in traced.graph.opset_imports
    assert [value.name for value in traced.graph.outputs] == names


def test_a_model_without_our_ops_stays_as_it_is() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
    node = ir.node("Relu", [x], name="relu")
    graph = ir.Graph([x], node.outputs, nodes=[node], opset_imports={"": 19})
    model = ir.Model(graph, ir_version=9)
    for form in (ops.attach, ops.inline, ops.detach):
        form(model)
    assert (len(model.graph), model.ir_version, list(model.graph.opset_imports)) == (1, 9, [""])


def spoilt(traced: ir.Model, **attributes: Any) -> ir.Model:
    """Return the model with attributes of its first op changed."""
    node, _ = next(ops.calls(traced))
    for name, value in attributes.items():
        node.attributes[name] = ir.convenience.convert_attribute(name, value)
    return traced


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"gain": 12}, r"gain is 12\nexpected: 1 to 9"),
        ({"gain": "2"}, "gain is '2'"),
        ({"gain": 2.5}, "gain is 2.5"),
        ({"bias": -1.0}, "bias is -1.0\nexpected: 0 or more"),
        ({"bias": float("nan")}, "bias is nan"),
        ({"mode": "triple"}, "mode is 'triple'"),
        ({"steps": [1.0]}, "1 steps for 2 levels"),
        ({"colour": 1}, "has no attribute 'colour'\nexpected: gain, bias, mode, steps"),
    ],
)
@pytest.mark.parametrize("form", [ops.attach, ops.inline])
def test_a_node_that_the_op_does_not_take_is_named(
    traced: ir.Model, form: Any, attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        form(spoilt(traced, **attributes))
    assert "DKToy" in str(caught.value)


def test_an_op_that_no_plugin_defines_is_an_error(traced: ir.Model) -> None:
    node, _ = next(ops.calls(traced))
    node.op_type = "DKNothing"
    with pytest.raises(ModelError, match=r"deploykit::DKNothing\nexpected: one of DKToy"):
        ops.attach(traced)


def test_sizes_that_are_open_are_an_error(traced: ir.Model) -> None:
    node, _ = next(ops.calls(traced))
    assert node.inputs[1] is not None
    node.inputs[1].shape = ir.Shape(["batch", 3, "height", "width"])
    with pytest.raises(ModelError, match=r"unknown type or shape(.|\n)*--input-size HxW"):
        ops.attach(traced)


def test_too_few_inputs_are_an_error(traced: ir.Model) -> None:
    node, _ = next(ops.calls(traced))
    node.resize_inputs(1)
    with pytest.raises(ModelError, match="has 1 inputs"):
        ops.attach(traced)


@pytest.mark.parametrize("attributes", [{"gain": 0}, {"mode": "x"}, {"steps": []}, {"other": 1}])
def test_torch_refuses_attributes_that_are_not_valid(attributes: dict[str, Any]) -> None:
    toy = ops.torch_op("toy")
    with pytest.raises(OptionError, match="DKToy"):
        toy(torch.zeros(1, 1, 4), [torch.zeros(1, 3, 2, 2)], **attributes)


def test_every_shipped_op_keeps_the_form_that_parsers_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    ops.shipped.cache_clear()
    for name, plugin in ops.shipped().items():
        assert name.startswith("DK")
        assert not plugin.source or OPS.folder().joinpath(plugin.source).is_file()
        assert plugin.op in OPS.shipped()
