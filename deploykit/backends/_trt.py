"""What TensorRT and TensorRT-RTX share: from an ONNX file to a serialized engine.

Every function takes the `trt` module as a parameter: `tensorrt` 8.6 to 11, or `tensorrt_rtx`.
It runs in the builder's own process (`_builder_process`), for a native abort must not take the
user's process with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.backends import _plugins
from deploykit.errors import BackendError, OptionError
from deploykit.files import artifacts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Trt = Any
    """The tensorrt or tensorrt_rtx module: neither ships types."""


_ERROR = "[E] "
_REFUSAL = f"{_ERROR}DK"
"""How a line begins in which the creator of one of our plugins refuses a node."""


@dataclass(frozen=True)
class Generation:
    """How one generation of the API differs from the others."""

    network_flags: tuple[str, ...]
    """Names, for STRONGLY_TYPED is 1 in TensorRT 10 and 0 in 11."""
    precision_flags: bool
    """Weakly typed: Q/DQ and FP16 in the graph also need a builder flag."""
    int64_io: bool
    timing_cache: bool
    cuda_targets: bool
    """Engines for GPUs that are not present (`--sm`)."""
    runtime_config: bool
    """Kernels are compiled when the engine is loaded, as a runtime configuration says."""


GENERATIONS: Mapping[str, Generation] = {
    "tensorrt 8": Generation(
        ("EXPLICIT_BATCH",),
        precision_flags=True,
        int64_io=False,
        timing_cache=True,
        cuda_targets=False,
        runtime_config=False,
    ),
    "tensorrt 10": Generation(
        ("STRONGLY_TYPED",),
        precision_flags=False,
        int64_io=True,
        timing_cache=True,
        cuda_targets=False,
        runtime_config=False,
    ),
    "tensorrt 11": Generation(
        (),
        precision_flags=False,
        int64_io=True,
        timing_cache=True,
        cuda_targets=False,
        runtime_config=False,
    ),
    "tensorrt_rtx 1": Generation(
        (),
        precision_flags=False,
        int64_io=True,
        timing_cache=False,
        cuda_targets=True,
        runtime_config=True,
    ),
}


@dataclass(frozen=True)
class Request:
    """One build, in values that travel as JSON."""

    module: str
    model: str
    output: str = ""
    sms: tuple[str, ...] = ()
    shapes: Mapping[str, tuple[tuple[int, ...], ...]] | None = None
    workspace: int | None = None
    timing_cache: str | None = None
    plugins: Mapping[str, Any] | None = None
    """`_plugins.Use` as JSON; None: the model has none of our ops."""
    ops: tuple[str, ...] = ()
    """Files of the user's own ops among them."""
    builder_flags: tuple[str, ...] = ()
    """INT8 and FP16, for a weakly typed generation only."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Request:
        """Return the request whose fields, as `asdict` gives them, have been JSON."""
        lists = {name: tuple(each) for name, each in fields.items() if isinstance(each, list)}
        return cls(**{**fields, **lists})


def generation(trt: Trt) -> Generation:
    """Return the row for a module. Raises: BackendError for a generation that was never seen."""
    name = f"{trt.__name__.rpartition('.')[2]} {trt.__version__.partition('.')[0]}"
    if name not in GENERATIONS:
        raise BackendError(
            f"{trt.__name__} {trt.__version__} is not supported",
            expected="one of " + ", ".join(GENERATIONS),
            fix="install one of these versions",
        )
    return GENERATIONS[name]


def build(trt: Trt, request: Request, say: Callable[[str], None]) -> str | None:
    """Write the engine; return the inspector's JSON, None where the engine cannot be loaded here.

    say: takes each line of the native log.

    Raises: BackendError, OptionError, OutputError.
    """
    rules = generation(trt)
    refusals: list[str] = []

    def heard(line: str) -> None:
        if line.startswith(_REFUSAL):
            refusals.append(line.removeprefix(_ERROR))
        say(line)

    log = logger(trt, heard)
    builder = trt.Builder(log)
    network = builder.create_network(_network_flags(trt, rules))
    use = _plugins.from_json(request.plugins)
    if use is not None:
        _plugins.register(trt, use, heard)
    _parse(trt, network, log, request.model, refusals)
    if use is not None:
        _plugins.check_layers(trt, network, use)
    config = _config(trt, builder, rules, request)
    cache = _timing_cache(config, request)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BackendError(f"{trt.__name__} could not build {Path(request.model).name}")
    _write(Path(request.output), plan)
    if cache is not None and request.timing_cache is not None:
        _write(Path(request.timing_cache), config.get_timing_cache().serialize())
    return None if rules.cuda_targets else inspection(trt, log, plan)


def logger(trt: Trt, say: Callable[[str], None]) -> Any:  # noqa: ANN401 - a native object
    """Return a native logger that says `[W] message` for everything but its verbose chatter."""
    quiet = trt.ILogger.VERBOSE

    class Log(trt.ILogger):  # type: ignore[misc]  # the module ships no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - a native enum
            if severity != quiet:
                say(f"[{severity.name[0]}] {message}")

    return Log()


def _network_flags(trt: Trt, rules: Generation) -> int:
    named = (getattr(trt.NetworkDefinitionCreationFlag, name) for name in rules.network_flags)
    return sum(1 << int(flag) for flag in named)


def _parse(trt: Trt, network: Any, log: Any, model: str, refusals: Sequence[str]) -> None:  # noqa: ANN401 - native objects
    """Fill `network` from the ONNX file. Raises: BackendError naming every node refused.

    refusals: what the creators of our plugins said by then.
    """
    parser = trt.OnnxParser(network, log)
    if parser.parse_from_file(model):
        return
    errors = [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)]
    errors += refusals
    raise BackendError(
        f"{trt.__name__} cannot read {Path(model).name}: "
        + "; ".join(errors or ["no reason given"]),
        fix="export the model without these ops, or keep them out of the graph that is built",
    )


def _parser_error(error: Any) -> str:  # noqa: ANN401 - a native object
    """Return `node 'x' (Op): reason`; old parsers know only the node's index."""
    name = getattr(error, "node_name", str)()
    op = getattr(error, "node_operator", str)() or "unknown op"
    return f"node {repr(name) if name else error.node()} ({op}): {error.desc()}"


