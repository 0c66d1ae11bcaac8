"""TensorRT for RTX: real engines for RTX GPUs, built on any Linux machine, run on a GPU."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from deploykit.backends import (
    _building,
    _cuda,
    _engine_session,
    _layers,
    _plan_text,
    _plugins,
    _preparing,
    _trt,
    targets,
)
from deploykit.backends._building import Builder
from deploykit.backends.contract import Availability
from deploykit.errors import BackendError, InputError, OptionError
from deploykit.values import silent

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.backends.contract import BuildOptions, Built, Session
    from deploykit.recipes.opened import Opened
    from deploykit.values import LayerPrecision, Progress

MODULE = "tensorrt_rtx"
_PACKAGE = "tensorrt-rtx-cu13"
_INSTALL = f"`pip install {_PACKAGE}`"
_TURING = "75"


def availability() -> Availability:
    """Return whether the package is here, and whether a GPU is."""
    version = _version()
    if version is None:
        return Availability(builds=False, runs=False, reason=_absent(), fix=_INSTALL)
    absent = _cuda.absence()
    return Availability(
        builds=True,
        runs=not absent,
        version=version,
        reason=f"cannot run engines here: {absent}" if absent else "",
        fix="copy the engine to a machine with an RTX GPU and its driver" if absent else "",
    )


def build(
    model: Opened, output: Path, options: BuildOptions, *, progress: Progress = silent
) -> Built:
    """Write the engine for `model` and the GPUs of `options.sms` to `output`.

    The precision of each layer is read from the engine's text afterwards.

    Raises: ModelError, OptionError, OutputError, BackendError; ProofError where a layer with
    quantized operands came out in float.
    """
    _check_available()
    graph = model.copy()
    sms = tuple(row.sm for row in targets.rtx_targets(options.sms or _own()))
    builder = Builder(
        "TensorRT-RTX",
        lambda engine, _: _plan_text.kernels(engine.read_bytes()),
        progress=progress,
    )
    with _preparing.prepared(graph, model.path, options.plugins) as made:
        check(made.graph, sms, options)
        request = _trt.Request(
            module=MODULE,
            model=str(made.path),
            sms=sms,
            plugins=_plugins.to_json(made.use),
            ops=_plugins.files(made.use),
        )
        return _building.build(builder, made, request, output, options)


def check(model: ir.Model, sms: tuple[str, ...], options: BuildOptions) -> None:
    """Refuse what TensorRT-RTX is known not to honour, before the build. Raises: OptionError."""
    if options.timing_cache is not None:
        raise OptionError(
            "TensorRT-RTX has no timing cache: it times no kernels while it builds",
            fix="leave --timing-cache out",
        )
    if _TURING not in sms:
        return
    if _layers.is_quantized(model):
        others = [sm for sm in sms if sm != _TURING]
        raise OptionError(
            "INT8 for SM75 is not possible with TensorRT-RTX: it has no INT8 kernels for Turing, "
            "and with SM75 among the targets it uses none for the others either",
            expected="a model without QuantizeLinear for SM75; INT8 for SM80 and later",
            fix="build the FP16 model for SM75"
            + (f", and this one with {' '.join(f'--sm {sm}' for sm in others)}" if others else "")
            + "; INT8 on a T4 needs the full TensorRT: --backend tensorrt on the T4 itself",
        )
    products = _layers.float32_products(model)
    if products:
        raise OptionError(
            f"SM75 has no FP32 matrix product in TensorRT-RTX: {', '.join(products[:8])}",
            expected="FP16 for Gemm and MatMul",
            fix="cast the model to FP16 first: deploykit cast",
        )


def open_session(path: Path, *, threads: int = 0) -> Session:
    """Return a session of an engine. Raises: BackendError where there is no GPU.

    threads: ignored, as the GPU does the work.
    """
    del threads
    _check_available()
    if not path.is_file():
        raise InputError(f"no such file: {path}")
    return _engine_session.open_engine(MODULE, path)


def inspect(path: Path) -> tuple[LayerPrecision, ...]:
    """Return the precision of each layer of an engine, from its text; needs no GPU.

    With the ONNX it was built from beside it, layers carry their op and MACs.

    Raises: InputError where the file is no engine that can be read.
    """
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    kernels = _plan_text.kernels(plan)
    if not kernels:
        known = plan.startswith(_plan_text.MAGIC)
        raise InputError(
            f"{path} is " + ("an engine whose text has an unknown form" if known else "no engine"),
            expected="an engine of TensorRT-RTX 1.7",
            fix="build it again with the installed version" if known else "",
        )
    return _layers.of_engine(path, kernels)


def _version() -> str | None:
    """Return the version of the package, None where it is not here. No GPU is asked for."""
    try:
        return metadata.version(_PACKAGE)
    except metadata.PackageNotFoundError:
        return None


def _absent() -> str:
    return f"{_PACKAGE} is not installed"


def _check_available() -> None:
    if _version() is None:
        raise BackendError(_absent(), fix=_INSTALL)


def _own() -> tuple[str, ...]:
    """Return this machine's compute capability. Raises: OptionError where it has no GPU."""
    absent = _cuda.absence()
    if absent:
        raise OptionError(
            f"no target GPU given, and this machine has none: {absent}",
            expected="one or more --sm: "
            + ", ".join(row.sm for row in targets.TARGETS.values() if row.rtx),
            fix="for example --sm 86; SM75 is the T4, 86 the A10, 89 the L4",
        )
    return (_cuda.compute_capability(),)
