"""Which calibrated range each reader of an INT8 tensor needs.

A reader's step fits the values that it reads, whoever else reads them. Only where values meet, in
a Concat, do they take one step together: the tensor that goes there has the group's step for the
Concat and its own for its other readers. INT8 passes a node that moves values with one step, so
what it moves has that of its readers where they agree, else its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from deploykit.precision.placement.rules import moved_inputs, moves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

Domain: TypeAlias = tuple[str, ...]
"""Names of the observed tensors whose largest range is meant, sorted."""
Reader: TypeAlias = "tuple[ir.Node, int]"
"""A node, and the index of its input."""


def domains(reads: Mapping[ir.Value, Sequence[Reader]]) -> dict[Reader, Domain]:
    """Return the range that each reader of an INT8 tensor needs.

    reads: INT8 tensor -> who reads it so. A node that moves values reads all its data in INT8, or
    none of it. What it gives is INT8 too, but where a product was closed (rule 13).
    """
    movers = {node: None for readers in reads.values() for node, _ in readers if moves(node)}
    own: dict[ir.Value, Domain] = {}
    steps: dict[ir.Node, Domain] = {}
    for value in reads:
        _own(value, movers, own)
    for node in movers:
        _step(node, reads, own, steps)
    return {
        (node, index): steps.get(node) or own[value]
        for value, readers in reads.items()
        for node, index in readers
    }


def _own(start: ir.Value, movers: Mapping[ir.Node, None], own: dict[ir.Value, Domain]) -> None:
    """Note the range of a tensor's values: observed, or that of what was moved into it."""
    waiting = [start]
    while waiting:
        value = waiting[-1]
        node = value.producer()
        moved = _moved(node) if node is not None and node in movers else []
        unknown = [source for source in moved if source not in own]
        if unknown:
            waiting += unknown
            continue
        names = {name for source in moved for name in own[source]} or {str(value.name)}
        own[waiting.pop()] = tuple(sorted(names))


def _step(
    start: ir.Node,
    reads: Mapping[ir.Value, Sequence[Reader]],
    own: Mapping[ir.Value, Domain],
    steps: dict[ir.Node, Domain],
) -> None:
    """Note the range that a node moves values with: its readers' where all need one, else its own.

    A Concat that another one alone reads has the step of that one.
    """
    waiting = [start]
    while waiting:
        node = waiting[-1]
        outputs = [value for value in node.outputs if value in reads]
        readers = [reader for value in outputs for reader, _ in reads[value]]
        onward = [reader for reader in readers if moves(reader)]
        unknown = [reader for reader in onward if reader not in steps]
        if unknown:
            waiting += unknown
            continue
        needed = {steps[reader] for reader in onward}
        agree = len(onward) == len(readers) and len(needed) == 1
        whose = outputs or _moved(node)
        steps[waiting.pop()] = needed.pop() if agree else own[whose[0]]


def _moved(node: ir.Node) -> list[ir.Value]:
    return [value for index in moved_inputs(node) if (value := node.inputs[index]) is not None]
