"""Several sizes of image in one file: one graph, and for each further size what differs.

A network that is traced at two sizes gives the same nodes under the same names. What follows from
the size is constants: anchors, limits of boxes, sizes of maps. The file's own graph is that of the
first size. Each further one is a function of the domain DOMAIN that nobody calls: its outputs are
constants, under the names of the initializers that they replace. Whoever knows nothing of this
reads a model of the first size; every weight is there once, and all sizes stay fixed.
"""

from __future__ import annotations

import re
from collections import deque
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit import ops
from deploykit.errors import ModelError, OptionError
from deploykit.files import onnxfile
from deploykit.graph import inferring
from deploykit.ops.plugin import NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Size = tuple[int, int]
    """Height and width of the images, in pixels."""

DOMAIN = "deploykit.canvas"
_NAME = re.compile(r"(\d{1,6})x(\d{1,6})")
_SMALL = 1 << 20
"""Bytes of a constant that each reader may have for itself."""
_VERSION = 1


def sizes(model: ir.Model) -> tuple[Size, ...]:
    """Return the sizes of image that a model takes, that of its own graph first.

    Empty: its only input of that rank has no fixed height and width.
    """
    own = _own(model)
    return () if own is None else (own, *(_size(name) for name in _functions(model)))


def constants(model: ir.Model) -> frozenset[str]:
    """Return the initializers that are others for further sizes of image."""
    nodes = (node for function in _functions(model).values() for node in function)
    return frozenset(str(node.outputs[0].name) for node in nodes)


def merged(models: Sequence[ir.Model]) -> ir.Model:
    """Return the first of `models` with what the others, of other sizes, have different.

    The first one is changed. Raises: OptionError where more differs than constants.
    """
    first, *others = models
    for model in models if others else ():
        _name_by_reader(model.graph)
    for other in others:
        size = _own(other)
        assert size is not None  # our traces have fixed sizes
        graph = _constants(_differing(first, other, size), first.graph.opset_imports[""])
        function = ir.Function(DOMAIN, _name(size), "", graph=graph, attributes=[])
        first.functions[function.identifier()] = function
        first.opset_imports.setdefault(DOMAIN, _VERSION)
    return first


def _name_by_reader(graph: ir.Graph) -> None:
    """Give each reader of a constant that the exporter made one of its own, named after it.

    The exporter numbers its constants, and readers share equal ones: both follow from the size of
    image. Weights have the names of their modules, with a dot; nodes have names of their own.
    """
    for name in [name for name in graph.initializers if "." not in name]:
        shared = graph.initializers[name]
        large = shared.const_value is None or shared.const_value.nbytes > _SMALL
        uses = list(shared.uses())
        named = all(node.name for node, _ in uses)
        if shared.is_graph_output() or not named or (large and len(uses) > 1):
            continue
        for node, index in uses:
            own = ir.Value(
                name=f"{node.name}.{index}",
                shape=shared.shape,
                type=shared.type,
                const_value=shared.const_value,
            )
            graph.register_initializer(own)
            node.replace_input_with(index, own)
        del graph.initializers[name]


def split(model: ir.Model) -> dict[Size | None, ir.Model]:
    """Return a model of its own for each size; the model itself where it has only one.

    Raises: ModelError where the file's sizes do not belong to its graph.
    """
    functions = _functions(model)
    if not functions:
        return {_own(model): model}
    found: dict[Size | None, ir.Model] = {_own(model): _without(model)}
    for name, function in functions.items():
        found[_size(name)] = _replaced(model, _size(name), function)
    return found


def each(model: ir.Model, rewrite: Callable[[ir.Model], ir.Model]) -> ir.Model:
    """Return a model whose graph is rewritten for every size. Raises: as `split` and `merged`."""
    return merged([rewrite(one) for one in split(model).values()])


def _functions(model: ir.Model) -> dict[str, ir.Function]:
    found = {key[1]: function for key, function in model.functions.items() if key[0] == DOMAIN}
    for name in found:
        if not _NAME.fullmatch(name):
            raise ModelError(f"{DOMAIN}::{name} names no size", expected="a name such as 1344x800")
    return found


def _size(name: str) -> Size:
    height, width = name.split("x")
    return int(height), int(width)


