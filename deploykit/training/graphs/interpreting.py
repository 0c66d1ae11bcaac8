"""A graph computed node by node, so that its weights can learn and its tensors can be changed.

Nodes and tensors keep their names: what placement says of the graph holds of the module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from deploykit import ops
from deploykit.errors import ModelError, unknown_name
from deploykit.graph.editing import is_op
from deploykit.precision.placement.weighted import constant
from deploykit.training.graphs import joining, moving, pointwise, resizing, windows
from deploykit.training.graphs.learning import learned
from deploykit.training.graphs.node import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    import onnx_ir as ir

    from deploykit.training.graphs.node import Op, Ops

OPS: Ops = {**joining.OPS, **moving.OPS, **pointwise.OPS, **resizing.OPS, **windows.OPS}
"""Operator of the standard domain -> how it is computed."""
MIN_OPSET = 13
"""From which on Softmax has one axis, and axes are inputs."""
Reader: TypeAlias = tuple[str, int]
"""Node name, and the index of its input."""
_Key: TypeAlias = "str | tuple[str, int]"
"""A tensor, or the tensor behind the function of this index."""


@dataclass(frozen=True)
class _Step:
    """One node."""

    node: Node
    run: Op
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    ended: tuple[str, ...]
    """Tensors that no later node reads."""


def module(model: ir.Model) -> GraphModule:
    """Return a model as a torch module; the model is not changed.

    Raises: ModelError for a model of an opset below 13, or naming the first node that has no
    gradient here: ops of deploykit's own, subgraphs, and seldom ones.
    """
    opset = model.opset_imports.get("", 0)
    if opset < MIN_OPSET:
        raise ModelError(
            f"the model has opset {opset}",
            expected=f"at least {MIN_OPSET}",
            fix="export it with a higher opset",
        )
    return GraphModule(model.graph)


class GraphModule(nn.Module):
    """A graph with its weights as parameters, called as in the graph.

    Other constants of floating type are buffers. See `learning.learned` for which are which.
    """

    def __init__(self, graph: ir.Graph) -> None:
        """Copy the constants of a graph. Raises: ModelError, see `module`."""
        super().__init__()
        self.inputs = tuple(str(value.name) for value in graph.inputs)
        self.outputs = tuple(str(value.name) for value in graph.outputs)
        self._whole: dict[str, Tensor] = {}
        self._functions = nn.ModuleList()
        self._reads: dict[Reader, int] = {}
        self._behind: dict[str, list[int]] = {}
        self._bare: set[str] = set()
        weights = {str(value.name) for value in learned(graph)}
        for value in _constants(graph):
            self._keep(value, learns=str(value.name) in weights)
        self._steps = _steps(graph, {*self.outputs, *self.inputs, *self.constants()})

    def constants(self) -> set[str]:
        """Return the names of weights and other constants."""
        return {*self._parameters, *self._buffers, *self._whole}

    def _keep(self, value: ir.Value, *, learns: bool) -> None:
        """Keep a constant; names with dots are no attributes, and need not be."""
        name, kept = str(value.name), channels_last(_copied(value))
        if learns:
            self._parameters[name] = nn.Parameter(kept)
        elif kept.is_floating_point():
            self._buffers[name] = kept
        else:
            self._whole[name] = kept  # shapes and axes, which stay on the host

    def insert(
        self, tensor: str, readers: Sequence[Reader], function: Callable[[Tensor], Tensor]
    ) -> None:
        """Let some readers of a tensor, a weight included, read `function` of it.

        It is called once for all of them. A module's parameters learn with the others.
        Raises: OptionError for a reader that does not read the tensor.
        """
        known = {(step.node.name, i): t for step in self._steps for i, t in enumerate(step.inputs)}
        wrong = [reader for reader in readers if known.get(reader) != tensor]
        if wrong:
            here = (f"{name} {index}" for (name, index), t in known.items() if t == tensor)
            raise unknown_name(f"reader of {tensor}", f"{wrong[0][0]} {wrong[0][1]}", here)
        made = function if isinstance(function, nn.Module) else _Function(function)
        self._functions.append(made)
        self._reads.update(dict.fromkeys(readers, len(self._functions) - 1))
        self._behind.setdefault(tensor, []).append(len(self._functions) - 1)

    def reads(self, tensor: str) -> set[Reader]:
        """Return what reads a tensor, the outputs of the graph left out."""
        steps = self._steps
        return {(s.node.name, i) for s in steps for i, t in enumerate(s.inputs) if t == tensor}

    def bare(self, tensor: str, readers: Collection[Reader]) -> bool:
        """Return whether these are all readers of a Relu; from then on they take what it is of.

        The function that is inserted for them must give 0 for what lies below.
        """
        relus = {s.outputs[0] for s in self._steps if s.node.op == "Relu"} - {*self.outputs}
        found = tensor in relus and self.reads(tensor) <= {*readers}
        self._bare.update({tensor} if found else ())
        return found

    def clear(self) -> None:
        """Take every function that was inserted off again."""
        self._functions = nn.ModuleList()
        self._reads.clear()
        self._behind.clear()
        self._bare.clear()

    def forward(self, *given: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name, for inputs by name or in order."""
        return self.tensors(*given, names=self.outputs)

    def tensors(
        self, *given: Tensor | Mapping[str, Tensor], names: Collection[str]
    ) -> dict[str, Tensor]:
        """Return any tensors of the graph by name, as they are before inserted functions.

        Nodes behind the last of them are not computed. Raises: OptionError for a tensor that the
        graph lacks.
        """
        found: dict[_Key, Tensor] = dict(self._fed(given).items())
        kept = {name: found.get(name, self._constant(name)) for name in names}
        missing = {name for name, value in kept.items() if value is None}
        for step in self._steps:
            if not missing:
                break
            self._run(step, found)
            for name in missing.intersection(step.outputs):
                kept[name] = found[name].relu() if name in self._bare else found[name]
            missing.difference_update(step.outputs)
            for name in step.ended:
                found.pop(name, None)
                for index in self._behind.get(name, ()):
                    found.pop((name, index), None)
        if missing:
            here = (name for step in self._steps for name in step.outputs)
            raise unknown_name("tensor", min(missing), here)
        return {name: value for name, value in kept.items() if value is not None}

    def _fed(self, given: Sequence[Tensor | Mapping[str, Tensor]]) -> dict[str, Tensor]:
        named: dict[str, Tensor] = {}
        for name, each in zip(self.inputs, given, strict=False):
            named.update({name: each} if isinstance(each, Tensor) else each)
        if named.keys() != {*self.inputs}:
            raise unknown_name("input", ", ".join(named) or "nothing", self.inputs)
        return {name: channels_last(each) for name, each in named.items()}

    def _run(self, step: _Step, found: dict[_Key, Tensor]) -> None:
        """Compute a node."""
        read = [
            None if name is None else self._read(found, (step.node.name, i), name)
            for i, name in enumerate(step.inputs)
        ]
        results = read[0] if step.outputs[0] in self._bare else step.run(step.node, *read)
        assert results is not None  # a Relu has an input
        results = (results,) if isinstance(results, Tensor) else results
        found.update(zip(step.outputs, results, strict=False))

    def _read(self, found: dict[_Key, Tensor], reader: Reader, name: str) -> Tensor:
        """Return a tensor as a reader sees it."""
        index = self._reads.get(reader)
        if index is not None and (name, index) in found:
            return found[name, index]
        value = found.get(name)
        value = self._constant(name) if value is None else value
        if value is None:
            raise ModelError(f"{reader[0]!r} reads {name!r}, which no node computes")
        if index is None:
            return value
        made: Tensor = self._functions[index](value)
        found[name, index] = made
        return made

    def constant(self, name: str) -> Tensor:
        """Return a weight or another constant. Raises: OptionError."""
        found = self._constant(name)
        if found is None:
            raise unknown_name("constant", name, self.constants())
        return found

    def _constant(self, name: str) -> Tensor | None:
        for where in (self._parameters, self._buffers, self._whole):
            if where.get(name) is not None:
                return where[name]
        return None


