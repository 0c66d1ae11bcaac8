"""What every TensorRT build does around the builder's process: profile, file, proof, log."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit.backends import Built, _builder_process, _layers, _profiles
from deploykit.errors import OutputError
from deploykit.files import artifacts, onnxfile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.backends import BuildOptions
    from deploykit.backends._layers import EngineLayer
    from deploykit.backends._trt import Request


@dataclass(frozen=True)
class Builder:
    """One of the two builders."""

    title: str
    kernels: Callable[[Path, str | None], Sequence[EngineLayer]]
    """(engine file, the inspector's JSON) -> its layers; none where they cannot be read."""
    library: Path | None = None
    """The runtime library that the parser opens under a name without its version."""


def build(
    builder: Builder, graph: ir.Model, request: Request, output: Path, options: BuildOptions
) -> Built:
    """Write the engine of `graph`, the content of `request.model`, to `output`.

    Raises: OptionError, OutputError, BackendError; ProofError where a layer with quantized
    operands came out in float, and then there is no engine.
    """
    inputs, outputs = onnxfile.interface(graph)
    shapes, note = _profiles.profiles(inputs, options.shapes)
    started = time.perf_counter()
    with artifacts.replacing(output) as temporary:
        asked = replace(
            request, output=str(temporary.resolve()), shapes=shapes, workspace=options.workspace
        )
        try:
            inspection, log = _builder_process.build(asked, library=builder.library)
        except OutputError as error:  # the builder only knows the temporary name
            named = error.found.replace(asked.output, str(output))
            raise OutputError(named, expected=error.expected, fix=error.fix) from error
        layers = _layers.read_back(builder.kernels(temporary, inspection), graph)
        unproven = _layers.prove(layers, graph, builder.title)
    seconds = time.perf_counter() - started
    log = "\n".join(filter(None, [note, log.rstrip(), unproven])) + "\n"
    return Built(inputs, outputs, layers, seconds, log, request.plugins)
