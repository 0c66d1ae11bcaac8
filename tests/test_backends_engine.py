# ruff: noqa: N802, N815 - the stand-ins have the names of the native libraries
"""The code around native TensorRT and CUDA, with stand-ins that keep device memory on the host."""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import io
import json
import re
import sys
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deploykit.backends import (
    BuildOptions,
    _builder,
    _builder_process,
    _cuda,
    _engine_session,
    _trt,
    tensorrt,
    tensorrt_rtx,
)
from deploykit.errors import BackendError, InputError, ModelError, OptionError, OutputError
from deploykit.recipes import opened
from deploykit.values import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable

Mode = IntEnum("Mode", ["INPUT", "OUTPUT"])
Dtype = IntEnum("Dtype", ["FLOAT", "HALF", "FP8"])
Severity = IntEnum("Severity", ["ERROR", "WARNING", "INFO", "VERBOSE"])


class Status(IntEnum):
    """What a CUDA function returns first."""

    cudaSuccess = 0
    cudaErrorUnknown = 999


class Cuda:
    """The CUDA runtime on the host: one stream, done at once unless it is captured."""

    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2)
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.captured: list[Callable[[], None]] | None = None
        self.copies: list[int] = []
        self.clock = 0.0
        self.refused: set[str] = set()

    def __getattribute__(self, name: str) -> Any:
        found = object.__getattribute__(self, name)
        if name.startswith("cuda") and name in object.__getattribute__(self, "refused"):
            return lambda *_: (Status.cudaErrorUnknown, None)
        return found

    def submit(self, work: Callable[[], None]) -> None:
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def cudaMalloc(self, size: int) -> tuple[Status, int]:
        buffer = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(buffer)] = buffer
        return Status.cudaSuccess, ctypes.addressof(buffer)

    cudaMallocHost = cudaMalloc

    def cudaFree(self, pointer: int) -> tuple[Status]:
        del self.memory[pointer]
        return (Status.cudaSuccess,)

    cudaFreeHost = cudaFree

    def cudaMemcpyAsync(
        self, to: int, source: int, size: int, *kind_and_stream: int
    ) -> tuple[Status]:
        def copy() -> None:
            ctypes.memmove(to, source, size)
            self.copies.append(kind_and_stream[0])

        self.submit(copy)
        return (Status.cudaSuccess,)

    def cudaStreamCreate(self) -> tuple[Status, int]:
        return Status.cudaSuccess, 7

    def cudaStreamSynchronize(self, stream: int) -> tuple[Status]:
        assert stream == 7
        assert self.captured is None
        return (Status.cudaSuccess,)

    def cudaDeviceSynchronize(self) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaStreamBeginCapture(self, *_: int) -> tuple[Status]:
        self.captured = []
        return (Status.cudaSuccess,)

    def cudaStreamEndCapture(self, _: int) -> tuple[Status, Any]:
        graph, self.captured = self.captured, None
        return Status.cudaSuccess, graph

    def cudaGraphInstantiate(self, graph: Any, _: int) -> tuple[Status, Any]:
        return Status.cudaSuccess, graph

    def cudaGraphLaunch(self, graph: Any, _: int) -> tuple[Status]:
        for work in graph:
            work()
        return (Status.cudaSuccess,)

    def cudaEventCreate(self) -> tuple[Status, list[float]]:
        return Status.cudaSuccess, [0.0]

    def cudaEventRecord(self, event: list[float], _: int) -> tuple[Status]:
        self.clock += 2.0
        event[0] = self.clock
        return (Status.cudaSuccess,)

    def cudaEventSynchronize(self, _: list[float]) -> tuple[Status]:
        return (Status.cudaSuccess,)

    def cudaEventElapsedTime(self, start: list[float], end: list[float]) -> tuple[Status, float]:
        return Status.cudaSuccess, end[0] - start[0]