def _name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _own(model: ir.Model) -> Size | None:
    """Return the size of the images that the graph itself takes."""
    value = _images(model)
    if value is None or value.shape is None:
        return None
    height, width = value.shape[2], value.shape[3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _images(model: ir.Model) -> ir.Value | None:
    """Return the first input of four dimensions."""
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return next((v for v in inputs if v.shape is not None and len(v.shape) == 4), None)


def _differing(first: ir.Model, other: ir.Model, size: Size) -> dict[str, ir.TensorProtocol]:
    """Return the initializers of `other` that differ. Raises: OptionError."""
    left, right = first.graph.initializers, other.graph.initializers
    odd = _odd_node(first.graph, other.graph)
    if odd or set(left) != set(right):
        odd = odd or f"constant {min(set(left) ^ set(right))!r}"
        raise OptionError(
            f"the network is another one for images of {_name(size)}: {odd}",
            expected="sizes for which only constants differ, such as 800x1344,1344x800",
            fix="export a file for each size",
        )
    return {
        name: value.const_value
        for name, value in right.items()
        if value.const_value is not None and not _alike(left[name].const_value, value.const_value)
    }


def _odd_node(first: ir.Graph, other: ir.Graph) -> str:
    """Return the first node that has no twin, "" where all have one."""
    if len(first) != len(other):
        return f"{len(other)} nodes instead of {len(first)}"
    for left, right in zip(first, other, strict=True):
        if _described(left) != _described(right):
            return f"node {right.name!r}"
    return ""


def _described(node: ir.Node) -> tuple[object, ...]:
    names = [[value and value.name for value in values] for values in (node.inputs, node.outputs)]
    attributes = {name: str(attribute.value) for name, attribute in node.attributes.items()}
    return node.domain, node.op_type, *map(tuple, names), sorted(attributes.items())


def _alike(left: ir.TensorProtocol | None, right: ir.TensorProtocol) -> bool:
    if left is None or left.dtype != right.dtype or left.shape != right.shape:
        return False
    return left is right or np.array_equal(left.numpy(), right.numpy())


def _constants(tensors: Mapping[str, ir.TensorProtocol], opset: int) -> ir.Graph:
    nodes = []
    for name, tensor in sorted(tensors.items()):
        copy = ir.tensor(tensor.numpy(), name=name)
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", copy)], num_outputs=1)
        node.outputs[0].name = name
        nodes.append(node)
    outputs = [node.outputs[0] for node in nodes]
    return ir.Graph([], outputs, nodes=nodes, opset_imports={"": opset})


def _without(model: ir.Model) -> ir.Model:
    """Return a copy without further sizes; its weights are the model's own."""
    copy = onnxfile.copied(model)
    for key in [key for key in copy.functions if key[0] == DOMAIN]:
        del copy.functions[key]
    copy.opset_imports.pop(DOMAIN, None)
    return copy


def _replaced(model: ir.Model, size: Size, function: ir.Function) -> ir.Model:
    """Return the model for one of its further sizes, with all shapes. Raises: ModelError."""
    copy = _without(model)
    ops.detach(copy)
    images = _images(copy)
    assert images is not None
    assert images.shape is not None
    images.shape = ir.Shape([*list(images.shape)[:2], *size])
    for node in function:
        name, tensor = str(node.outputs[0].name), node.attributes["value"].as_tensor()
        value = copy.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise ModelError(
                f"the file's constant {name!r} for images of {_name(size)} is not in its graph",
                fix="export the model again",
            )
        array = tensor.numpy().astype(value.const_value.dtype.numpy(), copy=False)
        value.const_value = ir.tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
    _reshape(copy)
    ops.attach(copy)
    return copy


def _reshape(model: ir.Model) -> None:
    """Infer all shapes anew, but those behind our ops: their results have the same in any size."""
    fixed = _behind_ours(model.graph)
    for node in model.graph:
        for value in node.outputs:
            if value not in fixed:
                value.shape = None
    inferring.infer(model)


def _behind_ours(graph: ir.Graph) -> set[ir.Value]:
    """Return what our ops make, and what is made from that alone or with it."""
    waiting = deque(value for node in graph if node.domain == NAMESPACE for value in node.outputs)
    found: set[ir.Value] = set()
    while waiting:
        value = waiting.popleft()
        if value not in found:
            found.add(value)
            waiting += [output for node, _ in value.uses() for output in node.outputs]
    return found
