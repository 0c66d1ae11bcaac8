"""Our ops as TensorRT plugins (IPluginV3) made in Python.

Shapes and formats are Python; the kernels are compiled by nvcc when the first one runs, for the GPU
at hand. No CUDA call is made before: engines are built ahead of time on machines without a GPU.
`enqueue` needs a GPU and is not run in CI; what it calls is (`ops.launching`).
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deploykit import ops
from deploykit.backends import _cuda
from deploykit.errors import BackendError, DeployError, OptionError
from deploykit.files import temporaries
from deploykit.ops import launching
from deploykit.ops.launching import Buffers
from deploykit.ops.plugin import NAMESPACE, OPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from deploykit.ops.plugin import Plugin, Size

Trt: TypeAlias = Any
"""The tensorrt or tensorrt_rtx module, or one of its objects: neither ships types."""
Say: TypeAlias = "Callable[[str], None]"
_IDENTITY = ("plugin_namespace", "plugin_version")
"""Attributes of a node that name the op; the parser may hand them on."""


def kernels(plugin: Plugin) -> ctypes.CDLL:
    """Return the launcher of an op, compiled for this GPU. Raises: BackendError."""
    return _compiled(source(plugin))


def source(plugin: Plugin) -> Path:
    """Return the file that holds an op's kernels. Raises: BackendError where it is not there."""
    assert plugin.file is not None  # that it was loaded from
    path = plugin.file.with_name(plugin.source)
    if not path.is_file():
        raise BackendError(
            f"{plugin.name} has no kernels: there is no {path}",
            expected="the CUDA source beside the op's file",
        )
    return path


@functools.cache
def _compiled(path: Path) -> ctypes.CDLL:
    compiler = shutil.which("nvcc")
    if compiler is None:
        raise BackendError(
            "plugins from Python are compiled by nvcc, which is not on PATH",
            fix="install the CUDA toolkit, or build the engine with --plugins LIBRARY",
        )
    with temporaries.folder() as folder:
        target = folder / "kernels.so"
        command = command_line(compiler, f"sm_{_cuda.compute_capability()}", path, target)
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - the user's compiler, on our source or one that the user named
        if done.returncode:
            raise BackendError(f"nvcc cannot compile {path}:\n{done.stderr.strip()}")
        return ctypes.CDLL(str(target))


def command_line(compiler: str, architecture: str, path: Path, target: Path) -> list[str]:
    """Return the command that makes a shared library of a kernel source."""
    options = ["-O3", "-std=c++17", "-shared", "-Xcompiler", "-fPIC", f"-arch={architecture}"]
    return [compiler, *options, f"-I{OPS.folder()}", str(path), "-o", str(target)]


def register(trt: Trt, names: Sequence[str], say: Say) -> None:
    """Register a creator for each op type; say: takes what a creator refuses."""
    registry = trt.get_plugin_registry()
    taken = {(c.name, c.plugin_namespace) for c in registry.all_creators}
    known = ops.everything()
    for name in names:
        if (name, NAMESPACE) not in taken:
            creator = make_creator(trt, known[name], say)
            registry.register_creator(creator, NAMESPACE)
            _registered.append(creator)


_registered: list[object] = []
"""The registry keeps no reference of its own to a creator made in Python."""


@dataclass(frozen=True)
class Types:
    """The element types of a module, by name."""

    float32: Trt
    float16: Trt
    int32: Trt

    @classmethod
    def of(cls, trt: Trt) -> Types:
        """Return those of a module."""
        return cls(trt.DataType.FLOAT, trt.DataType.HALF, trt.DataType.INT32)


def make_creator(trt: Trt, plugin: Plugin, say: Say) -> Trt:
    """Return the creator of one op."""

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]  # the module ships no types
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace = plugin.name, NAMESPACE
            self.plugin_version = plugin.version
            defaults = {a.name: a.default for a in plugin.attributes}
            self.field_names = trt.PluginFieldCollection(_fields(trt, defaults))

        def create_plugin(self, name: str, given: Trt, phase: Trt) -> Trt:
            del phase
            try:
                values = ops.complete(plugin, _values(plugin, given), f"node {name!r}")
            except DeployError as error:
                say(f"[E] {plugin.name}: {error}")
                return None
            return make_plugin(trt, plugin, values)

    return Creator()


def _fields(trt: Trt, values: Mapping[str, Any]) -> list[Trt]:
    """Return attributes as plugin fields."""
    kinds = trt.PluginFieldType
    return [
        trt.PluginField(name, value.encode(), kinds.CHAR)
        if isinstance(value, str)
        else trt.PluginField(name, np.array(value, np.int32).reshape(-1), kinds.INT32)
        if isinstance(value, int)
        else trt.PluginField(name, np.array(value, np.float32).reshape(-1), kinds.FLOAT32)
        for name, value in values.items()
    ]


def _values(plugin: Plugin, given: Trt) -> dict[str, Any]:
    """Return plugin fields as attributes. Raises: OptionError for one that cannot be read."""
    kinds = {a.name: type(a.default) for a in plugin.attributes}
    found: dict[str, Any] = {}
    for item in given:
        if item.name in _IDENTITY:
            continue
        try:
            found[item.name] = _value(item.data, kinds.get(item.name, tuple))
        except (TypeError, ValueError, UnicodeDecodeError) as error:
            raise OptionError(f"{plugin.name}: {item.name} cannot be read: {error}") from error
    return found