class Engine:
    """Doubles its input x: float[n, 4] -> y; batches 1 to 8."""

    num_io_tensors = 2
    data_dependent = False
    queued = True
    dtype = Dtype.FLOAT

    def __init__(self, cuda: Cuda) -> None:
        self.cuda = cuda
        self.shape: tuple[int, ...] = (-1, 4)
        self.addresses: dict[str, int] = {}
        self.config = SimpleNamespace()

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_dtype(self, _: str) -> Dtype:
        return self.dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 4) if name == "y" and self.data_dependent else self.shape

    def get_tensor_profile_shape(self, *_: object) -> list[tuple[int, int]]:
        return [(1, 4), (2, 4), (8, 4)]

    def create_runtime_config(self) -> Any:
        return self.config

    def create_execution_context(self, *_: object) -> Any:
        return self

    def create_engine_inspector(self) -> Any:
        text = json.dumps({"Layers": ["a"], "Bindings": ["x", "y"]})
        return SimpleNamespace(get_engine_information=lambda _: text)

    def set_input_shape(self, _: str, shape: tuple[int, ...]) -> bool:
        self.shape = tuple(shape)
        return shape[0] <= 8

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 7
        x, y = (
            np.ctypeslib.as_array(
                (ctypes.c_float * int(np.prod(self.shape))).from_address(self.addresses[name])
            )
            for name in "xy"
        )
        self.cuda.submit(lambda: np.multiply(x, 2, out=y))
        return self.queued


class Logger:
    """The base class of a native logger."""

    VERBOSE = Severity.VERBOSE


class Native:
    """A tensorrt module that builds the plan `b"plan"` and notes what it was told."""

    __name__ = "tensorrt"
    ILogger = Logger
    TensorIOMode = Mode
    Severity = Severity
    LayerInformationFormat = SimpleNamespace(JSON="json")
    ProfilingVerbosity = SimpleNamespace(DETAILED="detailed")
    MemoryPoolType = SimpleNamespace(WORKSPACE="workspace")
    BuilderFlag = SimpleNamespace(INT8="int8", FP16="fp16")
    NetworkDefinitionCreationFlag = SimpleNamespace(EXPLICIT_BATCH=0, STRONGLY_TYPED=1)
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")
    ComputeCapability = SimpleNamespace(SM86="SM86")

    def __init__(self, version: str = "10.8.0", name: str = "tensorrt") -> None:
        self.__version__, self.__name__ = version, name
        self.told: dict[str, Any] = {}
        self.engine: Any = Engine(Cuda())
        self.errors: list[Any] = []
        self.plan: bytes | None = b"plan"

    def Runtime(self, log: Any) -> Any:
        log.log(Severity.ERROR, "from the runtime")
        return SimpleNamespace(deserialize_cuda_engine=lambda _: self.engine)

    def OnnxParser(self, *_: object) -> Any:
        return SimpleNamespace(
            parse_from_file=lambda _: not self.errors,
            num_errors=len(self.errors),
            get_error=lambda i: self.errors[i],
        )

    def Builder(self, log: Any) -> Any:
        log.log(Severity.INFO, "builder made")
        log.log(Severity.VERBOSE, "chatter")
        return SimpleNamespace(
            create_network=lambda flags: self.told.update(network=flags),
            create_builder_config=lambda: Config(self.told),
            create_optimization_profile=lambda: SimpleNamespace(
                set_shape=lambda *shapes: self.told.update(profile=shapes)
            ),
            build_serialized_network=lambda *_: self.plan,
        )


class Config:
    """A builder's configuration."""

    profiling_verbosity = ""
    accepts_profile = 0

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        told["config"] = self

    def set_memory_pool_limit(self, pool: str, size: int) -> None:
        self.told[pool] = size

    def set_flag(self, flag: str) -> None:
        self.told.setdefault("flags", []).append(flag)

    def add_optimization_profile(self, _: object) -> int:
        return self.accepts_profile

    def set_compute_capability(self, capability: str, index: int) -> bool:
        self.told[f"target {index}"] = capability
        return True

    def create_timing_cache(self, data: bytes) -> str:
        self.told["cache"] = data
        return "a cache"

    def set_timing_cache(self, *_: object, **__: object) -> None:
        pass

    def get_timing_cache(self) -> Any:
        return SimpleNamespace(serialize=lambda: b"filled")


