"""ONNX Runtime on the CPU: the backend that is always here.

Q/DQ graphs run as they are written: quantize, dequantize, then float arithmetic, which is what
an INT8 engine computes up to rounding. ONNX Runtime's own INT8 kernels are left out on purpose
(`session.disable_quant_qdq`). They want Q/DQ around every output as well, which TensorRT's
placement does not have, quantize biases and unfold weights without, and take no FP16 scales.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as states

from deploykit.backends import _feeds, _layers, contract, overloads, sizes, watching
from deploykit.backends._naming import name_of
from deploykit.backends.contract import Availability, Built
from deploykit.errors import BackendError, ModelError, OptionError
from deploykit.files import artifacts, onnxfile
from deploykit.recipes import opened
from deploykit.values import LayerPrecision, TensorSpec, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import numpy as np
    import onnx_ir as ir
    from numpy.typing import NDArray

    from deploykit.backends.contract import Arrays, BuildOptions
    from deploykit.graph.cost import Work
    from deploykit.recipes.opened import Opened
    from deploykit.values import Progress

WEIGHTS_BESIDE = "session.model_external_initializers_file_folder_path"
_SILENT = 4  # errors are raised; what is printed beside them holds names as they are
_MOST_THREADS = 1024  # more than any machine has cores; each is started at once
_CONFIG = {
    "session.disable_quant_qdq": "1",
    "session.load_model_format": "ONNX",
    "session.save_model_format": "ONNX",
}
_FAILURES = (
    *(
        getattr(states, name)
        for name in (
            "EPFail",
            "Fail",
            "InvalidArgument",
            "InvalidGraph",
            "InvalidProtobuf",
            "NoSuchFile",
            "NotImplemented",
            "RuntimeException",
        )
    ),
    RuntimeError,
    ValueError,
)
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
_PRECISIONS = {"FLOAT": "fp32", "FLOAT16": "fp16", "INT8": "int8", "UINT8": "int8"}
# Ops that do the work, under every name that ONNX Runtime's rewrites give them.
_WEIGHTED = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger"), "Conv"),
    "ConvTranspose": "ConvTranspose",
    **dict.fromkeys(("Gemm", "FusedGemm", "QGemm"), "Gemm"),
    **dict.fromkeys(("MatMul", "FusedMatMul", "QLinearMatMul", "MatMulInteger"), "MatMul"),
    **{op: op for op in ("Attention", "DeformConv", "Einsum", "GRU", "LSTM", "RNN")},
}
_PREFIX = "InsertedPrecisionFreeCast_"
_SUFFIX = "_nchwc"


def availability() -> Availability:
    """Return that it works: the package is a requirement of deploykit."""
    return Availability(builds=True, runs=True, version=str(ort.__version__))


def build(
    model: Opened, output: Path, options: BuildOptions, *, progress: Progress = silent
) -> Built:
    """Write `model`, optimised for this machine's CPU, to `output`.

    Raises: ModelError, OptionError, OutputError.
    """
    _refuse(options)
    started = time.perf_counter()
    steps = progress(("optimise", "read back"), "build", 2)
    with artifacts.replacing(output) as temporary:
        next(steps)
        session = _session(model, _options(0, written_to=temporary))
        next(steps)
        optimised = onnxfile.read_model(temporary)
        found = _layers_of(optimised, model.graph)
    for _ in steps:
        pass
    seconds = time.perf_counter() - started
    before, after = len(model.graph.graph), len(optimised.graph)
    log = f"ONNX Runtime {ort.__version__}: {before} nodes became {after}\n"
    return Built(specs(session.get_inputs()), specs(session.get_outputs()), found, seconds, log)


def _refuse(options: BuildOptions) -> None:
    given = {
        "--sm": options.sms,
        "--min-shapes, --opt-shapes and --max-shapes": options.shapes,
        "--workspace": options.workspace,
        "--timing-cache": options.timing_cache,
        "--plugins": options.plugins != "auto",
    }
    for option, value in given.items():
        if value:
            raise OptionError(
                f"ONNX Runtime has no use for {option}",
                expected="a model alone: it runs on this machine's CPU, with any shape",
                fix=f"leave out {option}, or choose --backend tensorrt_rtx",
            )


def open_session(path: Path, *, threads: int = 0) -> contract.Session:
    """Return a session of an ONNX file, or of one that `build` wrote.

    threads: that compute one node together; 0: one per core.

    Raises: ModelError where the file is not ONNX or not valid.
    """
    return open_model(opened.read(path), threads=threads)


def open_model(model: Opened, *, threads: int = 0) -> contract.Session:
    """Return a session of a model in memory; see `open_session`."""
    if not 0 <= threads <= _MOST_THREADS:
        raise OptionError(f"{threads} threads", expected=f"0 (one per core) to {_MOST_THREADS}")
    loops = onnxfile.has_loops(model.graph)
    return sizes.of(model, lambda one: Session(_session(one, _options(threads)), loops=loops))


def inspect(path: Path) -> tuple[LayerPrecision, ...]:
    """Return the precision of each layer of an ONNX file as it stands. Raises: ModelError."""
    return layers(opened.read(path))


def layers(model: Opened) -> tuple[LayerPrecision, ...]:
    """Return the precision of each layer of a model as it stands."""
    return _layers_of(model.graph, model.graph)


def _options(threads: int, *, written_to: Path | None = None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _SILENT
    for key, value in _CONFIG.items():
        options.add_session_config_entry(key, value)
    if written_to is not None:
        options.optimized_model_filepath = str(written_to)
    return options


def _session(model: Opened, options: ort.SessionOptions) -> ort.InferenceSession:
    folder = onnxfile.data_folder(model.graph)
    if folder is not None:
        options.add_session_config_entry(WEIGHTS_BESIDE, str(folder.resolve()))
    try:
        data = overloads.runnable(model.data, model.graph)
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except _FAILURES as error:
        raise ModelError(
            f"ONNX Runtime cannot load {model.path}: {error}",
            fix="export the model again, with ops and an opset that ONNX Runtime knows",
        ) from error


class Session:
    """An ONNX model on the CPU."""

    def __init__(self, session: ort.InferenceSession, *, loops: bool = False) -> None:
        """Take the runtime's session; loops: it may never end."""
        self._session, self._loops = session, loops
        self.inputs = specs(session.get_inputs())
        self.outputs = specs(session.get_outputs())

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return output name -> array. Raises: ModelError for wrong feeds, BackendError."""
        feeds = _feeds.checked(self.inputs, feeds)
        names = [spec.name for spec in self.outputs]
        try:
            run = watching.run if self._loops else ort.InferenceSession.run
            return dict(zip(names, run(self._session, names, dict(feeds)), strict=True))
        except _FAILURES as error:
            raise _failed(error) from error

    def stepper(
        self, feeds: Arrays, *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        """Return a function that runs the batch on buffers bound once; it has no device clock.

        transfers: makes no difference, for the CPU reads and writes the caller's memory.
        Raises: ModelError for wrong feeds, OptionError for a CUDA graph.
        """
        del transfers
        if cuda_graph:
            raise OptionError(
                "ONNX Runtime has no CUDA graph on the CPU", fix="add --no-cuda-graph"
            )
        feeds = _feeds.checked(self.inputs, feeds)
        outputs = self.run(feeds)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, _value(array))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, _value(array))

        def step() -> None:
            try:
                self._session.run_with_iobinding(binding)
            except _FAILURES as error:
                raise _failed(error) from error

        return step


def _value(array: NDArray[np.generic]) -> ort.OrtValue:
    """Return a copy of an array in memory that the runtime owns."""
    return ort.OrtValue.ortvalue_from_numpy(array)


def _failed(error: Exception) -> BackendError:
    return BackendError(f"ONNX Runtime failed: {error}")


def specs(nodes: Any) -> tuple[TensorSpec, ...]:  # noqa: ANN401 - the package ships no types
    """Return the runtime's inputs or outputs as everywhere else here."""
    return tuple(
        TensorSpec(
            node.name,
            _DTYPES.get(node.type, node.type),
            tuple("?" if dim is None else dim for dim in node.shape),
        )
        for node in nodes
    )


