"""Run an engine on a GPU: buffers, events and graphs of the CUDA runtime (cuda-python).

The functions used are common to TensorRT 8.6 to 11 and TensorRT-RTX. Not run in CI, which has
no GPU: there it is tested with stand-ins for both native modules that keep memory on the host.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from deploykit.backends import _cuda, _feeds, _plugins, _trt
from deploykit.errors import BackendError, ModelError
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.backends.contract import Arrays

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_MILLI = 1e-3


def open_engine(module: str, path: Path) -> EngineSession:
    """Return a session of an engine file. Raises: BackendError where there is no GPU."""
    absent = _cuda.absence()
    if absent:
        raise BackendError(
            f"cannot run {path.name} here: {absent}",
            expected="a GPU that the engine was built for, and its driver",
            fix="copy the engine to such a machine; here, run the ONNX file: --backend onnxruntime",
        )
    runtime = importlib.import_module(_cuda.RUNTIME)
    return load(importlib.import_module(module), runtime, path)


def load(trt: Any, cuda: Any, path: Path) -> EngineSession:  # noqa: ANN401 - native modules
    """Return a session of an engine file. Raises: BackendError where it is not for this GPU."""
    lines: list[str] = []
    use = _plugins.needed(path)
    if use is not None:
        _plugins.register(trt, _plugins.check(use, path), lines.append)
    runtime = trt.Runtime(_trt.logger(trt, lines.append))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise _cuda.unloadable(path, lines)
    return EngineSession(trt, cuda, engine)


@dataclass(frozen=True)
class DeviceArray:
    """An input that is on the GPU already, of PyTorch, CuPy, PyCUDA or Numba."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pointer: int

    @classmethod
    def of(cls, array: Any) -> DeviceArray:  # noqa: ANN401 - any library's array
        """Return what `__cuda_array_interface__` says. Raises: ModelError where it has strides."""
        said = array.__cuda_array_interface__
        found = cls(np.dtype(said["typestr"]), tuple(said["shape"]), int(said["data"][0]))
        if said.get("strides") is not None:
            raise ModelError(
                f"a device array with strides {said['strides']}", expected="a contiguous one"
            )
        return found


@dataclass(frozen=True)
class _Buffer:
    """Memory for one tensor: page-locked on the host, and on the device."""

    name: str
    host: NDArray[np.generic]
    device: int
    owned: bool
    """False where the device memory is the caller's."""


