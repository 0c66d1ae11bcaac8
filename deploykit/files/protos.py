"""ONNX files as messages of protobuf: the graphs in one, its domains, and what is added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import AttributeProto, GraphProto, ModelProto, ValueInfoProto

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from onnx import FunctionProto, NodeProto

_GRAPH: int = ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_CONTENT, _SEVEN_BITS = 2, 0x7F
"""In protobuf: how a field is marked whose size stands before it, and of what numbers are made."""
_LONG = "ai.onnx"
"""Another name for the domain of the standard ops, which is written as nothing."""


def graphs(proto: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """Yield every graph of a model, those inside nodes too."""
    pending: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        yield graph
        pending += [inner for node in graph.node for inner in _inner(node)]


def _inner(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def shorten_domains(proto: ModelProto) -> None:
    """Write the domain of the standard ops in one way, in place: with no name."""
    for owner in (proto, *proto.functions):
        imports = owner.opset_import
        short = next((entry for entry in imports if not entry.domain), None)
        for i in reversed(range(len(imports))):
            if imports[i].domain != _LONG:
                continue
            if short is None:
                short = imports[i]
                short.domain = ""
            else:
                short.version = max(short.version, imports[i].version)
                del imports[i]
    for graph in graphs(proto):
        for node in graph.node:
            if node.domain == _LONG:
                node.domain = ""


def with_outputs(data: bytes, names: Sequence[str]) -> bytes:
    """Return the content of a model's file with further tensors of the graph as its outputs."""
    outputs = [ValueInfoProto(name=name) for name in names]
    return joined(data, GraphProto(output=outputs)) if names else data


def joined(data: bytes, more: GraphProto) -> bytes:
    """Return the content of a model's file with nodes, weights and outputs behind its own.

    Joined messages are one message to protobuf, in which repeated fields follow each other: the
    weights are neither parsed nor written again.
    """
    content = more.SerializeToString()
    return b"".join([data, _head(_GRAPH, len(content)), content])


def _head(field: int, size: int) -> bytes:
    """Return what stands before the content of a field, a message of `size` bytes."""
    head = bytearray([field << 3 | _CONTENT])
    while size > _SEVEN_BITS:
        head.append(size & _SEVEN_BITS | ~_SEVEN_BITS & 0xFF)
        size >>= 7
    return bytes([*head, size])
