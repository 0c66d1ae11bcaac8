"""An ONNX graph as TensorRT gets it: our ops, local functions and names."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.backends import _naming, _plugins
from deploykit.files import onnxfile, temporaries

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.backends._plugins import Use


@dataclass(frozen=True)
class Prepared:
    """What the builder gets."""

    path: Path
    """The graph as it is built; gone after the build where it is not the model's own file."""
    graph: ir.Model
    use: Use | None
    """None: the model has none of our ops."""
    own: Mapping[str, str] = field(default_factory=dict)
    """Name of a node as built -> as the model has it, where the two differ."""


@contextlib.contextmanager
def prepared(graph: ir.Model, model: Path, choice: str) -> Iterator[Prepared]:
    """Make `graph`, the content of `model`, what is built; yield where it lies.

    choice: `auto`, `none` or the path of a plugin library.

    Raises: OptionError, ModelError, InputError.
    """
    built, own = _naming.as_built(graph)
    counts = ops.counts(built)
    use = _plugins.chosen(choice, counts)
    ours = any(ops.calls(built))
    if ours:
        ops.check(built)
        ops.fill(built)
        ops.inline(built, kernels=use.how == "none")
    if built is graph and not ours:
        yield Prepared(model.resolve(), graph, None)
        return
    with temporaries.folder() as folder:
        path = folder / model.name
        onnxfile.write_model(built, path)
        yield Prepared(path, built, use if counts else None, own)
