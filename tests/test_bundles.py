"""One file of engines for several sizes of image."""

from __future__ import annotations

import zipfile
from typing import TYPE_CHECKING

import pytest

from deploykit.errors import InputError
from deploykit.files import artifacts, bundles, contents

if TYPE_CHECKING:
    from pathlib import Path

ENGINES = {(800, 1344): b"ptrt wide", (1344, 800): b"ptrt high"}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    parts = {}
    for size, data in ENGINES.items():
        parts[size] = tmp_path / f"{size}.tmp"
        parts[size].write_bytes(data)
    path = tmp_path / "model.engine"
    bundles.write(path, parts)
    (tmp_path / "model.onnx").write_bytes(b"its parent")
    artifacts.describe(
        path, made_by={"backend": "tensorrt_rtx"}, parents={"model.onnx": "0" * 64, "gone": "0"}
    )
    return path


def test_its_engines_are_what_went_in_each_with_a_sidecar(bundle: Path) -> None:
    assert bundles.sizes(bundle) == tuple(ENGINES)
    for size, data in ENGINES.items():
        with bundles.one(bundle, size) as engine:
            assert engine.read_bytes() == data
            assert artifacts.read(engine).made_by["backend"] == "tensorrt_rtx"
            assert (engine.parent / "model.onnx").read_bytes() == b"its parent"
        assert not engine.exists()


def test_it_is_known_for_an_engine_by_its_first_bytes(bundle: Path) -> None:
    first = contents.head(bundle, InputError, "an engine")
    assert contents.kind(first) == "engine"


def test_unzip_gives_what_tensorrts_tools_take(bundle: Path) -> None:
    with zipfile.ZipFile(bundle) as archive:
        assert archive.namelist() == ["800x1344.plan", "1344x800.plan"]
        assert archive.read("1344x800.plan") == b"ptrt high"


def test_the_same_engines_give_the_same_file(bundle: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.engine"
    bundles.write(again, {size: tmp_path / f"{size}.tmp" for size in ENGINES})
    assert again.read_bytes() == bundle.read_bytes()


def test_another_file_holds_no_engines(tmp_path: Path) -> None:
    path = tmp_path / "one.engine"
    path.write_bytes(b"ptrt alone")
    assert bundles.sizes(path) == ()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02")
    assert bundles.sizes(path) == ()
    assert contents.kind(path.read_bytes()) == "checkpoint"


@pytest.mark.parametrize("name", ["../800x1344.plan", "model.plan", "0800x1344x3.plan"])
def test_a_member_that_names_no_size_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "odd.engine"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"ptrt")
    with pytest.raises(InputError, match="is damaged: its member"):
        bundles.sizes(path)


def test_a_member_that_unpacks_to_more_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.engine"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("800x1344.plan", bytes(1 << 20))
    with pytest.raises(InputError, match="is no engine"):
        bundles.sizes(path)


def test_a_cut_file_is_refused(bundle: Path) -> None:
    bundle.write_bytes(bundle.read_bytes()[:-30])
    with pytest.raises(InputError, match="is damaged"):
        bundles.sizes(bundle)
