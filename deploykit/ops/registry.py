"""Which ops are known: those that deploykit ships, and those that the user named.

An op of one's own is a file. It is known inside `known(file)`, as the command line's `--op FILE`
makes it, and wherever a network in this process has called it (`torch_op`). So is a library of
plugins, which TensorRT loads code from. A model or a sidecar never names one: what they say is
only compared with what the user named.
"""

from __future__ import annotations

import contextlib
import functools
import re
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import OptionError
from deploykit.ops.plugin import NAMESPACE, OPS

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    import onnx_ir as ir

    from deploykit.ops.plugin import Plugin

_NAME = re.compile(r"DK[A-Z][A-Za-z0-9]*")
_given: ContextVar[Mapping[str, Plugin]] = ContextVar("_given", default={})  # noqa: B039 - never changed in place
_library: ContextVar[Path | None] = ContextVar("_library", default=None)
_called: dict[str, Plugin] = {}
"""Op type -> what `torch_op` made: torch keeps its ops as long as the process, and so do we."""


def load(name: str | os.PathLike[str]) -> Plugin:
    """Return the op called `name`, the stem of our files, or that of a file of one's own.

    Raises: OptionError where there is none, or its name is not one that parsers leave alone.
    """
    text = str(name)
    found = OPS.load(text)
    path = Path(text) if text.endswith(".py") else OPS.shipped()[text]
    if _NAME.fullmatch(found.name) is None:
        raise OptionError(
            f"the op in {path} is called {found.name!r}",
            expected="DK and a word: a parser takes an op type that it knows for its own",
        )
    return replace(found, file=path.resolve())


@functools.cache
def shipped() -> Mapping[str, Plugin]:
    """Return op type -> op of every one that deploykit ships."""
    found = map(load, OPS.shipped())
    return {plugin.name: plugin for plugin in found}


@contextlib.contextmanager
def known(
    *files: str | os.PathLike[str], library: str | os.PathLike[str] | None = None
) -> Iterator[None]:
    """Let the ops in these files be known within the block, beside ours.

    library: of plugins, for the engines that need one.

    Raises: OptionError for a file that defines no op, or one of a name that is taken.
    """
    found = dict(_given.get())
    for file in files:
        plugin = load(file)
        other = {**shipped(), **found}.get(plugin.name)
        if other is not None and other.file != plugin.file:
            raise OptionError(
                f"{plugin.name} of {file} is the name of another op",
                expected="one file for each op, and names that deploykit does not use",
                fix="rename the op",
            )
        found[plugin.name] = plugin
    given = _given.set(found)
    trusted = _library.set(_library.get() if library is None else Path(library))
    try:
        yield
    finally:
        _given.reset(given)
        _library.reset(trusted)


def library() -> Path | None:
    """Return the plugin library that the user named, None where none was."""
    return _library.get()


def call(plugin: Plugin) -> None:
    """Keep an op that this process has made a torch op of. Raises: OptionError."""
    other = _called.setdefault(plugin.op, plugin)
    if other.file != plugin.file:
        raise OptionError(
            f"{plugin.name} in {plugin.file} is the name of another op, in {other.file}",
            fix="rename one of the two",
        )


def everything() -> Mapping[str, Plugin]:
    """Return op type -> op of every one that is known here."""
    return {**{op.name: op for op in _called.values()}, **shipped(), **_given.get()}


def op_of(node: ir.Node) -> Plugin | None:
    """Return the op of ours, or of the user's, that a node is; None where it is none."""
    return everything().get(node.op_type) if node.domain == NAMESPACE else None
