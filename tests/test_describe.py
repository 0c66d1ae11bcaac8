"""What nobody said of a file is said by the user, or guessed aloud."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from foreign_nets import SIDE, Net, two_layers

from deploykit import cli, pipeline
from deploykit.cli.about import About
from deploykit.data.preprocess import Preprocess
from deploykit.errors import InputError, ModelError, OptionError
from deploykit.pipeline import intake
from deploykit.recipes import guessing, opened
from deploykit.recipes.describing import NOTHING, Description, described
from deploykit.recipes.guessing import Facts
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = TensorSpec("images", "float32", ("n", 3, 64, 64))
ULTRALYTICS = {
    "names": "{0: 'person', 1: \"can't\", 2: 'it\\'s'}",
    "stride": "32",
    "task": "detect",
    "imgsz": "[96, 64]",
}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file whose output has the form of raw rows: 4 x 4 cells, box, objectness, 6 classes."""
    net = Net()
    pooled = net.op("AveragePool", net.conv("images", 3, 11), kernel_shape=[8, 8], strides=[8, 8])
    flat = net.op("Reshape", pooled, net.weight(np.array([0, 11, -1])))
    output = net.op("Sigmoid", net.op("Transpose", flat, perm=[0, 2, 1]))
    return net.save(tmp_path / "rows.onnx", output)


def test_a_copy_carries_what_the_user_said(rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "described.onnx"
    about = Description(
        task="detection", preprocess="yolo", scale=1.0, channels="BGR", class_names=tuple("abcdef")
    )
    made = pipeline.describe(rows, output, about)
    card = opened.read(output).card
    assert card is not None
    assert (card.task, card.recipe, card.class_names) == ("detection", "", tuple("abcdef"))
    expected = Preprocess((SIDE, SIDE), "letterbox", "BGR", scale=1.0, resampler="cv2-linear")
    assert card.preprocess == expected
    assert any("trial run on an image of patches" in note for note in made.notes)


def test_a_described_copy_is_evaluated_and_quantised_without_a_word(
    rows: Path, tmp_path: Path, photos: Path
) -> None:
    output, int8 = tmp_path / "described.onnx", tmp_path / "int8.onnx"
    names = ("circle", "square", "triangle", "star", "ring", "cross")
    about = Description(task="detection", preprocess="yolo", class_names=names)
    pipeline.describe(rows, output, about)
    options = pipeline.QuantizeOptions(source=f"folder:{photos}")
    pipeline.quantize(output, int8, options)
    shapes = "shapes:count=4,size=64"
    found = pipeline.evaluate(int8, pipeline.EvalOptions(shapes))
    assert found.images == 4
    directly = pipeline.evaluate(rows, pipeline.EvalOptions(shapes, about=about))
    described = pipeline.evaluate(output, pipeline.EvalOptions(shapes))
    assert directly.metrics == described.metrics


def test_without_a_word_about_images_every_way_is_named(rows: Path, tmp_path: Path) -> None:
    for about in (NOTHING, Description(task="detection")):
        with pytest.raises(OptionError) as caught:
            pipeline.describe(rows, tmp_path / "o.onnx", about)
        assert "imagenet, yolo, coco, unit, raw" in caught.value.expected
        assert "centre crop" in caught.value.fix
    with pytest.raises(OptionError, match="does not say what it is for"):
        pipeline.describe(rows, tmp_path / "o.onnx", Description(preprocess="unit"))


def test_the_metadata_of_ultralytics_is_taken_and_told(tmp_path: Path) -> None:
    net, output = two_layers()
    path = net.save(tmp_path / "m.onnx", output, ("n", 3, "h", "w"), metadata=ULTRALYTICS)
    model = intake.read(path)
    assert model.card is not None
    assert model.card.preprocess == Preprocess((96, 64), resampler="cv2-linear")
    assert model.card.class_names == ("person", "can't", "it's")
    assert model.card.task == "detection"
    note = "guessed from the metadata of Ultralytics: images prepared as yolo, 3 class names, the "
    assert model.notes[0] == note + "task detection"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "{0: 'a', 2: 'b'}",
        "{0: 'a', 0: 'b'}",
        "{0: __import__('os').system('touch x')}",
        "['a', 'b']",
        "{0: 'a' 1: 'b'}",
        "{-1: 'a'}",
        "{0: 'a'" + " " * 2_000_000 + "}",
        "{" + ", ".join(f"{i}: 'x'" for i in range(70_000)) + "}",
        "{0: '" + "\\" * 100_001 + "}",
    ],
)
def test_names_of_any_other_form_are_none(text: str) -> None:
    assert guessing.names_of(text) == ()


