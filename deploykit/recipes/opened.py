"""An ONNX model as a command found it: read once, hashed at most once, then handed down."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.files import artifacts, onnxfile
from deploykit.recipes import metadata

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    import onnx_ir as ir

    from deploykit.recipes.metadata import ModelCard


@dataclass(frozen=True)
class Opened:
    """One ONNX model: its bytes, what they parse to, and what they say about themselves."""

    path: Path
    """Where it was read from, or will be written to."""
    data: bytes = field(repr=False)
    """The model as a file holds it, but for metadata; weights beside it are not among them."""
    graph: ir.Model = field(repr=False)
    """Parsed from `data`. Shared by everyone who has this value: clone it before a change."""
    as_stored: bool = True
    """Whether `path` holds what `graph` computes."""
    notes: tuple[str, ...] = ()
    """What was done to the graph of the file, and guessed about it, for the user."""
    hashed: Future[str] | None = field(default=None, repr=False)
    """Hash (hex) of the file's content, where `data` is another."""
    factors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Of `CalibrationTable`: what channels were divided by since the file was read."""

    @cached_property
    def digest(self) -> Future[str]:
        """Return what will be the hash (hex) of the file's content.

        Who needs it later asks now: a core of its own looks for it meanwhile.
        """
        return self.hashed or _hashed(self.data)

    @cached_property
    def sha256(self) -> str:
        """Return the hash (hex) of the file's content."""
        return self.digest.result()

    @cached_property
    def card(self) -> ModelCard | None:
        """Return what the model says about itself, None where nothing. Raises: ModelError."""
        return metadata.read(self.graph.metadata_props)

    def origin(self) -> dict[str, str]:
        """Return file name -> sha256, as the sidecar of a file made from this one keeps it."""
        return {self.path.name: self.sha256}

    def copy(self) -> ir.Model:
        """Return a graph of one's own; the weights are shared."""
        return onnxfile.copied(self.graph)

    def altered(self, graph: ir.Model, notes: tuple[str, ...], *, computes: bool = True) -> Opened:
        """Return the same file with `graph` in place of its own; `notes` say what differs.

        computes: whether it computes otherwise; else only metadata differ.

        Raises: OutputError where it is too large for one file.
        """
        data = onnxfile.to_bytes(graph, self.path) if computes else self.data
        stored = self.as_stored and not computes
        said = (*self.notes, *notes)
        return replace(
            self, data=data, graph=graph, as_stored=stored, notes=said, hashed=self.digest
        )

    def write(self) -> None:
        """Write it to `path`, atomically. Raises: OutputError."""
        if onnxfile.has_data_beside(self.graph):
            onnxfile.write_model(self.graph, self.path)
            return
        with artifacts.replacing(self.path) as temporary:
            temporary.write_bytes(self.data)


def read(path: str | os.PathLike[str]) -> Opened:
    """Return the ONNX model in a file. Raises: ModelError, see `onnxfile.parse`."""
    return parsed(onnxfile.read_bytes(Path(path)), Path(path))


def parsed(data: bytes, path: Path) -> Opened:
    """Return the ONNX model in `data`, the content of `path`. Raises: ModelError."""
    return Opened(path, data, onnxfile.parse(data, path))


def made(graph: ir.Model, path: Path) -> Opened:
    """Return a graph in memory as the file `path` will hold it, which is not written yet.

    Raises: OutputError where it is too large for one file.
    """
    data = onnxfile.to_bytes(graph, path)
    return Opened(path, data, graph)


def _hashed(data: bytes) -> Future[str]:
    """Return what will be the hash (hex) of `data`."""
    pool = ThreadPoolExecutor(1)
    try:
        return pool.submit(lambda: hashlib.sha256(data).hexdigest())
    finally:
        pool.shutdown(wait=False)
