"""No command loses a file that it was given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploykit import QuantizeOptions, cast, fuse, quantize, report
from deploykit.errors import OptionError, OutputError

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = b"\x08\x09 a model"


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder with a model, records and a table."""
    (tmp_path / "m.onnx").write_bytes(MODEL)
    (tmp_path / "runs.md").write_text('{"kind": "bench"}\n')
    (tmp_path / "t.json").write_text("{}")
    (tmp_path / "t.data").write_text("{}")
    return tmp_path


def options(**given: Path) -> QuantizeOptions:
    return QuantizeOptions(source="shapes:count=2", **given)  # type: ignore[arg-type]


LOSSES: dict[str, Callable[[Path], object]] = {
    "-o is the model": lambda d: fuse(d / "m.onnx", d / "m.onnx"),
    "--record is the model": lambda d: cast(d / "m.onnx", d / "o", record=d / "m.onnx"),
    "--record is -o": lambda d: cast(d / "m.onnx", d / "o", record=d / "o"),
    "--record is the sidecar of -o": lambda d: cast(d / "m.onnx", d / "o", record=d / "o.json"),
    "--table is -o": lambda d: quantize(d / "m.onnx", d / "t.json", options(table=d / "t.json")),
    "--table is the model": lambda d: quantize(d / "m.onnx", d / "o", options(table=d / "m.onnx")),
    "the sidecar of -o is --plan": lambda d: quantize(
        d / "m.onnx", d / "t", options(plan=d / "t.json")
    ),
    "--record is the weights beside -o": lambda d: cast(d / "m.onnx", d / "o", record=d / "o.data"),
    "the weights beside -o is --plan": lambda d: quantize(
        d / "m.onnx", d / "t", options(plan=d / "t.data")
    ),
    "-o is file 1 of records": lambda d: report([d / "runs.md"], d / "runs.html"),
}


@pytest.mark.parametrize("what", LOSSES)
def test_two_files_of_a_command_that_are_one_are_refused(files: Path, what: str) -> None:
    before = {path: path.read_bytes() for path in files.iterdir()}
    with pytest.raises(OptionError, match=f"{what} itself"):
        LOSSES[what](files)
    assert {path: path.read_bytes() for path in files.iterdir()} == before


def test_a_record_is_not_appended_to_what_is_none(files: Path) -> None:
    (files / "other.onnx").write_bytes(MODEL)
    with pytest.raises(OutputError, match="something other than records"):
        cast(files / "m.onnx", files / "o", record=files / "other.onnx")
    assert (files / "other.onnx").read_bytes() == MODEL


@pytest.mark.parametrize("name", ["", ".", "/", "/dev/null"])
def test_what_is_no_place_for_a_file_is_refused_first(files: Path, name: str) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        fuse(files / "m.onnx", Path(name))
