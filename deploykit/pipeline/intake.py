"""An ONNX file as every verb takes it: its inputs closed, and a card by what file and user say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.backends import ir_versions
from deploykit.errors import InputError, ModelError
from deploykit.files import contents, npyfile, onnxfile
from deploykit.graph import interface
from deploykit.graph.interface import Wanted
from deploykit.recipes import describing, metadata, opened
from deploykit.recipes.describing import NOTHING
from deploykit.recipes.guessing import Facts, guess

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.recipes.describing import Description
    from deploykit.recipes.metadata import ModelCard
    from deploykit.recipes.opened import Opened


_MOVES = ("Identity", "Cast", "Resize", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice")


def read(path: Path, said: Description = NOTHING) -> Opened:
    """Return the ONNX model in a file, ready for any stage. Raises: ModelError, OptionError."""
    return taken(opened.read(path), said)


def shared(said: Description, *paths: Path) -> list[Description]:
    """Return what is said of each of several files: an input that only some have of these alone.

    A file that deploykit wrote holds the values of such inputs already.
    """
    if not said.inputs:
        return [said] * len(paths)
    found = [_inputs(path) for path in paths]
    known = set[str]().union(*found)
    return [
        replace(said, inputs={n: v for n, v in said.inputs.items() if n in own or n not in known})
        for own in found
    ]


def _inputs(path: Path) -> set[str]:
    """Return the names of an ONNX file's inputs. Raises: InputError where it cannot be read."""
    if contents.kind(contents.head(path, InputError, "a model")) != "onnx":
        return set()
    return {spec.name for spec in onnxfile.interface(onnxfile.read_model(path))[0]}


def taken(model: Opened, said: Description = NOTHING, *, like: ModelCard | None = None) -> Opened:
    """Return a model ready for any stage: the same where nothing had to be done.

    like: the card of the same model in another file, for one that has none. What was done and
    guessed is in its `notes`. Raises: ModelError, OptionError.
    """
    graph = model.copy()
    try:
        own = model.card
    except ModelError:  # of a damaged card, which who needs it reads again
        if said:
            raise
        own = None
    known = own or like
    closed = interface.closed(graph, _wanted(facts(graph, said), said, known))
    notes = (*closed, *ir_versions.lowered(graph))
    found = describing.described(facts(graph, said), said, known)
    if found is None or found.card == own:
        return model.altered(graph, notes) if notes else model
    metadata.write(graph.metadata_props, found.card)
    return model.altered(graph, (*found.notes, *notes), computes=bool(notes))


def facts(graph: ir.Model, said: Description = NOTHING) -> Facts:
    """Return what a graph shows; inputs that become constants are none."""
    inputs, outputs = onnxfile.interface(graph)
    left = tuple(spec for spec in inputs if spec.name not in said.inputs)
    return Facts(left, outputs, graph.metadata_props, _ends(graph))


def _ends(graph: ir.Model) -> dict[str, str]:
    """Return output -> kind of the node that makes its values, before they are moved or resized."""
    found = {}
    for value in graph.graph.outputs:
        node = value.producer()
        while node is not None and node.op_type in _MOVES and node.inputs and node.inputs[0]:
            node = node.inputs[0].producer()
        found[str(value.name)] = "" if node is None else node.op_type
    return found


def _wanted(seen: Facts, said: Description, known: ModelCard | None) -> Wanted:
    """Return what the interface of a model becomes. Raises: InputError, OptionError."""
    guessed = guess(seen)
    size, planes = guessed.size, guessed.planes or 3
    if known is not None:
        size, planes = known.preprocess.size, known.preprocess.planes
    if said.channels is not None:
        planes = 1 if said.channels == "GREY" else 3
    return Wanted(
        said.input_size or size,
        said.input_size is not None,
        planes,
        nhwc=describing.layout_of(said, seen) == "nhwc",
        constants=_values(said.inputs),
    )


def _values(given: Mapping[str, Path | float]) -> dict[str, NDArray[Any]]:
    """Return the values of inputs that become constants. Raises: InputError."""
    return {
        name: npyfile.read(value, InputError) if isinstance(value, Path) else _number(value)
        for name, value in given.items()
    }


def _number(value: float) -> NDArray[Any]:
    whole = float(value).is_integer()
    return np.array(int(value)) if whole else np.array(value)
