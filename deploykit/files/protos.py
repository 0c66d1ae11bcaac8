"""What an ONNX file holds, before it is a graph in memory: every graph in it, and its domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx import AttributeProto

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto

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
