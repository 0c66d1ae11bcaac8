"""What an ONNX file must be before its graph is read: whole, in order, and of a size to be run.

Files that any exporter writes pass; what is refused would crash a library, run for ever or take all
memory there is.
"""

from __future__ import annotations

import graphlib
import math
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, numpy_helper

from deploykit.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

Graph: TypeAlias = "GraphProto | onnx.FunctionProto"
NESTED = 8
"""Graphs in one another: loops and branches of real models are two or three deep."""
NODES = 200_000
"""Of a model, its functions written out at each call."""
ELEMENTS = 1 << 31
"""Of one tensor, for one image."""
_GROWTH = 1 << 24
"""Factor by which one node may enlarge a tensor, or pixels that it may add on one side."""
_SMALL = 64
"""Elements of a constant that says a size."""
_SHOWN = 4
"""Nodes of a circle that a message names."""
_STANDARD = ("", "ai.onnx")
_LISTS = {
    int(TensorProto.FLOAT): "float_data",
    int(TensorProto.DOUBLE): "double_data",
    int(TensorProto.INT64): "int64_data",
}
_SIZES: dict[str, tuple[tuple[int, Callable[[list[Any]], float], int], ...]] = {
    "ConstantOfShape": ((0, math.prod, ELEMENTS),),
    "Expand": ((1, math.prod, ELEMENTS),),
    "Tile": ((1, math.prod, _GROWTH),),
    "Pad": ((1, max, _GROWTH),),
    "Resize": ((2, math.prod, _GROWTH), (3, math.prod, ELEMENTS)),
    "Upsample": ((1, math.prod, _GROWTH),),
}
"""Op -> which input says a size, what of it counts, and the most it may be."""


_RANKS = {"Conv": 3, "ConvTranspose": 3, "Gemm": 2}
"""Op -> how many sizes its weight has at least."""


def check(proto: onnx.ModelProto, where: Path) -> None:
    """Check what is in a model, and bring its nodes into order.

    Raises: ModelError naming what is wrong, and in which node.
    """
    functions = {(f.domain, f.name): f for f in proto.functions}
    _check_functions(functions, proto.graph, where)
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    for graph in (proto.graph, *functions.values()):
        for inner in _graphs(graph, where):
            _order(inner, where)
            _check_nodes(inner, versions, where)
    _check_sizes(proto, where)


def _bad(where: Path, found: str, expected: str = "") -> ModelError:
    return ModelError(f"{where} is damaged: {found}", expected=expected, fix="export it again")


def _named(node: NodeProto) -> str:
    return f"node {node.name!r} ({node.op_type})"


