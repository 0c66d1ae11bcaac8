"""A model file is read once and hashed once by a command, whatever it is called."""

from __future__ import annotations

import hashlib
import os
import sys
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import pytest

import deploykit
from deploykit.backends import tensorrt_rtx
from deploykit.errors import ModelError
from deploykit.recipes import opened

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Reads:
    """Counts the bytes that this process reads of one file, and hashes of its whole content."""

    def __init__(self, path: Path) -> None:
        self.path, self.content = path, path.read_bytes()
        self.opened = self.hashed = 0


@pytest.fixture(scope="module")
def hook() -> list[Reads]:
    """The counters that are told of every file that is opened: a hook cannot be taken away."""
    watching: list[Reads] = []

    def told(event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(args[0], str | os.PathLike):
            for each in watching:
                each.opened += os.fspath(args[0]) == os.fspath(each.path)

    sys.addaudithook(told)
    return watching


@pytest.fixture
def reads(model: Path, hook: list[Reads], monkeypatch: pytest.MonkeyPatch) -> Iterator[Reads]:
    """Counts what is done with the exported test model."""
    counter = Reads(model)
    plain = hashlib.sha256

    def hashing(data: bytes = b"", **options: Any) -> Any:
        counter.hashed += data == counter.content
        return plain(data, **options)

    monkeypatch.setattr(hashlib, "sha256", hashing)
    hook.append(counter)
    yield counter
    hook.remove(counter)


def test_quantize_reads_and_hashes_its_input_once(
    reads: Reads, photos: Path, tmp_path: Path
) -> None:
    options = deploykit.QuantizeOptions(source=f"folder:{photos}", table=tmp_path / "t.json")
    deploykit.quantize(reads.path, tmp_path / "int8.onnx", options)
    assert (reads.opened, reads.hashed) == (1, 1)
    table_only = deploykit.QuantizeOptions(table=tmp_path / "t.json")
    deploykit.quantize(reads.path, tmp_path / "again.onnx", table_only)
    assert (reads.opened, reads.hashed) == (2, 2)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt_rtx"])
def test_build_reads_and_hashes_its_input_once(backend: str, reads: Reads, tmp_path: Path) -> None:
    if backend == "tensorrt_rtx" and not tensorrt_rtx.availability().builds:
        pytest.skip(tensorrt_rtx.availability().reason)
    sms = ("86",) if backend == "tensorrt_rtx" else ()
    deploykit.build(reads.path, tmp_path / "a.engine", backend, deploykit.BuildOptions(sms))
    assert (reads.opened, reads.hashed) == (1, 1)


def test_cast_reads_and_hashes_its_input_once(reads: Reads, tmp_path: Path) -> None:
    deploykit.cast(reads.path, tmp_path / "half.onnx")
    assert (reads.opened, reads.hashed) == (1, 1)


def test_fuse_and_inspect_read_their_input_once(reads: Reads, tmp_path: Path) -> None:
    deploykit.fuse(reads.path, tmp_path / "fused.onnx")
    deploykit.inspect(reads.path)
    assert reads.opened == 2


def test_eval_reads_and_hashes_its_input_once(reads: Reads) -> None:
    deploykit.evaluate(reads.path, deploykit.EvalOptions("shapes:count=2,size=96"))
    assert (reads.opened, reads.hashed) == (1, 1)


def test_a_graph_in_memory_is_what_its_bytes_hold(model: Path, tmp_path: Path) -> None:
    subject = opened.read(str(model))
    assert subject.card is not None
    graph = subject.copy()
    graph.graph.name = "changed"
    for value in graph.graph[0].outputs:
        value.dtype = ir.DataType.FLOAT16
    made = opened.made(graph, tmp_path / "new.onnx")
    assert subject.graph.graph.name != "changed", "a copy is one's own"
    assert subject.graph.graph[0].outputs[0].dtype is ir.DataType.FLOAT, "its types too"
    made.write()
    assert opened.read(made.path).sha256 == made.sha256 == hashlib.sha256(made.data).hexdigest()
    assert len(repr(subject)) < 400


def test_a_file_that_is_no_model_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_text("not a model")
    with pytest.raises(ModelError, match="is a text file"):
        opened.read(tmp_path / "x.onnx")
