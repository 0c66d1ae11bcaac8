"""ONNX files in and out, and what is said of those that are none."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploykit.errors import ModelError, OutputError
from deploykit.files import contents, onnxfile

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """
<ir_version: 9, opset_import: ["" : 19]>
g (float[batch, 3] x) => (float[batch, 2] y)
<float[3, 2] w = {1, 2, 3, 4, 5, 6}>
{ y = MatMul(x, w) }
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    return path


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A model whose weights lie in a file beside it."""
    model = onnx.parser.parse_model(TEXT)
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    model.graph.initializer[0].CopyFrom(weight)
    path = tmp_path / "outside.onnx"
    onnx.save(
        model,
        path,
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
        convert_attribute=False,
    )
    return path


def test_what_is_read_is_written_again(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.onnx"
    onnxfile.write_model(onnxfile.read_model(path), copy)
    first, second = onnx.load(path), onnx.load(copy)
    assert [n.input for n in first.graph.node] == [n.input for n in second.graph.node]
    assert first.opset_import == second.opset_import
    before, after = (numpy_helper.to_array(m.graph.initializer[0]) for m in (first, second))
    np.testing.assert_array_equal(before, after)


def test_metadata_survives(path: Path, tmp_path: Path) -> None:
    model = onnxfile.read_model(path)
    model.metadata_props["deploykit"] = '{"a": 1}'
    onnxfile.write_model(model, tmp_path / "copy.onnx")
    again = onnxfile.read_model(tmp_path / "copy.onnx")
    assert dict(again.metadata_props) == {"deploykit": '{"a": 1}'}


def test_the_same_model_gives_the_same_bytes(path: Path, tmp_path: Path) -> None:
    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for file in files:
        onnxfile.write_model(onnxfile.read_model(path), file)
    assert files[0].read_bytes() == files[1].read_bytes()


def test_weights_beside_the_model_are_read_and_written_into_it(
    outside: Path, tmp_path: Path
) -> None:
    model = onnxfile.read_model(outside)
    (tmp_path / "moved").mkdir()
    onnxfile.write_model(model, tmp_path / "moved" / "whole.onnx")
    whole = onnx.load(tmp_path / "moved" / "whole.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(whole.graph.initializer[0]), 1)


def test_missing_and_short_data_files_are_named(outside: Path) -> None:
    data = outside.parent / "weights.bin"
    data.write_bytes(data.read_bytes()[:-4])
    with pytest.raises(ModelError, match=r"weights\.bin of .* is cut short: weight 'w'"):
        onnxfile.read_model(outside)
    data.unlink()
    with pytest.raises(ModelError, match=r"weights\.bin of .* is missing"):
        onnxfile.read_model(outside)


def test_data_outside_of_the_folder_is_refused(outside: Path, tmp_path: Path) -> None:
    model = onnx.load(outside, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../weights.bin"
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside its folder"):
        onnxfile.read_model(inner / "m.onnx")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"this is text\n", "is a text file"),
        (b"caf\xc3\xa9 " * 200, "is a text file"),
        (b"<html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"PK\x03\x04" + bytes(50), "zip archive"),
        (b"\x80\x02}q\x00.", "Python pickle"),
        (b"ptrt" + bytes(50), "TensorRT-RTX engine"),
        (b"\xff\xfe\xfd" * 30, "is not an ONNX model, or it is damaged"),
        (b"\x08\x09", "has no an opset and no outputs"),
    ],
)
def test_what_is_no_model_is_named(data: bytes, message: str, path: Path) -> None:
    path.write_bytes(data)
    with pytest.raises(ModelError, match=message):
        onnxfile.read_model(path)


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        onnxfile.read_model(tmp_path / "absent.onnx")
    with pytest.raises(ModelError, match="is a folder"):
        onnxfile.read_model(tmp_path)


def test_a_cut_file_is_refused_wherever_it_is_cut(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ModelError):
            onnxfile.read_model(path)


def test_a_newer_ir_version_is_refused(path: Path) -> None:
    model = onnx.load(path)
    model.ir_version = onnx.IR_VERSION + 1
    onnx.save(model, path)
    with pytest.raises(ModelError, match="IR version"):
        onnxfile.read_model(path)


def test_a_value_that_nothing_makes_is_named(path: Path) -> None:
    model = onnx.load(path)
    model.graph.node[0].input[1] = "ghost"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="needs 'ghost', which nothing makes"):
        onnxfile.read_model(path)


def test_a_file_beyond_two_gigabytes_is_refused_unread(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(onnxfile.LIMIT + 1)  # sparse: it takes no room on the disk
    with pytest.raises(ModelError, match="has 2147483648 bytes"):
        onnxfile.read_model(path)


def test_a_model_beyond_two_gigabytes_is_not_written(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = onnxfile.read_model(path)
    monkeypatch.setattr(onnxfile, "LIMIT", 20)
    with pytest.raises(OutputError, match="weights have 24 bytes"):
        onnxfile.write_model(model, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_a_folder_that_is_not_there_is_an_output_error(path: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        onnxfile.write_model(onnxfile.read_model(path), tmp_path / "absent" / "out.onnx")


def test_a_full_disk_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, before = onnxfile.read_model(path), path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(type(path), "write_bytes", full)
    with pytest.raises(OutputError, match="No space left"):
        onnxfile.write_model(model, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_interface_leaves_weights_out(path: Path) -> None:
    inputs, outputs = onnxfile.interface(onnxfile.read_model(path))
    assert [str(spec) for spec in inputs] == ["x: float32[batch, 3]"]
    assert [str(spec) for spec in outputs] == ["y: float32[batch, 2]"]


def test_the_interface_shows_what_is_unknown(path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [None, 2])
    y = onnx.ValueInfoProto(name="y")
    graph = helper.make_graph([node], "g", [x], [y])
    onnx.save(helper.make_model(graph, ir_version=9), path)
    inputs, outputs = onnxfile.interface(onnxfile.read_model(path))
    assert str(inputs[0]) == "x: float16[?, 2]"
    assert outputs[0].dtype == "unknown"


def test_unreadable_files_say_why(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(path), "open", forbidden)
    with pytest.raises(ModelError, match="Permission denied"):
        contents.head(path, ModelError, "an ONNX model")


def test_a_kind_is_recognised_by_its_first_bytes() -> None:
    assert contents.recognise(b"\x89PNG\r\n")[0] == "a PNG image"
    assert contents.recognise("é".encode() * 256 + b"\xc3")[0] == "a text file"
    assert contents.recognise(b"caf\xe9 au lait and more") == ("", "")
    assert contents.recognise(b"") == ("", "")
