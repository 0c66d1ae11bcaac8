"""The kernels of a TensorRT-RTX engine, read from the program text inside the file.

No GPU-less machine can deserialize an engine, so the engine inspector is out of reach where
engines are built ahead of time. But the file holds its program as text: a header with a version,
a table of tensors with element types, then one statement per kernel:

    header { version = 5 ... }
    descriptors { tensor={ ... name="x" ... type=int8 } ... }
    main {
      corrltn={ name="conv1" output={"y" } input={"x" "w" } ... layers="[ONNX Layer: conv1]" }
      function={ name=__myl_AddRelu ... layers="[ONNX Layer: relu1]" }
    }

The form is undocumented. A version that was not seen yields nothing, and so `unknown`, never a
guess. What the text cannot show: which kernels the JIT finally picks on the GPU.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from deploykit.backends._layers import EngineLayer

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = b"vtrt"
"""First bytes of an engine of TensorRT-RTX 1.7."""
VERSIONS = ("4", "5")
"""Of the program text, as TensorRT-RTX 1.7.1 writes it: 5, and 4 for a nested program."""
WEIGHTED = ("corrltn", "deconvolution", "fully_connected", "runtime_fusion")
"""Convolution, transposed convolution, matrix product, and a matrix product fused with more."""
_ATTENTION = "_gemm_mha"
"""Start of the name of a kernel that is both products of an attention."""
_OPERANDS_OF_ATTENTION = 3

_HEADER = b"header {\n  version = "
_VERSION = re.compile(rb"(\d{1,9})\n")
_LONGEST = 1 << 17
"""Letters of a statement; a longer one is none that the builder wrote."""
_TYPE = re.compile(r" type=(\w+) \}")
_STATEMENT = re.compile(r"^  (\w+)=\{ (.*)$", re.MULTILINE)
_NAME = re.compile(r'name=(?:"([^"]*)"|(\S*))')
_OPERANDS = {
    "in": re.compile(r' (?:input|input_args)=\{((?:\s*"[^"]*")*)\s*\}'),
    "out": re.compile(r' (?:output|output_args)=\{((?:\s*"[^"]*")*)\s*\}'),
}
_LAYERS = re.compile(r' layers="([^"]*)"')
_ONNX = re.compile(r"\[ONNX Layer: (.*)\]$")
_ACCELERATORS = re.compile(rb"accelerators=\{(.*?)\}")


def kernels(plan: bytes) -> tuple[EngineLayer, ...]:
    """Return the kernels of an engine in the order they run; empty where none can be read.

    A fused matrix product is described by the program nested for it, not by its own statement.
    """
    found = [layer for program in _programs(plan) for layer in _kernels(program)]
    described = {
        node
        for layer in found
        if layer.weighted and layer.kind != "runtime_fusion"
        for node in layer.nodes
    }
    return tuple(
        layer
        for layer in found
        if layer.kind != "runtime_fusion" or not described.issuperset(layer.nodes)
    )


def targets(plan: bytes) -> tuple[str, ...]:
    """Return the compute capabilities an engine was built for, such as `86`."""
    found: dict[str, None] = {}
    for program in _programs(plan):
        names = _ACCELERATORS.search(program.header)
        for name in names[1].decode("ascii", "replace").split() if names else ():
            if name.startswith("sm"):
                found[name[2:]] = None
    return tuple(found)


class _Program(NamedTuple):
    """The parts of one program text."""

    version: bytes
    header: bytes
    descriptors: bytes
    main: bytes


def _programs(plan: bytes) -> Iterator[_Program]:
    """Yield every program text in a file, in time linear in its size: anybody may have made it."""
    start = plan.find(_HEADER)
    while start >= 0:
        version = _VERSION.match(plan, start + len(_HEADER))
        if version is None:
            start = plan.find(_HEADER, start + 1)
            continue
        places = [version.end()]
        for mark in (b"\ndescriptors {", b"\nmain {", b"\n}\n"):
            places.append(plan.find(mark, places[-1]))
            if places[-1] < 0:
                return  # nor is there one behind any later header
        header, descriptors, main, end = places
        parts = plan[header:descriptors], plan[descriptors:main], plan[main:end]
        yield _Program(version[1], *parts)
        start = plan.find(_HEADER, end)


def _types_of(descriptors: str) -> Iterator[tuple[str, str]]:
    """Yield name and element type of each tensor of a program; they stand one to a line."""
    for line in descriptors.splitlines():
        begin = line.find(' name="', line.find("tensor={"))
        kinds = _TYPE.findall(line) if "tensor={" in line and begin >= 0 else []
        name, quote, _ = line[begin + len(' name="') :].partition('"')
        if kinds and quote:
            yield name, kinds[-1]


def _kernels(program: _Program) -> Iterator[EngineLayer]:
    version, _, descriptors, main = (part.decode("utf-8", "replace") for part in program)
    if version not in VERSIONS:
        return
    types = dict(_types_of(descriptors))
    for kind, text in _STATEMENT.findall(main):
        nodes = _nodes(text) if len(text) < _LONGEST else ()
        if nodes:
            found = _NAME.search(text)
            name = (found[1] or found[2]) if found else kind
            inputs = _types(text, "in", types)
            attention = kind == "function" and name.startswith(_ATTENTION)
            yield EngineLayer(
                kind=kind,
                name=name,
                inputs=_multiplied(inputs) if attention else inputs,
                outputs=_types(text, "out", types),
                nodes=nodes,
                weighted=attention or kind in WEIGHTED,
            )


def _multiplied(inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Return the types that attention multiplies: Q, K and V stand among masks and addresses."""
    others = tuple(kind for kind in inputs if kind and kind != "int8")
    return ("int8",) * 3 if inputs.count("int8") >= _OPERANDS_OF_ATTENTION else others


def _types(text: str, side: str, types: dict[str, str]) -> tuple[str, ...]:
    operands = _OPERANDS[side].search(text)
    names = re.findall(r'"([^"]*)"', operands[1]) if operands else []
    return tuple(types.get(name, "") for name in names)


def _nodes(text: str) -> tuple[str, ...]:
    """Return the ONNX names of `[ONNX Layer: a]<1f>[ONNX Layer: b]`, without repeats."""
    layers = _LAYERS.search(text)
    parts = re.split(r"[\x1e\x1f]", layers[1]) if layers else []
    names = (match[1] for part in parts if (match := _ONNX.match(part)))
    return tuple(dict.fromkeys(names))