def request(tmp_path: Path, **fields: Any) -> _trt.Request:
    return _trt.Request("tensorrt", "m.onnx", str(tmp_path / "m.engine"), **fields)


def session(engine: Any, native: Native | None = None) -> _engine_session.EngineSession:
    return _engine_session.EngineSession(native or Native(), engine.cuda, engine)


def batch(size: int) -> dict[str, Any]:
    return {"x": np.arange(size * 4, dtype=np.float32).reshape(size, 4)}


@pytest.mark.parametrize(
    ("version", "name", "flags"),
    [
        ("8.6.1", "tensorrt", 1 << 0),
        ("10.8.0.43", "tensorrt", 1 << 1),
        ("11.4.0", "tensorrt", 0),
        ("1.7.1", "tensorrt_rtx", 0),
    ],
)
def test_each_generation_makes_its_network_with_the_flags_it_knows_by_name(
    tmp_path: Path, version: str, name: str, flags: int
) -> None:
    native = Native(version, name)
    said: list[str] = []
    found = _trt.build(native, request(tmp_path), said.append)
    assert native.told["network"] == flags
    assert native.told["config"].profiling_verbosity == "detailed"
    assert (tmp_path / "m.engine").read_bytes() == b"plan"
    assert said[0] == "[I] builder made"
    assert "[V] chatter" not in said
    assert (found is None) == (name == "tensorrt_rtx")


@pytest.mark.parametrize(("version", "name"), [("9.3.0", "tensorrt"), ("2.0.0", "tensorrt_rtx")])
def test_a_generation_that_was_never_seen_is_refused(version: str, name: str) -> None:
    with pytest.raises(BackendError, match=f"{name} {version} is not supported") as caught:
        _trt.generation(Native(version, name))
    assert "tensorrt 10" in caught.value.expected


def test_what_the_user_said_reaches_the_builder(tmp_path: Path) -> None:
    native = Native()
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"earlier")
    shapes = {"x": ((1, 4), (2, 4), (8, 4))}
    wanted = request(
        tmp_path,
        shapes=shapes,
        workspace=1 << 30,
        timing_cache=str(cache),
        builder_flags=("INT8", "FP16"),
    )
    found = _trt.build(native, wanted, lambda _: None)
    assert found is not None
    assert json.loads(found)["Bindings"] == ["x", "y"]
    assert native.told["profile"] == ("x", *shapes["x"])
    assert native.told["workspace"] == 1 << 30
    assert native.told["flags"] == ["int8", "fp16"]
    assert native.told["cache"] == b"earlier"
    assert cache.read_bytes() == b"filled"
    assert native.engine.shape == (2, 4), "the inspector sees the typical shape"


def test_targets_are_set_by_name_and_an_unknown_one_is_refused(tmp_path: Path) -> None:
    native = Native("1.7.1", "tensorrt_rtx")
    _trt.build(native, request(tmp_path, sms=("86",)), lambda _: None)
    assert native.told["target 0"] == "SM86"
    with pytest.raises(OptionError, match="cannot build for SM121"):
        _trt.build(native, request(tmp_path, sms=("121",)), lambda _: None)


def test_every_parser_error_names_its_node_and_op(tmp_path: Path) -> None:
    native = Native()
    new = SimpleNamespace(
        node_name=lambda: "nms", node_operator=lambda: "Odd", desc=lambda: "not known"
    )
    native.errors = [new, SimpleNamespace(node=lambda: 3, desc=lambda: "older parser")]
    with pytest.raises(BackendError) as caught:
        _trt.build(native, request(tmp_path), lambda _: None)
    assert caught.value.found == (
        "tensorrt cannot read m.onnx: node 'nms' (Odd): not known; "
        "node 3 (unknown op): older parser"
    )


def test_a_build_that_gives_nothing_and_shapes_that_are_refused_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = Native()
    native.plan = None
    with pytest.raises(BackendError, match="could not build"):
        _trt.build(native, request(tmp_path), lambda _: None)
    monkeypatch.setattr(Config, "accepts_profile", -1)
    with pytest.raises(OptionError, match="refuses the shapes"):
        _trt.build(native, request(tmp_path, shapes={"x": ((1,),) * 3}), lambda _: None)


