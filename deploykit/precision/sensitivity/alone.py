"""Models in which one layer differs, and only what follows that layer run anew.

A float model in which one layer alone is INT8, or an INT8 model in which one layer alone is float,
computes what its base computes up to that layer. So the base runs once for several layers, gives
the tensors that their differing parts read, and only those parts run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from deploykit.backends import onnxruntime
from deploykit.files import onnxfile
from deploykit.graph import inferring
from deploykit.precision import placement
from deploykit.precision.quantization.writing import insert
from deploykit.recipes import opened
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from deploykit.backends import Arrays, Session
    from deploykit.precision.placement import Placement
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable, PrecisionPlan

    Outputs = Mapping[str, NDArray[np.generic]]

_STEPS = 1 << 16
"""Most numbers of a constant that is compared: steps that a range decides are fewer."""
Alone = Literal["int8", "float"]
"""What a layer is while all others are the other."""


@dataclass(frozen=True)
class Subject:
    """A float model with the ranges that it is quantised by."""

    model: Opened
    plan: PrecisionPlan
    table: CalibrationTable

    @cached_property
    def placed(self) -> Placement:
        """Return the Q/DQ of the whole plan."""
        return placement.place(self.model.graph, self.plan)

    def layers(self) -> tuple[str, ...]:
        """Return the nodes that the plan puts in INT8, in the graph's order."""
        found = placement.layers(self.model.graph.graph, self.placed)
        return tuple(str(node.name) for node in found)

    @cached_property
    def _typed(self) -> ir.Model:
        """Return the graph with the types of its tensors: some become inputs of a part."""
        graph = self.model.copy()
        inferring.infer(graph)
        return graph

    def base(self, alone: Alone) -> ir.Model:
        """Return the model that all variants are compared with."""
        graph = onnxfile.copied(self._typed)
        if alone == "float":
            insert(graph, self.placed, self.table, Precision.FP32)
        return graph

    def variant(self, layer: str, alone: Alone) -> ir.Model:
        """Return the model in which `layer` alone is otherwise."""
        graph = onnxfile.copied(self._typed)
        if alone == "int8":
            insert(graph, only(self.placed, layer), self.table, Precision.FP32)
            return graph
        layers = {**self.plan.layers, layer: Precision.FP32}
        without = placement.place(graph, replace(self.plan, layers=layers))
        insert(graph, without, self.table, Precision.FP32)
        return graph


def only(placed: Placement, layer: str) -> Placement:
    """Return the Q/DQ at the inputs of one layer."""
    activations = (
        replace(activation, readers=tuple(r for r in activation.readers if r[0] == layer))
        for activation in placed.activations
    )
    return replace(
        placed,
        activations=tuple(activation for activation in activations if activation.readers),
        weights=tuple(weight for weight in placed.weights if weight.node == layer),
    )


class Variants:
    """Sessions of several variants and of their base, which runs once for all of them."""

    def __init__(self, subject: Subject, layers: Sequence[str], alone: Alone) -> None:
        """Open the sessions. Raises: ModelError where the runtime refuses a graph."""
        base = subject.base(alone)
        self._ends = [str(value.name) for value in base.graph.outputs]
        path = subject.model.path
        known = {str(node.name): node for node in base.graph}
        self._parts: dict[str, Session | None] = {}
        self._reads: dict[str, list[str]] = {}
        wanted: dict[str, None] = {}
        for layer in layers:
            part = differing(subject.variant(layer, alone), known)
            session = None if part is None else _opened(part, path)
            self._parts[layer] = session
            self._reads[layer] = [] if part is None else [str(v.name) for v in part.graph.inputs]
            wanted |= dict.fromkeys(self._reads[layer])
        expose(base, wanted)
        self._base = _opened(base, path)

    def run(self, feeds: Arrays) -> tuple[Outputs, Iterator[tuple[str, Outputs]]]:
        """Return the base's outputs, and an iterator of each layer with its variant's."""
        found = {**feeds, **self._base.run(feeds)}
        ends = {name: found[name] for name in self._ends}
        return ends, self._run(found, ends)

    def _run(self, found: Arrays, ends: Outputs) -> Iterator[tuple[str, Outputs]]:
        for layer, part in self._parts.items():
            reads = {name: found[name] for name in self._reads[layer]}
            yield layer, ends if part is None else {**ends, **part.run(reads)}


def _opened(graph: ir.Model, path: Path) -> Session:
    """Return a session of one thread: several run side by side."""
    return onnxruntime.open_model(opened.made(graph, path), threads=1)


def differing(variant: ir.Model, base: Mapping[str, ir.Node]) -> ir.Model | None:
    """Return the part of a variant that computes otherwise than the base; None: nothing does.

    base: its nodes by name. The inputs of the part are tensors that both models have.
    """
    changed: set[ir.Value] = set()
    read: dict[ir.Value, None] = {}
    for node in variant.graph:
        values = [value for value in node.inputs if value is not None]
        same = node.name in base and _alike(node, base[str(node.name)])
        if not (same and changed.isdisjoint(values)):
            changed.update(node.outputs)
            read |= dict.fromkeys(values)
    outputs = [value for value in variant.graph.outputs if value in changed]
    if not outputs:
        return None
    inputs = [value for value in read if value not in changed and not value.is_initializer()]
    constant = [v for v in inputs if v.producer() is not None and _is_constant(v)]
    graph = ir.convenience.extract(
        variant.graph, [value for value in inputs if value not in constant], outputs
    )
    return ir.Model(
        graph,
        ir_version=variant.ir_version,
        functions=tuple(variant.functions.values()),
    )


def _is_constant(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and node.op_type == "Constant"


def _alike(node: ir.Node, other: ir.Node) -> bool:
    """Return whether two nodes of one name read the same: by name, and steps by their values."""
    pairs = list(zip(node.inputs, other.inputs, strict=False))
    return len(node.inputs) == len(other.inputs) and all(_same(*pair) for pair in pairs)


def _same(value: ir.Value | None, other: ir.Value | None) -> bool:
    if value is None or other is None:
        return value is other
    if value.name != other.name or value.const_value is None or other.const_value is None:
        return value.name == other.name
    if value.const_value.size > _STEPS:
        return True  # weights are the same by name
    return np.array_equal(value.const_value.numpy(), other.const_value.numpy())


def expose(model: ir.Model, names: Mapping[str, None]) -> None:
    """Make tensors outputs of a model, in place, where they are neither inputs nor outputs."""
    ends = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    values = {value.name: value for node in model.graph for value in node.outputs}
    model.graph.outputs.extend(values[name] for name in names if name not in ends)
