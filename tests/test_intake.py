"""Files of other exporters come in: odd inputs are closed, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from foreign_nets import SIDE, WIDTH, Net, two_layers
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from deploykit import BenchOptions, cli, pipeline
from deploykit.backends import ir_versions
from deploykit.data import feeding
from deploykit.data.preprocess import Preprocess
from deploykit.errors import InputError, ModelError, OptionError
from deploykit.files import onnxfile
from deploykit.pipeline import intake
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.recipes import opened
from deploykit.recipes.describing import Description
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

FAST = BenchOptions(warmup_seconds=0, duration_seconds=0.01, min_iterations=2)
RAW = Description(preprocess="unit")


def run(path: Path, images: Any) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def quantized(path: Path, photos: Path, about: Description = RAW) -> Path:
    output = path.with_suffix(".int8.onnx")
    pipeline.quantize(path, output, QuantizeOptions(source=f"folder:{photos}", about=about))
    return output


@pytest.mark.parametrize("shape", [(1, 3, SIDE, SIDE), ("n", 3, SIDE, SIDE)])
def test_a_file_with_nothing_odd_is_taken_as_it_is(tmp_path: Path, shape: Any) -> None:
    net, output = two_layers()
    model = opened.read(net.save(tmp_path / "m.onnx", output, shape))
    assert intake.taken(model) is model


def test_weights_that_are_inputs_too_become_constants(tmp_path: Path) -> None:
    net = Net()
    weights = [net.weight(net.random.uniform(0.5, 1.5, WIDTH).astype("f")) for _ in range(4)]
    norm = net.op("BatchNormalization", net.conv("images", 3, WIDTH), *weights)
    output = net.conv(net.op("Relu", norm), WIDTH, WIDTH)
    inputs = [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in net.weights]
    path = net.save(tmp_path / "m.onnx", output, opset=13, ir_version=3, inputs=inputs)
    made = pipeline.fuse(path, tmp_path / "fused.onnx")
    fused = onnx.load(tmp_path / "fused.onnx")
    assert [node.op_type for node in fused.graph.node] == ["Conv", "Relu", "Conv"]
    assert [value.name for value in fused.graph.input] == ["images"]
    assert "6 weights were inputs too: they are constants" in made.notes


@pytest.mark.skipif(ir_versions.newest() >= onnx.IR_VERSION, reason="the runtime is as new")
def test_a_file_of_a_newer_format_than_the_runtimes_is_taken(tmp_path: Path, photos: Path) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output, (1, 3, SIDE, SIDE), ir_version=onnx.IR_VERSION)
    with pytest.raises(Exception, match="IR version"):
        run(path, None)
    assert any(f"taken as {ir_versions.newest()}" in note for note in intake.read(path).notes)
    made = quantized(path, photos)
    assert run(made, np.zeros((1, 3, SIDE, SIDE), np.float32)).shape[0] == 1
    pipeline.bench([path, made], pipeline.BenchPlan(FAST))


@pytest.mark.parametrize(
    "shape",
    [
        *((-1, 3, SIDE, SIDE), (0, 3, SIDE, SIDE), ("n", 3, "h", "w")),
        *((-1, 3, -1, -1), (0, 3, 0, 0)),
    ],
)
def test_open_sizes_however_they_are_written_take_what_the_user_says(
    tmp_path: Path, photos: Path, shape: Any
) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output, shape)
    about = Description(preprocess="unit", input_size=(SIDE, SIDE))
    result = quantized(path, photos, about)
    (spec,), (out,) = onnxfile.interface(opened.read(result).graph)
    assert spec.shape[1:] == (3, SIDE, SIDE)
    assert isinstance(spec.shape[0], str)
    assert out.shape[1:] == (WIDTH, SIDE, SIDE)


@pytest.mark.parametrize("opset", [21, 22])
@pytest.mark.parametrize(("axis", "block"), [(0, 3), (1, 4)])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_weights_in_blocks_become_float_and_are_quantised_anew(  # noqa: PLR0913, PLR0917
    tmp_path: Path, photos: Path, opset: int, axis: int, block: int, kind: Any
) -> None:
    net = Net()
    least = 0 if kind is np.uint8 else -128
    levels = net.random.integers(least, least + 255, (WIDTH, WIDTH, 3, 3)).astype(kind)
    shape = tuple(-(-n // block) if i == axis else n for i, n in enumerate(levels.shape))
    steps = net.weight(net.random.uniform(0.5e-3, 1e-3, shape).astype(np.float32))
    zeros = net.weight(np.full(shape, least + 128, kind))
    made = net.op("DequantizeLinear", net.weight(levels), steps, zeros, axis=axis, block_size=block)
    first = net.op("Relu", net.conv("images", 3, WIDTH))
    path = net.save(
        tmp_path / "m.onnx", net.conv(first, WIDTH, WIDTH, made), opset=opset, ir_version=10
    )
    x = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    (exact,) = ReferenceEvaluator(str(path)).run(None, {"images": x})
    found = run(quantized(path, photos), x)
    assert np.square(found - exact).sum() < 1e-2 * np.square(exact).sum()


def test_a_fixed_batch_is_what_is_measured_where_none_is_asked_for(tmp_path: Path) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output, (3, 3, SIDE, SIDE))
    (found,) = pipeline.bench([path], pipeline.BenchPlan(FAST))
    assert found.batch_size == 3
    with pytest.raises(OptionError, match=r"(?s)holds 3 images.*--batch-sizes 3"):
        pipeline.bench([path], pipeline.BenchPlan(FAST, batch_sizes=(1,)))


def test_every_verb_takes_the_size_of_the_card(tmp_path: Path) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", net.op("Relu", output), ("n", 3, "h", "w"))
    card = tmp_path / "card.onnx"
    about = Description(task="detection", preprocess="unit", input_size=(SIDE, 64))
    model = intake.read(path, about)
    graph = model.copy()
    graph.graph.inputs[0].shape = ir.Shape(["n", 3, "h", "w"])
    opened.made(graph, card).write()
    assert pipeline.inspect(card).layers[0].macs == 3 * 9 * WIDTH * SIDE * 64
    pipeline.fuse(card, tmp_path / "fused.onnx")
    pipeline.cast(card, tmp_path / "half.onnx")
    (found,) = pipeline.bench([card], pipeline.BenchPlan(FAST))
    assert any("32x64, which the file leaves open" in text for text in found.warnings)


@pytest.mark.parametrize("verb", ["fuse", "cast"])
def test_open_sizes_are_closed_at_the_command_line(verb: str, tmp_path: Path) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", net.op("Relu", output), ("n", 3, "h", "w"))
    result = tmp_path / "made.onnx"
    size = ["--input-size", f"{SIDE}x64"]
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, str(path), "-o", str(result), *size])
    assert ended.value.code == 0
    (spec,), _ = onnxfile.interface(opened.read(result).graph)
    assert spec.shape[1:] == (3, SIDE, 64)


def test_a_size_that_the_model_does_not_have_is_refused(tmp_path: Path) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output)
    about = Description(preprocess="unit", input_size=(64, 64))
    with pytest.raises(OptionError, match=r"images of 64x64 and 3 channels for the input images"):
        intake.read(path, about)


@pytest.mark.parametrize("batch", [2, 4])
def test_a_fixed_batch_is_calibrated_on_any_number_of_images(
    tmp_path: Path, photos: Path, batch: int
) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output, (batch, 3, SIDE, SIDE))
    for image in sorted(photos.iterdir())[3:]:
        (tmp_path / "few").mkdir(exist_ok=True)
        (tmp_path / "few" / image.name).write_bytes(image.read_bytes())
    result = quantized(path, tmp_path / "few")
    assert len(run(result, np.zeros((batch, 3, SIDE, SIDE), np.float32))) == batch


def test_channels_last_and_bytes_give_what_the_plain_model_gives(
    tmp_path: Path, photos: Path
) -> None:
    plain, output = two_layers()
    expected = quantized(plain.save(tmp_path / "plain.onnx", output), photos, BYTES)
    odd = Net()
    cast = odd.op("Cast", "images", to=TensorProto.FLOAT)
    first = odd.op("Relu", odd.conv(odd.op("Transpose", cast, perm=[0, 3, 1, 2]), 3, WIDTH))
    output = odd.conv(first, WIDTH, WIDTH)
    shape = (1, SIDE, SIDE, 3)
    path = odd.save(tmp_path / "odd.onnx", output, shape, dtype=TensorProto.UINT8)
    found = quantized(path, photos, BYTES)
    image = np.asarray(Image.open(next(photos.iterdir())).resize((SIDE, SIDE)))
    theirs = run(expected, image.transpose(2, 0, 1)[None].astype(np.float32))
    np.testing.assert_allclose(run(found, image[None]), theirs, atol=1e-3 * np.abs(theirs).max())


BYTES = Description(preprocess="raw")


def test_grey_images_are_pillows(photos: Path) -> None:
    image = Image.open(next(photos.iterdir()))
    made, _ = Preprocess(image.size[::-1], "stretch", "GREY", scale=1.0)(np.asarray(image))
    assert made.shape == (1, *image.size[::-1])
    assert np.abs(made[0] - np.asarray(image.convert("L"), np.float32)).max() <= 1


def test_a_grey_model_is_known_by_its_input(tmp_path: Path, photos: Path) -> None:
    net, output = two_layers(planes=1)
    path = net.save(tmp_path / "m.onnx", output, ("n", 1, SIDE, SIDE))
    card = opened.read(quantized(path, photos)).card
    assert card is not None
    assert card.preprocess.channels == "GREY"
    with pytest.raises(OptionError, match="its means are of three colours"):
        intake.read(path, Description(preprocess="imagenet"))


@pytest.mark.parametrize("given", ["number", "file"])
def test_inputs_beside_the_images_become_constants(
    tmp_path: Path, photos: Path, given: str
) -> None:
    net, output = two_layers()
    scale = helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1, 1])
    factor = net.op("Reshape", "factor", net.weight(np.ones(4, "i8")))
    path = net.save(tmp_path / "m.onnx", net.op("Mul", output, factor), inputs=[scale])
    np.save(tmp_path / "two.npy", np.full((1, 1), 2.0))
    value = 2.0 if given == "number" else tmp_path / "two.npy"
    model = intake.read(path, Description(preprocess="unit", inputs={"factor": value}))
    assert [spec.name for spec in onnxfile.interface(model.graph)[0]] == ["images"]
    x = net.random.random((1, 3, SIDE, SIDE), np.float32)
    theirs = ort.InferenceSession(path).run(None, {"images": x, "factor": [[2.0]]})[0]
    ours = ort.InferenceSession(model.data).run(None, {"images": x})[0]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    about = Description(preprocess="unit", inputs={"factor": value})
    small = quantized(path, photos, about)
    for pair in ((small, path), (path, small)):  # the INT8 file has the constant already
        options = pipeline.VerifyOptions(atol=9, rtol=9, count=1, about=about)
        (*_, agreement) = pipeline.verify(*pair, options)
        assert agreement.passed


def test_an_input_that_no_file_has_is_named(tmp_path: Path) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output)
    wrong = Description(preprocess="unit", inputs={"factr": 1.0})
    with pytest.raises(OptionError, match="unknown input 'factr'"):
        pipeline.verify(path, path, pipeline.VerifyOptions(about=wrong))


def test_what_to_do_about_further_inputs_is_said(tmp_path: Path, photos: Path) -> None:
    net, output = two_layers()
    scale = helper.make_tensor_value_info("factor", TensorProto.FLOAT, [1, 1, 1, 1])
    path = net.save(tmp_path / "m.onnx", net.op("Mul", output, "factor"), inputs=[scale])
    with pytest.raises(ModelError) as caught:
        quantized(path, photos)
    assert "--input NAME=NUMBER" in caught.value.fix
    assert "--calib-data DIR" in caught.value.fix
    with pytest.raises(ModelError) as caught:
        pipeline.load(path, pipeline.PredictOptions(about=Description(preprocess="unit")))
    assert "--input NAME=NUMBER" in caught.value.fix


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ({"factr": 1.0}, "unknown input 'factr'"),
        ({"extra": np.zeros(3)}, r"float64\[3\] for the input 'extra'"),
        ({"extra": b"\x80\x04."}, "is no file of arrays of numbers"),
        ({"extra": None}, r"holds object\[\] in"),
    ],
)
def test_an_input_that_does_not_fit_is_refused(tmp_path: Path, inputs: Any, says: str) -> None:
    net, output = two_layers()
    extra = helper.make_tensor_value_info("extra", TensorProto.FLOAT, [2])
    path = net.save(tmp_path / "m.onnx", output, inputs=[extra])
    for name, value in inputs.items():
        if isinstance(value, float):
            continue
        inputs = {name: tmp_path / "x.npy"}
        if isinstance(value, bytes):
            inputs[name].write_bytes(value)
        else:
            np.save(inputs[name], np.array(value), allow_pickle=value is None)
    with pytest.raises((OptionError, InputError), match=says):
        intake.read(path, Description(preprocess="unit", inputs=inputs))


def test_images_fill_a_fixed_batch_and_take_the_form_of_the_input() -> None:
    images = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5) + 0.4
    spec = TensorSpec("x", "uint8", (5, 4, 5, 3))
    found = feeding.feeds((spec,), images, [])["x"]
    assert found.dtype == np.uint8
    rounded = np.rint(images).astype(np.uint8).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(found, rounded[[0, 1, 0, 1, 0]])
    single = TensorSpec("x", "float32", (3, 4, 5))
    np.testing.assert_array_equal(feeding.feeds((single,), images[:1], [])["x"], images[0])


def test_numbers_of_a_constant_are_kept(tmp_path: Path) -> None:
    net, output = two_layers()
    extra = helper.make_tensor_value_info("n", TensorProto.INT64, ["k"])
    path = net.save(tmp_path / "m.onnx", output, inputs=[extra])
    np.save(tmp_path / "n.npy", np.arange(5))
    model = intake.read(path, Description(preprocess="unit", inputs={"n": tmp_path / "n.npy"}))
    (kept,) = [w for w in onnx.load_from_string(model.data).graph.initializer if w.name == "n"]
    np.testing.assert_array_equal(numpy_helper.to_array(kept), np.arange(5))


def test_a_quantised_file_is_verified_against_the_bare_one_it_came_from(
    tmp_path: Path, photos: Path
) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output, ("n", 3, "h", "w"))
    about = Description(preprocess="imagenet", input_size=(SIDE, SIDE))
    result = quantized(path, photos, about)
    options = pipeline.VerifyOptions(source=f"folder:{photos}", rtol=0.2, count=2)
    assert all(found.passed for found in pipeline.verify(result, path, options))
    assert all(found.passed for found in pipeline.verify(path, result, options))
    alone = pipeline.VerifyOptions(about=about, rtol=0.2, count=2)
    assert all(found.passed for found in pipeline.verify(path, path, alone))
