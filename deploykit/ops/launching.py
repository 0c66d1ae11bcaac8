"""The compiled kernels of an op, called from Python.

A launcher is `int deploykit_<op>(params, inputs..., outputs...[, workspace][, element], stream)`,
where several inputs of one name go as an array of pointers, and `element` is the type of the
features, for an op that has some. The op's file says what its parameters are (`Plugin.launcher`).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.ops.plugin import Launcher, Plugin

ELEMENTS = ("float32", "float16", "int8")
"""Types of features, by the launchers' numbers."""


@dataclass(frozen=True)
class Buffers:
    """Addresses that one call reads and writes, and its stream."""

    inputs: Sequence[int]
    outputs: Sequence[int]
    workspace: int = 0
    stream: int = 0


def launcher(plugin: Plugin) -> Launcher:
    """Return how an op's kernels are called. Raises: BackendError where its file does not say."""
    if plugin.launcher is None:
        raise BackendError(
            f"{plugin.name} has kernels that Python cannot call: its file has no `launcher`",
            fix="build the engine with --plugins LIBRARY, or with --plugins none",
        )
    return plugin.launcher


def launch(
    library: ctypes.CDLL,
    plugin: Plugin,
    params: ctypes.Structure,
    buffers: Buffers,
    element: str = "float32",
) -> None:
    """Call the launcher of `plugin` in a library of compiled kernels.

    element: type of the features, one of `ELEMENTS`. Raises: BackendError with the CUDA error.
    """
    single = len(plugin.inputs) - plugin.variadic
    arguments: list[Any] = [ctypes.c_void_p(address) for address in buffers.inputs[:single]]
    if plugin.variadic:
        several = buffers.inputs[single:]
        arguments.append((ctypes.c_void_p * len(several))(*several))
    arguments += [ctypes.c_void_p(address) for address in buffers.outputs]
    if launcher(plugin).workspace is not None:
        arguments.append(ctypes.c_void_p(buffers.workspace))
    if plugin.features is not None:
        arguments.append(ELEMENTS.index(element))
    function = getattr(library, f"deploykit_{plugin.op}")
    status = function(ctypes.byref(params), *arguments, ctypes.c_void_p(buffers.stream))
    if status:
        raise BackendError(f"the kernels of {plugin.name} failed: CUDA error {status}")