def _value(data: Any, kind: type) -> Any:  # noqa: ANN401 - of the attribute's type
    if kind is str:
        raw = data.tobytes() if hasattr(data, "tobytes") else bytes(data)
        return raw.rstrip(b"\0").decode()
    given = np.asarray(data)
    if given.dtype.itemsize == 1:
        raise TypeError("it is text")
    numbers = given.reshape(-1).tolist()
    if kind is tuple:
        return tuple(numbers)
    (number,) = numbers
    return number


class _Behaviour:
    """What a plugin does, apart from TensorRT's own base classes."""

    def __init__(self, trt: Trt, plugin: Plugin, values: Mapping[str, Any]) -> None:
        for part in _parts(trt):
            part.__init__(self)
        self._trt, self._plugin, self._values = trt, plugin, values
        self._launcher, self._types = launching.launcher(plugin), Types.of(trt)
        self.num_outputs = len(plugin.outputs)
        self.plugin_name, self.plugin_namespace = plugin.name, NAMESPACE
        self.plugin_version = plugin.version

    def get_capability_interface(self, kind: Trt) -> Trt:
        del kind
        return self

    def clone(self) -> Trt:
        return make_plugin(self._trt, self._plugin, self._values)

    def get_output_data_types(self, inputs: Sequence[Trt]) -> list[Trt]:
        count = len(inputs)
        types = [self._type(count + i, count) for i in range(self.num_outputs)]
        first = self._plugin.features or 0  # a type is only left open where there is one
        return [inputs[first] if one is None else one for one in types]

    def get_output_shapes(self, inputs: Trt, shapes: Trt, builder: Trt) -> list[Trt]:
        del shapes
        return [
            _dims(
                self._trt,
                [[_term(f, self._values, inputs, builder) for f in fs] for fs in sizes],
                builder,
            )
            for sizes in self._launcher.shapes
        ]

    def supports_format_combination(self, place: int, described: Trt, inputs: int) -> bool:
        asked = described[place].desc
        if asked.format != self._trt.TensorFormat.LINEAR:
            return False
        wanted = self._type(place, inputs)
        if wanted is not None:
            return bool(asked.type == wanted)
        first = self._plugin.features or 0
        if place == first:
            return asked.type in (self._types.float32, self._types.float16)
        return bool(asked.type == described[first].desc.type)

    def _type(self, place: int, inputs: int) -> Trt:
        """Return the type of a tensor, inputs before outputs; None: that of the features."""
        if place < inputs:
            return getattr(self._types, self._plugin.input(place).dtype or "features", None)
        dtype = self._plugin.outputs[place - inputs].dtype
        if dtype in self._plugin.names:  # the type of that input
            dtype = self._plugin.inputs[self._plugin.names.index(dtype)].dtype or "features"
        return getattr(self._types, dtype, None)

    def configure_plugin(self, inputs: Trt, outputs: Trt) -> None:
        pass

    def on_shape_change(self, inputs: Trt, outputs: Trt) -> None:
        pass

    def get_valid_tactics(self) -> list[int]:
        return []

    def set_tactic(self, tactic: int) -> None:
        pass

    def get_workspace_size(self, inputs: Trt, outputs: Trt) -> int:
        del outputs
        measure = self._launcher.workspace
        return 0 if measure is None else measure(self._values, [tuple(one.max) for one in inputs])

    def get_fields_to_serialize(self) -> Trt:
        return self._trt.PluginFieldCollection(_fields(self._trt, self._values))

    def attach_to_context(self, context: Trt) -> Trt:
        del context
        return self.clone()

    def enqueue(  # noqa: PLR0913, PLR0917 - TensorRT's signature
        self,
        described: Trt,
        results: Trt,
        inputs: Sequence[int],
        outputs: Sequence[int],
        workspace: int,
        stream: int,
    ) -> None:
        del results
        params = self._launcher.params(self._values, [tuple(one.dims) for one in described])
        first = self._plugin.features
        half = first is not None and described[first].type == self._types.float16
        buffers = Buffers(inputs, outputs, workspace, stream)
        element = "float16" if half else "float32"
        launching.launch(kernels(self._plugin), self._plugin, params, buffers, element)


def _parts(trt: Trt) -> tuple[Trt, ...]:
    return (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)


def make_plugin(trt: Trt, plugin: Plugin, values: Mapping[str, Any]) -> Trt:
    """Return one use of an op; values: its attributes, complete."""
    kind = type(plugin.name, (_Behaviour, *_parts(trt)), {})
    return kind(trt, plugin, values)


def _dims(trt: Trt, sizes: Sequence[Sequence[Trt]], builder: Trt) -> Trt:
    """Return the symbolic dimensions of one output, each the product of some sizes."""
    dims = trt.DimsExprs(len(sizes))
    for axis, (first, *more) in enumerate(sizes):
        product = first
        for term in more:
            product = builder.operation(trt.DimensionOperation.PROD, product, term)
        dims[axis] = product
    return dims


def _term(size: Size, values: Mapping[str, Any], inputs: Trt, builder: Trt) -> Trt:
    if isinstance(size, tuple):
        place, axis = size
        return inputs[place][axis]
    return builder.constant(values[size] if isinstance(size, str) else size)