def _inner(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _graphs(graph: Graph, where: Path) -> Iterator[Graph]:
    """Yield a graph and all inside it. Raises: ModelError where they are nested too deep."""
    level: list[Graph] = [graph]
    for _ in range(NESTED):
        yield from level
        level = [inner for each in level for node in each.node for inner in _inner(node)]
    if level:
        raise _bad(
            where, f"graphs are nested more than {NESTED} deep", "flatter branches and loops"
        )


def _nodes(graph: Graph, where: Path) -> Iterator[NodeProto]:
    for each in _graphs(graph, where):
        yield from each.node


def _check_functions(
    functions: dict[tuple[str, str], onnx.FunctionProto], graph: GraphProto, where: Path
) -> None:
    """Check that functions do not call themselves, and stay small when they are written out."""
    calls = {
        key: [(node.domain, node.op_type) for node in _nodes(function, where)]
        for key, function in functions.items()
    }
    known = {key: functions.keys() & set(called) for key, called in calls.items()}
    sizes: dict[tuple[str, str], int] = {}
    try:
        for key in graphlib.TopologicalSorter(known).static_order():
            sizes[key] = sum(sizes.get(call, 1) for call in calls[key])
    except graphlib.CycleError as error:
        raise _bad(where, f"function {error.args[1][0][1]!r} calls itself") from error
    total = sum(sizes.get((node.domain, node.op_type), 1) for node in _nodes(graph, where))
    if total > NODES:
        raise ModelError(
            f"{where} has {total} nodes, functions written out", expected=f"at most {NODES}"
        )


def _order(graph: Graph, where: Path) -> None:
    """Bring nodes into the order they run; names are made once. Raises: ModelError for a circle."""
    made: set[str] = set()
    if isinstance(graph, GraphProto):
        made.update(value.name for value in (*graph.input, *graph.initializer))
    makers: dict[str, int] = {}
    for number, node in enumerate(graph.node):
        for name in filter(None, node.output):
            if name in made:
                raise _bad(where, f"{_named(node)} makes {name!r}, which is there already")
            made.add(name)
            makers[name] = number
    uses = {i: {makers[n] for n in _used(node) if n in makers} for i, node in enumerate(graph.node)}
    if all(maker < number for number, needed in uses.items() for maker in needed):
        return
    try:
        order = list(graphlib.TopologicalSorter(uses).static_order())
    except graphlib.CycleError as error:
        nodes = " -> ".join(_named(graph.node[number]) for number in error.args[1][:_SHOWN])
        raise _bad(where, f"its nodes run in a circle: {nodes}") from error
    nodes_in_order = [graph.node[number] for number in order]
    del graph.node[:]
    graph.node.extend(nodes_in_order)


def _used(node: NodeProto) -> Iterator[str]:
    """Yield every name that a node needs, inside its graphs too."""
    pending = [node]
    while pending:
        each = pending.pop()
        yield from each.input
        pending += [inner for graph in _inner(each) for inner in graph.node]


def _check_nodes(graph: Graph, versions: dict[str, int], where: Path) -> None:
    constants = {t.name: t for t in getattr(graph, "initializer", ())}
    for tensor in constants.values():
        _check_tensor(tensor, where)
    for node in graph.node:
        for attribute in node.attribute:
            for tensor in (attribute.t, *attribute.tensors):
                _check_tensor(tensor, where)
            if node.op_type == "Constant" and node.output and attribute.name == "value":
                constants[node.output[0]] = attribute.t
        if node.domain in _STANDARD:
            _check_form(node, versions.get("", versions.get("ai.onnx", 1)), where)
            _check_growth(node, constants, where)


def _check_tensor(tensor: TensorProto, where: Path) -> None:
    """Check that a tensor has the data that its size needs."""
    if any(dim < 0 for dim in tensor.dims):
        raise _bad(where, f"weight {tensor.name!r} has the shape {list(tensor.dims)}")
    count = math.prod(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL or not tensor.data_type:
        return
    held = len(getattr(tensor, _LISTS.get(tensor.data_type, "int32_data")))
    if tensor.HasField("raw_data"):
        held = len(tensor.raw_data) * 2  # down to four bits an element
    elif tensor.data_type == TensorProto.STRING:
        held = len(tensor.string_data)
    elif tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128, *_WIDE):
        return  # onnx itself checks what no vision model has
    if held < count and not (held * 2 >= count and tensor.data_type in _PACKED):
        raise _bad(where, f"weight {tensor.name!r} has {held} of {count} values")


_WIDE = (TensorProto.UINT32, TensorProto.UINT64)
_PACKED = tuple(
    getattr(TensorProto, name)
    for name in ("INT4", "UINT4", "FLOAT4E2M1")
    if hasattr(TensorProto, name)
)


def _check_form(node: NodeProto, version: int, where: Path) -> None:
    """Check how many inputs and outputs a standard op has, and the types of its attributes."""
    try:
        schema = onnx.defs.get_schema(node.op_type, version, "")
    except onnx.defs.SchemaError:
        return  # whoever runs the model says that it does not know the op
    if not schema.min_input <= len(node.input) <= schema.max_input:
        raise _bad(
            where,
            f"{_named(node)} has {len(node.input)} inputs",
            f"{schema.min_input} to {schema.max_input}",
        )
    if not schema.min_output <= len(node.output) <= schema.max_output:
        raise _bad(where, f"{_named(node)} has {len(node.output)} outputs")
    for attribute in node.attribute:
        known = schema.attributes.get(attribute.name)
        reference = attribute.ref_attr_name
        if known is not None and not reference and _number(known.type) != attribute.type:
            raise _bad(
                where, f"{_named(node)} has {attribute.name} of another type", str(known.type)
            )


def _number(kind: onnx.defs.OpSchema.AttrType) -> int:
    """Return the number that an attribute's type has in a file."""
    return int(getattr(kind, "value", -1))


def _check_growth(node: NodeProto, constants: dict[str, TensorProto], where: Path) -> None:
    """Check the constants of a node: sizes of weights, and how much it is told to make."""
    weight = constants.get(node.input[1]) if len(node.input) > 1 else None
    rank = _RANKS.get(node.op_type, 0)
    if weight is not None and len(weight.dims) < rank:
        raise _bad(
            where, f"{_named(node)} has a weight of shape {list(weight.dims)}", f"{rank} sizes"
        )
    if node.op_type == "Range":
        ends = [value for name in node.input for value in _values(constants.get(name))]
        if len(ends) == 3 and abs(ends[1] - ends[0]) > abs(ends[2]) * ELEMENTS:
            raise _bad(where, f"{_named(node)} is told to make {ends}", f"at most {ELEMENTS}")
    for index, reduce, most in _SIZES.get(node.op_type, ()):
        name = node.input[index] if index < len(node.input) else ""
        values = _values(constants.get(name))
        if values and abs(reduce(values)) > most:
            raise _bad(where, f"{_named(node)} is told to make {values}", f"at most {most}")


def _values(tensor: TensorProto | None) -> list[Any]:
    """Return the numbers of a small constant as Python's, which know no overflow."""
    if tensor is None or tensor.data_location == TensorProto.EXTERNAL:
        return []
    if tensor.data_type not in (TensorProto.INT64, TensorProto.INT32, TensorProto.FLOAT):
        return []
    if not 0 < math.prod(tensor.dims) <= _SMALL:
        return []
    values: list[Any] = np.ravel(numpy_helper.to_array(tensor)).tolist()
    return [value for value in values if math.isfinite(value)]


def _check_sizes(proto: onnx.ModelProto, where: Path) -> None:
    """Check that no tensor is too large for any machine, by the sizes that are known."""
    bare = onnx.ModelProto()
    bare.CopyFrom(without_weights(proto))
    try:
        inferred = onnx.shape_inference.infer_shapes(bare)
    except Exception:  # noqa: BLE001 - the errors of onnx have no common class; others judge the graph
        inferred = proto
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        count = math.prod(max(1, dim) for dim in dims)
        if count > ELEMENTS:
            raise ModelError(
                f"{where} makes {value.name!r} of shape {dims}: {count} values",
                expected=f"at most {ELEMENTS} in one tensor",
            )


def without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Return a model whose large weights are mere inputs, so that it is small."""
    kept = onnx.ModelProto()
    kept.ir_version = proto.ir_version
    kept.opset_import.extend(proto.opset_import)
    kept.functions.extend(proto.functions)
    graph = kept.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.value_info.extend(proto.graph.value_info)
    given = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            shape: Iterable[int] = tensor.dims
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(shape))
            )
    return kept
