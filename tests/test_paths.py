"""The files of one command differ, and what is replaced is a plain file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from deploykit.errors import InputError, OptionError, OutputError
from deploykit.files import artifacts, paths


def test_no_two_files_of_a_command_are_one(tmp_path: Path) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    (tmp_path / "soft").symlink_to(model)
    (tmp_path / "hard").hardlink_to(model)
    (tmp_path / "d").mkdir()
    for name in ("m.onnx", "soft", "hard", "d/../m.onnx"):
        with pytest.raises(OptionError, match="-o is the model itself"):
            paths.check(reads={"the model": model}, writes={"-o": tmp_path / name})
    new = tmp_path / "new"
    with pytest.raises(OptionError, match="--table is -o itself"):
        paths.check(reads={"the model": model}, writes={"-o": new, "--table": new})
    paths.check(reads={"one": model, "other": model}, writes={"-o": new, "--table": None})


def test_only_a_plain_file_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-null").symlink_to(os.devnull)
    for path, kind in (
        (Path(os.devnull), "a device"),
        (tmp_path / "to-null", "a device"),
        (tmp_path / "pipe", "a pipe"),
        (tmp_path, "a folder"),
    ):
        with pytest.raises(OutputError, match=f"it is {kind}"):
            artifacts.write_text(path, "x")
        with pytest.raises(OutputError, match=f"it is {kind}"):
            artifacts.check_writable(path)
    assert Path(os.devnull).is_char_device()


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    target, link = tmp_path / "d" / "target", tmp_path / "link"
    link.symlink_to(target)
    for text in ("made", "replaced"):  # at first the link points to nothing
        artifacts.write_text(link, text)
        assert link.is_symlink()
        assert target.read_text() == text


def test_names_that_no_system_takes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    for name in ("n" * 300, "a\0b", "a", "x/" * 4000):
        with pytest.raises(OutputError, match="cannot use"):
            paths.check(reads={}, writes={"-o": tmp_path / name})
        with pytest.raises(InputError, match="cannot use"):
            paths.require_file(tmp_path / name, "an ONNX model")