def test_an_engine_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        _trt.build(Native(), request(tmp_path / "absent"), lambda _: None)


def test_an_engine_that_cannot_be_loaded_has_no_inspection(tmp_path: Path) -> None:
    native = Native()
    native.engine = None
    assert _trt.build(native, request(tmp_path), lambda _: None) is None


def test_the_builder_s_process_answers_with_the_outcome_or_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    native = Native()
    monkeypatch.setattr(importlib, "import_module", lambda _: native)
    text = json.dumps(vars(request(tmp_path)))
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    assert "inspection" in _builder.main("tensorrt")
    assert "[I] builder made" in capsys.readouterr().err
    native.plan = None
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    failed = _builder.main("tensorrt")["error"]
    assert failed["kind"] == "BackendError"
    assert failed["found"] == "tensorrt could not build m.onnx"


def test_an_engine_runs_on_the_device_and_its_outputs_come_back() -> None:
    opened = session(Engine(Cuda()))
    assert [str(s) for s in (*opened.inputs, *opened.outputs)] == [
        "x: float32[?, 4]",
        "y: float32[?, 4]",
    ]
    for size in (1, 8, 3, 3):
        feeds = batch(size)
        np.testing.assert_array_equal(opened.run(feeds)["y"], feeds["x"] * 2)


@pytest.mark.parametrize("cuda_graph", [False, True])
@pytest.mark.parametrize("transfers", [False, True])
def test_a_stepper_runs_one_batch_and_returns_device_seconds(
    *, transfers: bool, cuda_graph: bool
) -> None:
    engine = Engine(Cuda())
    step = session(engine).stepper(batch(2), transfers=transfers, cuda_graph=cuda_graph)
    engine.cuda.copies.clear()
    assert step() == pytest.approx(2e-3)
    assert engine.cuda.copies == ([1, 2] if transfers else [])
    y = (ctypes.c_float * 8).from_address(engine.addresses["y"])
    assert list(y) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_stepper_is_void_once_its_session_runs_other_shapes() -> None:
    opened = session(Engine(Cuda()))
    step = opened.stepper(batch(2), transfers=True, cuda_graph=False)
    opened.run(batch(3))
    with pytest.raises(BackendError, match="other shapes"):
        step()


def test_an_array_on_the_device_is_used_where_it_lies() -> None:
    engine = Engine(Cuda())
    x = batch(2)["x"]
    said = {"typestr": "<f4", "shape": (2, 4), "data": (x.ctypes.data, False), "strides": None}
    feeds: Any = {"x": SimpleNamespace(__cuda_array_interface__=said)}
    np.testing.assert_array_equal(session(engine).run(feeds)["y"], x * 2)
    assert engine.addresses["x"] == x.ctypes.data
    assert engine.cuda.copies == [2], "only the output was copied"
    said["strides"] = (4, 8)
    with pytest.raises(ModelError, match="strides"):
        session(engine).run(feeds)


def test_wrong_feeds_and_shapes_beyond_the_profile_are_errors() -> None:
    opened = session(Engine(Cuda()))
    opened.run(batch(2))
    with pytest.raises(ModelError, match=r"fed x: float64\[2, 4\]"):
        opened.run({"x": np.zeros((2, 4))})
    with pytest.raises(ModelError, match=r"does not take x of shape \(9, 4\)") as caught:
        opened.run(batch(9))
    assert caught.value.expected == "(1, 4) to (8, 4), the profile it was built with"
    assert opened.run(batch(2))["y"][1, 3] == 14, "the session still works"


