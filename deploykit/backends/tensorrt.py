"""The full TensorRT, 8.6 to 11: builds and runs engines on the GPU that is present.

Not run in CI, which has no GPU: what decides is tested with stand-ins for the native modules.
"""

from __future__ import annotations

import importlib
from importlib import metadata, util
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.backends import (
    _building,
    _cuda,
    _engine_session,
    _inspector,
    _layers,
    _plugins,
    _preparing,
    _trt,
    targets,
)
from deploykit.backends._building import Builder
from deploykit.backends.contract import Availability
from deploykit.errors import BackendError, InputError, OptionError
from deploykit.files import onnxfile
from deploykit.values import silent

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.backends.contract import BuildOptions, Built, Session
    from deploykit.recipes.opened import Opened
    from deploykit.values import LayerPrecision, Progress, TensorSpec

MODULE = "tensorrt"
_FIX = (
    "on the machine with the GPU, from SM75 on: `pip install tensorrt-cu12 cuda-python`; "
    "for a V100 (SM70), which a later version does not support: "
    "`pip install 'tensorrt-cu12==10.4.*' cuda-python`; "
    "without a GPU: --backend tensorrt_rtx"
)


def availability() -> Availability:
    """Return whether the package is here, and a GPU, without which it cannot even build."""
    if util.find_spec(MODULE) is None:
        return Availability(builds=False, runs=False, reason="tensorrt is not installed", fix=_FIX)
    absent = _cuda.absence()
    return Availability(
        builds=not absent,
        runs=not absent,
        version=_version(),
        reason=f"TensorRT builds only on the GPU that it builds for: {absent}" if absent else "",
        fix=_FIX if absent else "",
    )


def _version() -> str:
    installed = metadata.packages_distributions().get(MODULE, [])
    return metadata.version(min(installed)) if installed else ""


def build(
    model: Opened, output: Path, options: BuildOptions, *, progress: Progress = silent
) -> Built:
    """Write the engine for `model` and this machine's GPU to `output`.

    The precision of each layer is read with the engine inspector afterwards.

    Raises: ModelError, OptionError, OutputError, BackendError; ProofError where a layer with
    quantized operands came out in float.
    """
    _check_available()
    graph = model.copy()
    check_targets(options.sms, _cuda.compute_capability())
    rules = _trt.generation(importlib.import_module(MODULE))
    inputs, outputs = onnxfile.interface(graph)
    check_types(rules, (*inputs, *outputs))
    builder = Builder(
        "TensorRT",
        lambda _, found: _inspector.layers(found) if found else (),
        progress=progress,
    )
    with _preparing.prepared(graph, model.path, options.plugins) as made:
        request = _trt.Request(
            module=MODULE,
            model=str(made.path),
            plugins=_plugins.to_json(made.use),
            ops=_plugins.files(made.use),
            timing_cache=str(options.timing_cache.resolve()) if options.timing_cache else None,
            builder_flags=builder_flags(rules, graph),
        )
        return _building.build(builder, made, request, output, options)


def check_targets(sms: tuple[str, ...], own: str) -> None:
    """Refuse targets other than the machine's GPU. Raises: OptionError."""
    for sm in sms:
        if targets.target(sm).sm != own:
            raise OptionError(
                f"TensorRT cannot build for SM{sm}: the GPU here has SM{own}",
                expected=f"--sm {own}, or none",
                fix="build on a machine with that GPU, or with --backend tensorrt_rtx",
            )


def check_types(rules: _trt.Generation, tensors: tuple[TensorSpec, ...]) -> None:
    """Refuse 64-bit inputs and outputs where the version has none. Raises: OptionError."""
    wide = [str(spec) for spec in tensors if spec.dtype == "int64"]
    if wide and not rules.int64_io:
        raise OptionError(
            f"this TensorRT has no int64 inputs and outputs: {', '.join(wide)}",
            fix="cast them to int32 in the model, or install TensorRT 10 or newer",
        )


def builder_flags(rules: _trt.Generation, model: ir.Model) -> tuple[str, ...]:
    """Return the precision flags a weakly typed version needs for what the graph asks for.

    With FP16 allowed it may also run FP32 layers in FP16: such a version cannot be told apart.
    """
    if not rules.precision_flags:
        return ()
    quantized = _layers.is_quantized(model)
    half = any(value.dtype == ir.DataType.FLOAT16 for value in model.graph.initializers.values())
    return tuple(
        name for name, wanted in (("INT8", quantized), ("FP16", quantized or half)) if wanted
    )


def open_session(path: Path, *, threads: int = 0) -> Session:
    """Return a session of an engine. Raises: BackendError where there is no GPU.

    threads: ignored, as the GPU does the work.
    """
    del threads
    _check_available()
    return _engine_session.open_engine(MODULE, _existing(path))


def inspect(path: Path) -> tuple[LayerPrecision, ...]:
    """Return the precision of each layer of an engine; needs the GPU it was built for.

    With the ONNX it was built from beside it, layers carry their op and MACs.

    Raises: InputError, BackendError.
    """
    plan = _existing(path).read_bytes()
    _check_available()
    trt = importlib.import_module(MODULE)
    lines: list[str] = []
    use = _plugins.needed(path)
    if use is not None:
        _plugins.register(trt, _plugins.check(use, path), lines.append)
    found = _trt.inspection(trt, _trt.logger(trt, lines.append), plan)
    if found is None:
        raise _cuda.unloadable(path, lines)
    kernels = _inspector.layers(found)
    return _layers.of_engine(path, kernels)


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return path


def _check_available() -> None:
    here = availability()
    if not here.builds:
        raise BackendError(here.reason, fix=here.fix)