def _config(trt: Trt, builder: Any, rules: Generation, request: Request) -> Any:  # noqa: ANN401 - native objects
    config = builder.create_builder_config()
    if request.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace)
    for name in request.builder_flags:
        config.set_flag(getattr(trt.BuilderFlag, name))
    if request.sms and rules.cuda_targets:
        _set_targets(trt, config, request.sms)
    if hasattr(config, "profiling_verbosity"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request.shapes:
        profile = builder.create_optimization_profile()
        for name, shapes in request.shapes.items():
            profile.set_shape(name, *map(tuple, shapes))
        if config.add_optimization_profile(profile) < 0:
            raise OptionError(f"{trt.__name__} refuses the shapes {dict(request.shapes)}")
    return config


def _set_targets(trt: Trt, config: Any, sms: tuple[str, ...]) -> None:  # noqa: ANN401 - a native object
    config.num_compute_capabilities = len(sms)
    for index, sm in enumerate(sms):
        capability = getattr(trt.ComputeCapability, f"SM{sm}", None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise OptionError(
                f"{trt.__name__} {trt.__version__} cannot build for SM{sm}",
                fix="install a newer version of it",
            )


def _timing_cache(config: Any, request: Request) -> Any:  # noqa: ANN401 - native objects
    """Return the timing cache in use, filled from its file where there is one."""
    if request.timing_cache is None:
        return None
    path = Path(request.timing_cache)
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _write(path: Path, data: Any) -> None:  # noqa: ANN401 - a native buffer
    try:
        path.write_bytes(data)
    except OSError as error:
        raise artifacts.unwritable(path, error) from error


def inspection(trt: Trt, log: Any, plan: Any) -> str | None:  # noqa: ANN401 - native objects
    """Return the engine inspector's JSON, None where the engine cannot be loaded here.

    Formats are only known for given shapes: those of the profile's typical batch.
    """
    engine = trt.Runtime(log).deserialize_cuda_engine(plan)
    if engine is None:
        return None
    context = engine.create_execution_context()
    for name in tensor_names(engine, trt.TensorIOMode.INPUT):
        if -1 in tuple(engine.get_tensor_shape(name)):
            context.set_input_shape(name, engine.get_tensor_profile_shape(name, 0)[1])
    inspector = engine.create_engine_inspector()
    inspector.execution_context = context
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def tensor_names(engine: Any, mode: Any) -> list[str]:  # noqa: ANN401 - native objects
    """Return the names of an engine's inputs or outputs."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [name for name in names if engine.get_tensor_mode(name) == mode]