def test_memory_is_given_back_with_the_session() -> None:
    engine = Engine(Cuda())
    opened = session(engine)
    opened.run(batch(2))
    assert len(engine.cuda.memory) == 4
    del opened
    gc.collect()
    assert not engine.cuda.memory


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("cudaMalloc", "cudaMalloc failed: cudaErrorUnknown"),
        ("cudaMemcpyAsync", "cudaMemcpyAsync failed"),
        ("cudaStreamEndCapture", "cannot be captured in a CUDA graph"),
        ("cudaGraphLaunch", "cudaGraphLaunch failed"),
    ],
)
def test_a_cuda_failure_names_the_function(function: str, message: str) -> None:
    engine = Engine(Cuda())
    opened = session(engine)
    engine.cuda.refused.add(function)
    with pytest.raises(BackendError, match=message):
        opened.stepper(batch(2), transfers=True, cuda_graph=True)()


def test_what_an_engine_cannot_do_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(Cuda())
    monkeypatch.setattr(Engine, "queued", False)
    with pytest.raises(BackendError, match="could not be queued"):
        session(engine).run(batch(1))
    monkeypatch.setattr(Engine, "data_dependent", True)
    with pytest.raises(BackendError, match="depends on the data"):
        session(engine).run(batch(1))
    monkeypatch.setattr(Engine, "dtype", Dtype.FP8)
    with pytest.raises(BackendError, match="x is FP8"):
        session(engine)
    monkeypatch.setattr(Engine, "create_execution_context", lambda *_: None)
    with pytest.raises(BackendError, match="context cannot be made"):
        session(engine)


def test_on_rtx_kernels_for_a_shape_are_compiled_before_they_are_timed() -> None:
    engine = Engine(Cuda())
    session(engine, Native("1.7.1", "tensorrt_rtx"))
    assert engine.config.dynamic_shapes_kernel_specialization_strategy == "eager"


def test_an_engine_for_another_gpu_says_what_the_runtime_said(tmp_path: Path) -> None:
    (tmp_path / "m.engine").write_bytes(b"plan")
    native = Native()
    assert _engine_session.load(native, Cuda(), tmp_path / "m.engine").inputs[0].name == "x"
    native.engine = None
    with pytest.raises(BackendError, match=r"cannot be loaded here\n\[E\] from the runtime"):
        _engine_session.load(native, Cuda(), tmp_path / "m.engine")


def test_every_cuda_function_that_is_called_exists_in_cuda_python() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    source = Path(_engine_session.__file__).read_text(encoding="utf-8")
    source += Path(_cuda.__file__).read_text(encoding="utf-8")
    functions = set(re.findall(r"\bcuda[A-Z]\w+", source))
    assert {"cudaMalloc", "cudaGraphLaunch", "cudaMemcpyAsync"} <= functions
    assert [name for name in sorted(functions) if not _known(runtime, name)] == []


def _known(runtime: Any, name: str) -> bool:
    kinds = (runtime.cudaMemcpyKind, runtime.cudaStreamCaptureMode)
    return hasattr(runtime, name) or any(hasattr(kind, name) for kind in kinds)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Native:
    """A machine with TensorRT 10 and a T4."""
    native = Native()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(_cuda, "absence", lambda: "")
    monkeypatch.setattr(_cuda, "compute_capability", lambda: "75")
    modules = {"tensorrt": native, "cuda.bindings.runtime": native.engine.cuda}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    return native