class EngineSession:
    """An engine on the first GPU, with one stream."""

    def __init__(self, trt: Any, cuda: Any, engine: Any) -> None:  # noqa: ANN401 - native
        """Make the execution context; TensorRT-RTX compiles its kernels here."""
        self._cuda, self._engine = cuda, engine
        self._context = _context(trt, engine)
        self._stream = _cuda.call(cuda, "cudaStreamCreate")
        self.inputs = _specs(engine, _trt.tensor_names(engine, trt.TensorIOMode.INPUT))
        self.outputs = _specs(engine, _trt.tensor_names(engine, trt.TensorIOMode.OUTPUT))
        self._bound: tuple[tuple[Any, ...], list[_Buffer], list[_Buffer]] | None = None
        self._memory = _Memory(cuda)
        weakref.finalize(self, self._memory.release)

    def run(self, feeds: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return output name -> array. Raises: ModelError for wrong feeds, BackendError."""
        inputs, outputs = self._bind(feeds)
        self._enqueue(inputs, outputs)
        self._call("cudaStreamSynchronize", self._stream)
        return {buffer.name: buffer.host.copy() for buffer in outputs}

    def stepper(
        self, feeds: Arrays, *, transfers: bool, cuda_graph: bool
    ) -> Callable[[], float | None]:
        """Return a function that runs the batch once and returns its seconds on the device.

        The seconds span the copies too where `transfers` asks for them.

        Raises: ModelError for wrong feeds; BackendError, also where the engine cannot be captured.
        """
        inputs, outputs = self._bind(feeds)
        self._enqueue(inputs, outputs)  # what is done once per shape must not be captured or timed
        self._call("cudaStreamSynchronize", self._stream)
        moved = (inputs, outputs) if transfers else ([], [])
        launch = self._graph(*moved) if cuda_graph else lambda: self._enqueue(*moved)
        start, end = self._call("cudaEventCreate"), self._call("cudaEventCreate")
        bound = self._bound

        def step() -> float:
            if self._bound is not bound:
                raise BackendError("the session has since run other shapes", fix="make a new one")
            self._call("cudaEventRecord", start, self._stream)
            launch()
            self._call("cudaEventRecord", end, self._stream)
            self._call("cudaEventSynchronize", end)
            return float(self._call("cudaEventElapsedTime", start, end)) * _MILLI

        return step

    def _call(self, name: str, *args: Any) -> Any:  # noqa: ANN401 - native handles
        return _cuda.call(self._cuda, name, *args)

    def _enqueue(self, inputs: Iterable[_Buffer], outputs: Iterable[_Buffer]) -> None:
        """Queue the copies of `inputs`, the engine, and the copies of `outputs`."""
        kinds = self._cuda.cudaMemcpyKind
        for buffer in inputs:
            if buffer.owned:
                self._copy(
                    buffer.device, buffer.host.ctypes.data, buffer, kinds.cudaMemcpyHostToDevice
                )
        if not self._context.execute_async_v3(int(self._stream)):
            raise BackendError("the engine could not be queued")
        for buffer in outputs:
            self._copy(buffer.host.ctypes.data, buffer.device, buffer, kinds.cudaMemcpyDeviceToHost)

    def _copy(self, to: int, source: int, buffer: _Buffer, kind: Any) -> None:  # noqa: ANN401 - native
        self._call("cudaMemcpyAsync", to, source, buffer.host.nbytes, kind, self._stream)

    def _graph(self, inputs: list[_Buffer], outputs: list[_Buffer]) -> Callable[[], None]:
        """Return a function that launches the captured work."""
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            self._enqueue(inputs, outputs)
        finally:
            status, graph = self._cuda.cudaStreamEndCapture(self._stream)
        if int(status):
            raise BackendError(
                f"the engine cannot be captured in a CUDA graph: {status}", fix="--no-cuda-graph"
            )
        executable = self._call("cudaGraphInstantiate", graph, 0)
        return lambda: self._call("cudaGraphLaunch", executable, self._stream)

    def _bind(self, feeds: Mapping[str, Any]) -> tuple[list[_Buffer], list[_Buffer]]:
        """Return the buffers of inputs and outputs, filled with `feeds` and bound to the engine."""
        arrays = _feeds.checked(self.inputs, {k: _array(value) for k, value in feeds.items()})
        key = tuple((a.shape, getattr(a, "pointer", 0)) for _, a in sorted(arrays.items()))
        if self._bound is None or self._bound[0] != key:
            self._bound = None  # where the shapes are refused, nothing is bound
            self._memory.release()
            self._bound = (key, *self._allocate(arrays))
        _, inputs, outputs = self._bound
        for buffer in inputs:
            if buffer.owned:
                np.copyto(buffer.host, cast("NDArray[np.generic]", arrays[buffer.name]))
        if not all(buffer.owned for buffer in inputs):
            self._call("cudaDeviceSynchronize")  # another library's stream may still write them
        return inputs, outputs

    def _allocate(self, arrays: Mapping[str, Any]) -> tuple[list[_Buffer], list[_Buffer]]:
        for spec in self.inputs:
            shape = arrays[spec.name].shape
            if not self._context.set_input_shape(spec.name, shape):
                low, _, high = self._engine.get_tensor_profile_shape(spec.name, 0)
                raise ModelError(
                    f"the engine does not take {spec.name} of shape {tuple(shape)}",
                    expected=f"{tuple(low)} to {tuple(high)}, the profile it was built with",
                    fix="build it with a larger --max-shapes",
                )
        return (
            [self._buffer(spec, arrays[spec.name]) for spec in self.inputs],
            [self._buffer(spec, None) for spec in self.outputs],
        )

    def _buffer(self, spec: TensorSpec, array: Any) -> _Buffer:  # noqa: ANN401 - any array
        shape = tuple(self._context.get_tensor_shape(spec.name))
        if -1 in shape:
            raise BackendError(
                f"the shape of the output {spec.name} depends on the data",
                expected="outputs whose shapes follow from the inputs'",
            )
        if isinstance(array, DeviceArray):
            host: NDArray[np.generic] = np.empty(0, spec.dtype)
            buffer = _Buffer(spec.name, host, array.pointer, owned=False)
        else:
            host, device = self._memory.pair(shape, np.dtype(spec.dtype))
            buffer = _Buffer(spec.name, host, device, owned=True)
        self._context.set_tensor_address(spec.name, buffer.device)
        return buffer


class _Memory:
    """What was allocated, to be given back."""

    def __init__(self, cuda: Any) -> None:  # noqa: ANN401 - a native module
        self._cuda = cuda
        self._held: list[tuple[str, int]] = []

    def pair(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[NDArray[np.generic], int]:
        """Return an array in page-locked host memory, and device memory of its size."""
        size = max(1, math.prod(shape) * dtype.itemsize)
        pinned = int(_cuda.call(self._cuda, "cudaMallocHost", size))
        self._held.append(("cudaFreeHost", pinned))
        device = int(_cuda.call(self._cuda, "cudaMalloc", size))
        self._held.append(("cudaFree", device))
        raw = (ctypes.c_byte * size).from_address(pinned)
        return np.frombuffer(memoryview(raw), dtype, math.prod(shape)).reshape(shape), device

    def release(self) -> None:
        """Give everything back."""
        while self._held:
            name, pointer = self._held.pop()
            getattr(self._cuda, name)(pointer)


def _array(value: Any) -> Any:  # noqa: ANN401 - any library's array
    return DeviceArray.of(value) if hasattr(value, "__cuda_array_interface__") else value


def _context(trt: Any, engine: Any) -> Any:  # noqa: ANN401 - native objects
    """Return an execution context; kernels for a shape are compiled at once, not in the background.

    Raises: BackendError where there is too little memory.
    """
    if _trt.generation(trt).runtime_config:
        config = engine.create_runtime_config()
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise BackendError("the engine's execution context cannot be made", fix="free GPU memory")
    return context


def _specs(engine: Any, names: list[str]) -> tuple[TensorSpec, ...]:  # noqa: ANN401 - native
    """Return the specs of an engine's tensors; it does not keep the names of dimensions.

    Raises: BackendError for an element type that numpy lacks.
    """
    specs = []
    for name in names:
        dtype = engine.get_tensor_dtype(name).name
        if dtype not in _DTYPES:
            raise BackendError(
                f"{name} is {dtype}", expected="one of " + ", ".join(_DTYPES), fix="add a Cast"
            )
        shape = tuple("?" if dim == -1 else dim for dim in engine.get_tensor_shape(name))
        specs.append(TensorSpec(name, _DTYPES[dtype], shape))
    return tuple(specs)