@pytest.mark.parametrize(
    "size", ["[0, 64]", "[64]", "64", "[32768, 32768]", "[99999, 1]", "[1, 2, 3]", "[a, b]"]
)
def test_an_odd_size_in_the_metadata_is_no_size(size: str) -> None:
    open_image = TensorSpec("images", "float32", ("n", 3, "h", "w"))
    facts = Facts((open_image,), (), {**ULTRALYTICS, "imgsz": size})
    assert guessing.guess(facts).size is None
    assert described(facts, NOTHING, None) is None, "nobody asked"
    with pytest.raises(OptionError, match="leaves the height and the width of its images open"):
        described(facts, Description(task="detection"), None)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Description(preprocess="imagenet", mean=(123.7, 116.3, 103.5)), "a mean of 123.7"),
        (Description(preprocess="unit", std=(0.0, 1.0, 1.0)), "0 or less"),
        (Description(preprocess="unit", scale=-1.0), "a mean of 0 for pixels|0 or less"),
        (Description(preprocess="unit", class_names=("a",)), "1 class names for a model of 10"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(said: Description, message: str) -> None:
    logits = TensorSpec("logits", "float32", ("n", 10))
    with pytest.raises(OptionError, match=message):
        described(Facts((IMAGES,), (logits,)), said, None)


def test_numbers_that_no_card_may_hold_are_refused_at_once() -> None:
    with pytest.raises(ModelError, match="std"):
        described(Facts((IMAGES,), ()), Description(preprocess="unit", std=(1e-9, 1, 1)), None)
    with pytest.raises(OptionError, match="--input-size 32768x32768"):
        Description(input_size=(32768, 32768))


@pytest.mark.parametrize("field", ["preprocess", "resize", "channels", "layout", "task"])
def test_an_unknown_word_is_answered_with_the_known_ones(field: str) -> None:
    words: dict[str, Any] = {field: "yolo9000"}
    with pytest.raises(OptionError, match=r"unknown .*'yolo9000'"):
        Description(**words)


def test_the_options_of_the_command_line_are_a_description(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_text("big dog\n\ncat\n", "utf-8")
    words = About(
        task="detection",
        preprocess="raw",
        mean="127.5",
        std="58.4,57.1,57.4",
        scale="1/2",
        resize="corner",
        channels="bgr",
        input_size="32x64",
        class_names=str(names),
        input=["a=3", f"b={tmp_path / 'b.npy'}"],
    )
    assert words.description() == Description(
        task="detection",
        preprocess="raw",
        mean=(127.5, 127.5, 127.5),
        std=(58.4, 57.1, 57.4),
        scale=0.5,
        resize="corner",
        channels="BGR",
        input_size=(32, 64),
        class_names=("big dog", "cat"),
        inputs={"a": 3.0, "b": tmp_path / "b.npy"},
    )
    assert About().description() is NOTHING


@pytest.mark.parametrize(
    "words",
    [
        About(mean="1,2"),
        About(mean="one"),
        About(scale="1/0"),
        About(scale="9" * 400),
        About(input=["a"]),
        About(input=["=1"]),
        About(input=["a=b"]),
        About(input_size="0"),
        About(input_size="a"),
        About(class_names=",,"),
    ],
)
def test_options_of_another_form_are_refused(words: About) -> None:
    with pytest.raises(OptionError):
        words.description()


def test_class_names_of_a_file_that_is_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "names"
    for content in (b"\xff\xfe\x00", b"\n\n"):
        path.write_bytes(content)
        with pytest.raises(InputError):
            About(class_names=str(path)).description()


def test_describe_says_on_the_command_line_what_it_did(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "o.onnx"
    words = ["describe", str(rows), "--task", "detection", "--preprocess", "yolo"]
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "-o", str(output)])
    assert not done.value.code
    text = capsys.readouterr().out
    assert "ModelCard no recipe, detection, 0 classes, 32x32" in text
    assert "trial run" in text
