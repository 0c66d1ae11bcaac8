"""Our ops in PyTorch: called by networks, and written as nodes by the exporter."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from onnx.defs import OpSchema

from deploykit.errors import OptionError
from deploykit.ops import registry
from deploykit.ops.attributes import TAGS, checked, plain
from deploykit.ops.plugin import NAMESPACE

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from deploykit.ops.plugin import Plugin

_TORCH_TYPES: Mapping[type, str] = {int: "int", float: "float", str: "str", tuple: "float[]"}
_ONNX_TYPES = {
    int: OpSchema.AttrType.INT,
    float: OpSchema.AttrType.FLOAT,
    str: OpSchema.AttrType.STRING,
    tuple: OpSchema.AttrType.FLOATS,
}
_ELEMENTS = ["tensor(float)", "tensor(float16)", "tensor(int8)", "tensor(int32)", "tensor(int64)"]


def torch_op(name: str | os.PathLike[str]) -> Callable[..., Any]:
    """Return a torch op that torch.export traces: ours called `name`, or that of a file.

    name: the stem of our op's files, or the path of a file of one's own.

    Tensors are positional, attributes keywords with defaults. Raises: OptionError for an
    unknown op, and when called with an attribute that is not valid.
    """
    return _defined(str(name))


@functools.cache
def _defined(name: str) -> Callable[..., Any]:
    import torch  # noqa: PLC0415 - slow, and bodies need none of it

    plugin = registry.load(name)
    registry.call(plugin)
    library = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]  # torch
    library.define(plugin.op + _signature(plugin))  # type: ignore[no-untyped-call]  # torch
    qualified = f"{NAMESPACE}::{plugin.op}"
    torch.library.impl(qualified, "CompositeExplicitAutograd", plugin.reference, lib=library)
    torch.library.register_fake(qualified, plugin.fake, lib=library)
    _libraries.append(library)
    packet = getattr(getattr(torch.ops, NAMESPACE), plugin.op)

    def call(*tensors: Any, **attributes: Any) -> Any:  # noqa: ANN401 - as the plugin declares
        return packet(*tensors, **checked(plugin, attributes, OptionError))

    return call


_libraries: list[object] = []
"""What torch.library made: an op ends with the library that defined it."""


def _signature(plugin: Plugin) -> str:
    """Return the op's signature in torch's schema language."""
    tensors = [f"Tensor {name}" for name in plugin.names]
    if plugin.variadic:
        tensors[-1] = f"Tensor[] {plugin.names[-1]}"
    options = [f"{_TORCH_TYPES[type(a.default)]} {a.name}" for a in plugin.attributes]
    results = ", ".join("Tensor" for _ in plugin.outputs)
    returned = f"({results})" if len(plugin.outputs) > 1 else results
    return f"({', '.join([*tensors, '*', *options])}) -> {returned}"


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return torch op -> ONNX translation for `torch.onnx.export`, for every op known here."""
    import torch  # noqa: PLC0415 - slow, and bodies need none of it

    namespace, found = getattr(torch.ops, NAMESPACE), registry.everything().values()
    for plugin in registry.shipped().values():
        torch_op(plugin.op)  # a network may be exported before it ever ran
    made = [plugin for plugin in found if hasattr(namespace, plugin.op)]
    return {getattr(namespace, plugin.op).default: _translation(plugin) for plugin in made}


def _translation(plugin: Plugin) -> Callable[..., Any]:
    """Return the function that writes the node of one call for `torch.onnx.export`."""
    from onnxscript import values  # noqa: PLC0415 - slow

    domain = values.Opset(NAMESPACE, int(plugin.version))
    tags = dict(zip(TAGS, (NAMESPACE, plugin.version), strict=True))

    def translate(*tensors: Any, **attributes: Any) -> Any:  # noqa: ANN401 - the exporter's
        flat = [*tensors[:-1], *tensors[-1]] if plugin.variadic else list(tensors)
        operator = values.Op(domain, plugin.name, _schema(plugin, len(flat)))
        return operator(*flat, **plain(attributes), **tags)

    return translate


def _schema(plugin: Plugin, count: int) -> OpSchema:
    """Return the ONNX schema of the op with `count` inputs."""
    parameter, any_type = OpSchema.FormalParameter, "T"
    outputs = [
        parameter(o.name, "tensor(int32)" if o.dtype == "int32" else any_type)
        for o in plugin.outputs
    ]
    options = [
        OpSchema.Attribute(a.name, _ONNX_TYPES[type(a.default)], "", required=False)
        for a in plugin.attributes
    ]
    tags = [OpSchema.Attribute(t, OpSchema.AttrType.STRING, "", required=False) for t in TAGS]
    return OpSchema(
        plugin.name,
        NAMESPACE,
        int(plugin.version),
        inputs=[parameter(f"input{i}", f"T{i}") for i in range(count)],
        outputs=outputs,
        attributes=[*options, *tags],
        type_constraints=[
            (name, _ELEMENTS, "") for name in (any_type, *(f"T{i}" for i in range(count)))
        ],
    )