def _layers_of(optimised: ir.Model, source: ir.Model) -> tuple[LayerPrecision, ...]:
    """Return the layers of an optimised graph, under the names and MACs of its source.

    What multiplies in the source and bears another name here, such as the nodes of a local
    function, stands at the end with the type that the source gives it.
    """
    works = {work.name: work for work in _layers.counted(source)}
    names = _aliases(works.values())
    rows = [_layer(node, names, works) for node in optimised.graph]
    found = {row.name for row in rows}
    rest = (
        LayerPrecision(name, work.node.op_type, _precision(work.node), work.macs or 0, work.note)
        for name, work in works.items()
        if name not in found
    )
    return (*rows, *rest)


def _layer(node: ir.Node, names: dict[str, str], works: dict[str, Work]) -> LayerPrecision:
    own = name_of(node).removesuffix(_SUFFIX).removeprefix(_PREFIX)
    op = _WEIGHTED.get(node.op_type)
    if op is None:
        return LayerPrecision(own, node.op_type, _precision(node))
    name = names.get(own, own)
    work = works.get(name)
    if work is None:
        return LayerPrecision(name, op, _precision(node))
    return LayerPrecision(name, op, _precision(node), work.macs or 0, work.note)


def _precision(node: ir.Node) -> str:
    """Return what a node computes in: the type of its weight, else of its first float operand."""
    values = [value for value in node.inputs if value is not None and value.dtype is not None]
    weights = [value for value in values if value.is_initializer() and len(value.shape or ()) > 1]
    found = (_PRECISIONS.get(str(value.dtype)) for value in [*weights, *values])
    return next((precision for precision in found if precision), _layers.UNKNOWN)


def _aliases(works: Iterable[Work]) -> dict[str, str]:
    """Return the name of a node that multiplies for it and for what a fusion may name it by.

    A convolution that takes in the Add and Relu behind it is called after their output.
    """
    found: dict[str, str] = {}
    for work in works:
        found[work.name] = work.name
        value: ir.Value | None = work.node.outputs[0]
        while value is not None:
            found.setdefault(str(value.name), work.name)
            users = [user for user, _ in value.uses()]
            alone = len(users) == 1 and users[0].op_type not in _layers.WEIGHTED
            value = users[0].outputs[0] if alone else None
    return found
