"""What every TensorRT build does around the builder's process: profile, file, proof, log."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from deploykit.backends import _builder_process, _layers, _profiles
from deploykit.backends.contract import Built
from deploykit.errors import OutputError
from deploykit.files import artifacts, onnxfile
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from deploykit.backends._layers import EngineLayer
    from deploykit.backends._preparing import Prepared
    from deploykit.backends._trt import Request
    from deploykit.backends.contract import BuildOptions
    from deploykit.values import Progress

_STEPS = ("build", "read back")


@dataclass(frozen=True)
class Builder:
    """One of the two builders."""

    title: str
    kernels: Callable[[Path, str | None], Sequence[EngineLayer]]
    """(engine file, the inspector's JSON) -> its layers; none where they cannot be read."""
    progress: Progress = silent


def build(
    builder: Builder, made: Prepared, request: Request, output: Path, options: BuildOptions
) -> Built:
    """Write the engine of what was prepared to `output`.

    Raises: OptionError, OutputError, BackendError; ProofError where a layer with quantized
    operands came out in float, and then there is no engine.
    """
    inputs, outputs = onnxfile.interface(made.graph)
    shapes, note = _profiles.profiles(inputs, options.shapes)
    started = time.perf_counter()
    steps = builder.progress(_STEPS, "build", len(_STEPS))
    with artifacts.replacing(output) as temporary:
        asked = replace(
            request, output=str(temporary.resolve()), shapes=shapes, workspace=options.workspace
        )
        next(steps)
        with ThreadPoolExecutor(1) as pool:
            counting = pool.submit(_layers.counted, made.graph)  # while another process builds
            try:
                inspection, log = _builder_process.build(asked)
            except OutputError as error:  # the builder only knows the temporary name
                named = error.found.replace(asked.output, str(output))
                raise OutputError(named, expected=error.expected, fix=error.fix) from error
        next(steps)
        kernels = builder.kernels(temporary, inspection)
        found = _layers.read_back(kernels, made.graph, made.own, works=counting.result())
        unproven = _layers.prove(found, builder.title)
    for _ in steps:
        pass
    seconds = time.perf_counter() - started
    log = "\n".join(filter(None, [note, log.rstrip(), unproven])) + "\n"
    return Built(inputs, outputs, found.layers, seconds, log, request.plugins)
