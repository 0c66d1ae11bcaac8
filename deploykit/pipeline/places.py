"""The files of one command, checked together before the slow step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.files import artifacts, onnxfile, paths
from deploykit.measuring import records

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.files.paths import Named

_WEIGHTS = "the weights beside -o"


def check(
    reads: Named,
    *,
    output: Path | None = None,
    record: Path | None = None,
    beside: Mapping[str, Path | None] | None = None,
) -> None:
    """Fail before the slow step where two files would be one, or one could not be written.

    reads: what each path that the user gave is. beside: other files that the command writes; the
    sidecar of `output` and the file of its weights are among them without being named.

    Raises: InputError, OptionError, OutputError.
    """
    if output is not None:
        paths.target(output)  # a name, before others are made from it
    sidecar = {} if output is None else {"the sidecar of -o": artifacts.sidecar(output)}
    weights = {} if output is None else {_WEIGHTS: onnxfile.weights_beside(output)}
    written = {"-o": output, **sidecar, **(beside or {})}
    paths.check(reads=reads, writes={**weights, **written, "--record": record})
    for path in written.values():
        if path is not None and (path == output or not path.exists()):
            artifacts.check_writable(path)
    if record is not None:
        records.check_appendable(record)


def check_weights(model: ir.Model, output: Path) -> None:
    """Check that a model's weights do not lie where those of `output` go. Raises: OptionError."""
    lie = {f"the weights of the model, {path.name},": path for path in onnxfile.weight_files(model)}
    paths.check(reads=lie, writes={_WEIGHTS: onnxfile.weights_beside(output), "-o": output})