def channels_last(x: Tensor) -> Tensor:
    """Return a tensor whose numbers lie as convolutions are fastest with; its shape is the same."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


class _Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        """Return the function of x."""
        return self._function(x)


def _constants(graph: ir.Graph) -> list[ir.Value]:
    """Return initializers and what Constant nodes give."""
    inputs = set(graph.inputs)
    found = [value for value in graph.initializers.values() if value not in inputs]
    return found + [node.outputs[0] for node in graph if is_op(node, "Constant")]


def _copied(value: ir.Value) -> Tensor:
    """Return a constant; of a Constant node that holds plain numbers, these."""
    tensor = constant(value)
    if tensor is not None:
        return torch.from_numpy(tensor.numpy().copy())
    node = value.producer()
    assert node is not None  # a constant is an initializer or has one
    (attribute,) = node.attributes.values()
    return torch.tensor(attribute.value)


def _steps(graph: ir.Graph, kept: Collection[str]) -> tuple[_Step, ...]:
    """Return the nodes in order. Raises: ModelError for one that cannot be computed."""
    nodes = [node for node in graph if not is_op(node, "Constant")]
    last: dict[str, int] = {}
    for i, node in enumerate(nodes):
        last.update({str(value.name): i for value in (*node.inputs, *node.outputs) if value})
    ended: dict[int, list[str]] = {}
    for name, i in last.items():
        if name not in kept:
            ended.setdefault(i, []).append(name)
    return tuple(
        _Step(
            Node.of(node),
            _op(node),
            tuple(None if value is None else str(value.name) for value in node.inputs),
            tuple(str(value.name) for value in node.outputs),
            tuple(ended.get(i, ())),
        )
        for i, node in enumerate(nodes)
    )


def _op(node: ir.Node) -> Op:
    if is_op(node, *OPS):
        return OPS[node.op_type]
    plugin = ops.op_of(node)
    own = "an operator of deploykit" if plugin else f"of the domain {node.domain or 'ai.onnx'!r}"
    raise ModelError(
        f"{node.name!r} is a {node.op_type}, {own}, which has no gradient here",
        expected="operators of convolutional networks and transformers: " + ", ".join(sorted(OPS)),
        fix="train in the framework that the network comes from, or keep to `quantize`",
    )
