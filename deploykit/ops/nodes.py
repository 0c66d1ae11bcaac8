"""Our ops in ONNX models: found, checked, given functions, and replaced."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.errors import ModelError
from deploykit.ops.attributes import TAGS, checked, plain
from deploykit.ops.plugin import NAMESPACE, Call
from deploykit.ops.registry import everything, op_of
from deploykit.ops.tape import Tape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploykit.ops.plugin import Body, Plugin

AT_MOST = "at_most"
"""`at_most(100*batch)` is the name of a size between those two ops."""
_IR_VERSION = 10
"""The first in which one function may have several overloads."""


def calls(model: ir.Model) -> Iterator[tuple[ir.Node, Plugin]]:
    """Yield each node of the main graph that is one of our ops. Raises: ModelError."""
    ops = everything()
    for node in model.graph:
        if node.domain == NAMESPACE:
            if node.op_type not in ops:
                raise ModelError(
                    f"node {node.name!r} is {NAMESPACE}::{node.op_type}",
                    expected="one of " + ", ".join(sorted(ops)),
                    fix="name the file of an op of your own: --op FILE; "
                    "or export the model again with this version of deploykit",
                )
            yield node, ops[node.op_type]


def counts(model: ir.Model) -> Counter[str]:
    """Return op type -> how many nodes of the main graph are that op of ours, with a kernel."""
    return Counter(node.op_type for node, plugin in calls(model) if plugin.source)


def check(model: ir.Model) -> None:
    """Raise ModelError for attributes, shapes or types that one of our ops does not take."""
    for node, plugin in calls(model):
        _call(node, plugin)


def fill(model: ir.Model) -> None:
    """Write every attribute of our ops on its node: a plugin has no defaults."""
    for node, plugin in calls(model):
        for attribute in plugin.attributes:
            if attribute.name not in node.attributes:
                value = plain({"": attribute.default})[""]
                node.attributes[attribute.name] = ir.convenience.convert_attribute(
                    attribute.name, value
                )


def attach(model: ir.Model) -> None:
    """Give the model a local function for each of our ops, as ONNX Runtime needs it.

    Functions that it has for them are replaced, for a node's types may have changed since.
    Nothing happens to a model without such ops.

    Raises: ModelError for attributes, shapes or types that the op does not take.
    """
    detach(model)
    made: dict[tuple[object, ...], str] = {}
    for node, plugin in calls(model):
        call = _call(node, plugin)
        key = (plugin.name, *sorted(call.attributes.items()), *map(_interface, call.inputs))
        if key not in made:
            earlier = sum(other[0] == plugin.name for other in made)
            made[key] = "" if earlier == 0 else str(earlier)
            function = _function(plugin, call, made[key], model.graph.opset_imports[""])
            model.functions[function.identifier()] = function
        node.overload = made[key]
    _open_sizes(model)
    if made:
        model.graph.opset_imports.setdefault(NAMESPACE, 1)
    if any(made.values()):
        model.ir_version = max(model.ir_version, _IR_VERSION)


def detach(model: ir.Model) -> None:
    """Remove the local functions of our ops."""
    for key in [key for key in model.functions if key[0] == NAMESPACE]:
        del model.functions[key]
    for node in model.graph:
        if node.domain == NAMESPACE:
            node.overload = ""


def _open_sizes(model: ir.Model) -> None:
    """Call a size `at_most(n)` from where rows are packed to where they are unpacked.

    ONNX Runtime takes dimensions of one name for equal, and lets such tensors share memory.
    """
    packed = {node.outputs[0] for node, plugin in calls(model) if plugin.rows == "packed"}
    for node in model.graph:
        plugin = op_of(node)
        if plugin is not None and plugin.rows == "unpacked":
            continue
        if not packed.isdisjoint(node.inputs):
            packed.update(node.outputs)
    for value in packed:
        if value.shape is not None and not str(value.shape[0]).startswith(AT_MOST):
            size = ir.SymbolicDim(f"{AT_MOST}({value.shape[0]})")
            value.shape = ir.Shape([size, *value.shape[1:]])


def inline(model: ir.Model, *, kernels: bool = True) -> None:
    """Replace every node of ours by its portable body; with `kernels` off, those without one.

    Raises: ModelError as `attach`.
    """
    detach(model)
    chosen = [(node, plugin) for node, plugin in calls(model) if kernels or not plugin.source]
    for number, (node, plugin) in enumerate(chosen):
        tape = Tape(f"{node.name or f'{plugin.name}_{number}'}.")
        call = _call(node, plugin)
        call = replace(call, inputs=tuple(value for value in node.inputs if value is not None))
        results = _written(plugin.portable_body, tape, call, plugin)
        model.graph.insert_before(node, tape.nodes)
        for old, new in zip(node.outputs, results, strict=True):
            new.type, new.shape = old.type, old.shape
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            name, old.name = old.name, None
            new.name = name
        model.graph.remove(node, safe=True)
    if not any(calls(model)):
        model.graph.opset_imports.pop(NAMESPACE, None)


def _function(plugin: Plugin, call: Call, overload: str, opset: int) -> ir.Function:
    tape = Tape()
    outputs = _written(plugin.runtime_body, tape, call, plugin)
    graph = ir.Graph(call.inputs, outputs, nodes=tape.nodes, opset_imports={"": opset})
    return ir.Function(NAMESPACE, plugin.name, overload, graph=graph, attributes=[])


def _written(body: Body, tape: Tape, call: Call, plugin: Plugin) -> list[ir.Value]:
    """Return the outputs of a body, each made by a node of its own."""
    results = list(body(tape, call))
    assert len(results) == len(plugin.outputs), plugin.name
    own = {value for node in tape.nodes for value in node.outputs}
    return [
        value if value in own and results.count(value) == 1 else tape.Identity(value)
        for value in results
    ]


def _call(node: ir.Node, plugin: Plugin) -> Call:
    """Return a node's inputs, as values of their own, and its complete attributes."""
    where = f"node {node.name!r} ({node.op_type})"
    least = len(plugin.inputs)
    if len(node.inputs) < least or (len(node.inputs) > least and not plugin.variadic):
        raise ModelError(
            f"{where} has {len(node.inputs)} inputs",
            expected=", ".join(each.name for each in plugin.inputs),
        )
    given = {
        name: attribute.value for name, attribute in node.attributes.items() if name not in TAGS
    }
    complete = checked(plugin, given, ModelError, where=where)
    sizes = [_sizes(value, where) for value in node.inputs]
    wrong = plugin.check(complete, sizes)
    if wrong:
        raise ModelError(f"{where}: {wrong}")
    names = _input_names(plugin, len(node.inputs))
    inputs = [
        ir.Value(name=name, type=value.type, shape=value.shape)
        for name, value in zip(names, node.inputs, strict=True)
        if value is not None
    ]
    return Call(tuple(inputs), complete)


def _input_names(plugin: Plugin, count: int) -> list[str]:
    if not plugin.variadic:
        return list(plugin.names)
    *fixed, last = plugin.names
    return [*fixed, *(f"{last}{i}" for i in range(count - len(fixed)))]


def _sizes(value: ir.Value | None, where: str) -> tuple[int, ...]:
    """Return the sizes of an input after the batch. Raises: ModelError where one is unknown."""
    shape = None if value is None else value.shape
    if value is None or value.type is None or shape is None or not _is_static(shape[1:]):
        raise ModelError(
            f"{where} has an input of unknown type or shape: {value}",
            expected="fixed sizes after the batch",
            fix="say how large its images are, --input-size HxW, or export it for one input size",
        )
    return tuple(int(dim) for dim in shape[1:])  # type: ignore[arg-type]  # static, as checked


def _is_static(dims: Sequence[object]) -> bool:
    return all(isinstance(dim, int) for dim in dims)


def _interface(value: ir.Value) -> tuple[object, ...]:
    return (value.dtype, tuple(str(dim) for dim in (value.shape or ())[1:]))