@pytest.mark.usefixtures("gpu")
def test_full_tensorrt_builds_and_inspects_on_its_own_gpu(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[_trt.Request] = []
    convs = [
        {
            "Name": name,
            "LayerType": "CaskConvolution",
            "Inputs": [{"Name": "t", "Datatype": "Int8"}],
            "Weights": {"Type": "Int8"},
            "Metadata": f"[ONNX Layer: {name}]",
        }
        for name in ("stem", "block1", "block2", "head")
    ]

    def built(wanted: _trt.Request, **_: object) -> tuple[str, str]:
        asked.append(wanted)
        return json.dumps({"Layers": convs, "I/O Tensors": []}), "native log\n"

    monkeypatch.setattr(_builder_process, "build", built)
    model = toy(quantized=True, classify=False).save(tmp_path / "toy.onnx")
    made = tensorrt.build(
        opened.read(model),
        tmp_path / "toy.engine",
        BuildOptions(sms=("75",), workspace=5, timing_cache=tmp_path / "c"),
    )
    assert [n.precision for n in made.layers if n.macs] == ["int8"] * 4
    assert made.log.endswith("native log\n")
    assert asked[0].sms == ()
    assert asked[0].builder_flags == ()
    assert asked[0].timing_cache == str(tmp_path / "c")
    with pytest.raises(OptionError, match="cannot build for SM86: the GPU here has SM75"):
        tensorrt.build(opened.read(model), tmp_path / "toy.engine", BuildOptions(sms=("86",)))


@pytest.mark.usefixtures("gpu")
def test_full_tensorrt_inspects_an_engine_through_the_runtime(tmp_path: Path, gpu: Native) -> None:
    path = tmp_path / "m.engine"
    path.write_bytes(b"plan")
    assert [layer.name for layer in tensorrt.inspect(path)] == ["a"]
    assert tensorrt.open_session(path).inputs
    with pytest.raises(InputError, match="no such file"):
        tensorrt.inspect(tmp_path / "absent.engine")
    gpu.engine = None
    with pytest.raises(BackendError, match="cannot be loaded here"):
        tensorrt.inspect(path)


def test_a_weakly_typed_version_gets_flags_for_what_the_graph_asks_for(
    toy: Any, tmp_path: Path
) -> None:
    from deploykit.files import onnxfile

    rules = {name: _trt.GENERATIONS[f"tensorrt {name}"] for name in ("8", "11")}
    for options, flags in (
        ({}, ()),
        ({"half": True}, ("FP16",)),
        ({"quantized": True}, ("INT8", "FP16")),
    ):
        model = onnxfile.read_model(toy(**options).save(tmp_path / "toy.onnx"))
        assert tensorrt.builder_flags(rules["8"], model) == flags
        assert tensorrt.builder_flags(rules["11"], model) == ()


def test_tensorrt_8_has_no_int64_inputs() -> None:
    ids = TensorSpec("ids", "int64", (1, 8))
    tensorrt.check_types(_trt.GENERATIONS["tensorrt 10"], (ids,))
    with pytest.raises(OptionError, match="ids: int64"):
        tensorrt.check_types(_trt.GENERATIONS["tensorrt 8"], (ids,))


def test_without_full_tensorrt_it_says_which_version_fits_which_gpu(
    toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy().save(tmp_path / "m.onnx")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    here = tensorrt.availability()
    assert not here.builds
    assert "tensorrt-cu12==10.4.*" in here.fix
    with pytest.raises(BackendError, match="tensorrt is not installed"):
        tensorrt.build(opened.read(tmp_path / "m.onnx"), tmp_path / "m.engine", BuildOptions())


def test_full_tensorrt_without_a_gpu_cannot_even_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(_cuda, "absence", lambda: "no GPU")
    here = tensorrt.availability()
    assert (here.builds, here.runs) == (False, False)
    assert here.reason == "TensorRT builds only on the GPU that it builds for: no GPU"


def test_the_absence_of_a_gpu_has_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def runtime(status: int, count: int) -> Any:
        code = SimpleNamespace(name="cudaErrorNoDevice")
        kind = type("Code", (), {"__int__": lambda _: status, "name": code.name})
        return SimpleNamespace(cudaGetDeviceCount=lambda: (kind(), count))

    for found, reason in (
        (runtime(100, 0), "no CUDA driver or GPU (cudaErrorNoDevice)"),
        (runtime(0, 0), "no GPU"),
        (runtime(0, 2), ""),
    ):
        monkeypatch.setattr(importlib, "import_module", lambda _, found=found: found)
        assert _cuda.absence() == reason

    def missing(_: str) -> Any:
        raise ImportError

    monkeypatch.setattr(importlib, "import_module", missing)
    assert _cuda.absence() == "cuda-python is not installed"


def test_the_own_gpu_is_the_default_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cuda, "absence", lambda: "")
    properties = SimpleNamespace(major=8, minor=9)
    runtime = SimpleNamespace(cudaGetDeviceProperties=lambda _: (Status.cudaSuccess, properties))
    monkeypatch.setattr(importlib, "import_module", lambda _: runtime)
    assert tensorrt_rtx._own() == ("89",)
