"""Name nodes by the PyTorch module they came from, e.g. `backbone.stem.conv.Conv`."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from deploykit.graph.editing import Pass, is_op, nodes, unique, value_names

if TYPE_CHECKING:
    from collections.abc import Iterator, MutableMapping

    import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_TRACES = ("pkg.torch.", "pkg.onnxscript.", "namespace")
"""Metadata of the exporter: source lines and paths of the exporting machine among it."""
_WEIGHTED = ("Conv", "ConvTranspose", "Gemm")


def apply(model: ir.Model) -> bool:
    """Return whether the exporter had left its notes, which become names and go.

    A node is called after its module and operator, numbered where several are alike; a value
    after the node that makes it, with `_out`. Weights, inputs and outputs keep their names.
    """
    noted = [node for node in nodes(model) if _SCOPES in node.metadata_props]
    taken = {node.name for node in nodes(model) if node.name and node not in set(noted)}
    for node in noted:
        path = _module(node)
        node.name = unique(f"{path}.{node.op_type}" if path else node.op_type, taken)
    _rename_values(model.graph, [node for node in noted if node.graph is model.graph])
    return sum(_forget(properties) for properties in _properties(model)) > 0


def _module(node: ir.Node) -> str:
    """Return the path of the module that `node` computes; empty for the network itself."""
    weight = node.inputs[1] if is_op(node, *_WEIGHTED) else None
    if weight is not None and weight.is_initializer() and "." in (weight.name or ""):
        return str(weight.name).rpartition(".")[0]  # the scope of a fused pair is the last one's
    try:
        scopes = ast.literal_eval(node.metadata_props[_SCOPES])
    except (ValueError, SyntaxError):
        return ""
    modules = scopes[:-1] if isinstance(scopes, list) else []  # the last one is the operation
    return str(modules[-1]).partition("@")[0] if modules else ""  # @n: the n-th call of a module


def _rename_values(graph: ir.Graph, renamed: list[ir.Node]) -> None:
    outputs = [v for node in renamed for v in node.outputs if v.name and not v.is_graph_output()]
    taken = value_names(graph) - {str(value.name) for value in outputs}
    for value in outputs:
        node = value.producer()
        assert node is not None  # it is one of the node's outputs
        value.name = unique(f"{node.name}_out", taken)


def _properties(model: ir.Model) -> Iterator[MutableMapping[str, str]]:
    yield model.graph.metadata_props
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        yield value.metadata_props
    for node in nodes(model):
        yield node.metadata_props
        for value in node.outputs:
            yield value.metadata_props


def _forget(properties: MutableMapping[str, str]) -> bool:
    traces = [key for key in properties if key.startswith(_TRACES)]
    for key in traces:
        del properties[key]
    return bool(traces)


PASS = Pass("module_names", apply)
