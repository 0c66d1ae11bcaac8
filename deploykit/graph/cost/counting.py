"""Which nodes of a model multiply and accumulate, how often, and which cannot be counted.

Nothing is left out without a word: local functions are written out, the bodies of control flow are
entered, and a node whose arithmetic is not known is listed with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit import ops
from deploykit.graph.cost.rules import RULES, STANDARD, THOP, UnknownShape, constant, dims
from deploykit.graph.cost.shapes import settled, with_shapes
from deploykit.graph.expanding import expanded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_MOST_RUNS = 1_000_000
"""A Loop that says more does not mean it."""
_UNKNOWN = {"DFT": "a Fourier transform", "STFT": "a Fourier transform"}
"""Standard op that accumulates, and no rule counts -> what it is."""


@dataclass(frozen=True)
class Work:
    """A node that multiplies and accumulates, or one of which that is not known."""

    node: ir.Node
    """Of a copy of the model: functions written out, batch 1, shapes inferred."""
    macs: int | None
    """For one image; None: not known, and `note` says why."""
    thop: int = 0
    """The same, as the `thop` package counts."""
    note: str = ""
    """What is special about the count; "": nothing."""

    @property
    def name(self) -> str:
        """Return the node's name, that of its first output where it has none."""
        return str(self.node.name or self.node.outputs[0].name)


def works(model: ir.Model) -> tuple[Work, ...]:
    """Return every node that multiplies and accumulates, in the graph's order.

    Convolutions, matrix products, Einsum, recurrences and attention count, of functions and
    subgraphs too; bias, normalisation, activation and interpolation do not. A dynamic batch counts
    as 1, a fixed batch as it is; a Loop as often as it can run, of an If the costlier branch. The
    model is left as it is.

    Raises: ModelError where local functions call one another in a circle.
    """
    shaped = with_shapes(expanded(model))
    found = tuple(_of_graph(shaped.graph))
    if any(work.macs is None for work in found) and settled(shaped):
        found = tuple(_of_graph(shaped.graph))
    return found


def _of_graph(nodes: Iterable[ir.Node]) -> Iterator[Work]:
    for node in nodes:
        if node.domain in STANDARD and node.op_type in _FLOWS:
            yield from _FLOWS[node.op_type](node)
        elif (found := _of_node(node)) is not None:
            yield found


def _of_node(node: ir.Node) -> Work | None:
    """Return what one node costs, None where it does not multiply and accumulate."""
    rule = RULES.get((_domain(node), node.op_type))
    if rule is not None and len(node.inputs) < 2:
        return None  # an Einsum of one operand moves or adds up
    if rule is None:
        reason = _foreign(node)
        return Work(node, None, note=reason) if reason else None
    try:
        return Work(node, rule(node), THOP.get(node.op_type, rule)(node))
    except UnknownShape as error:
        return Work(node, None, note=str(error))


def _domain(node: ir.Node) -> str:
    return "" if node.domain in STANDARD else node.domain


def _foreign(node: ir.Node) -> str:
    """Return why nothing is known of a node's arithmetic, "" where it has no MACs."""
    if node.domain in STANDARD:
        what = _UNKNOWN.get(node.op_type)
        return f"it is {what}, which no rule counts" if what else ""
    if ops.op_of(node) is not None:
        return ""
    return f"what {node.domain}::{node.op_type} computes is not known"


def _branches(node: ir.Node) -> Iterator[Work]:
    """Yield both branches of an If; the cheaper one costs nothing, as only one of them runs."""
    both = [list(_of_graph(node.attributes[name].as_graph())) for name in _BRANCHES]
    costs = [sum(work.macs or 0 for work in branch) for branch in both]
    counted = costs.index(max(costs))
    for index, branch in enumerate(both):
        for work in branch:
            other = f"the other branch of {node.name!r} is counted, which costs more"
            yield work if index == counted else replace(work, macs=0, thop=0, note=other)


_BRANCHES = ("then_branch", "else_branch")


def _repeated(node: ir.Node) -> Iterator[Work]:
    """Yield the body of a Loop as often as it runs, or of another node once."""
    runs, note = _runs(node)
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            for work in _of_graph(attribute.as_graph()):
                count = None if work.macs is None else runs * work.macs
                yield replace(work, macs=count, thop=runs * work.thop, note=work.note or note)


def _runs(node: ir.Node) -> tuple[int, str]:
    """Return how often a body runs, and what is not certain about that."""
    once = f"counted once: how often {node.name!r} runs is not known"
    if node.op_type == "Scan":
        try:
            return _steps(node), ""
        except UnknownShape:
            return 1, once
    most = constant(node.inputs[0]) if node.op_type == "Loop" and node.inputs else None
    if most is None or not 0 <= int(most.reshape(-1)[0]) <= _MOST_RUNS:
        return 1, once
    runs = int(most.reshape(-1)[0])
    may_end = len(node.inputs) > 1 and not _always(node)
    return runs, f"counted {runs} times: {node.name!r} may end before" if may_end else ""


def _always(node: ir.Node) -> bool:
    """Return whether the condition of a Loop stays true."""
    start, body = constant(node.inputs[1]), node.attributes["body"].as_graph()
    after = body.outputs[0]
    producer = after.producer()
    if producer is not None and producer.op_type == "Identity" and producer.inputs[0] is not None:
        after = producer.inputs[0]
    fixed = constant(after)
    kept = after is body.inputs[1] or (fixed is not None and bool(fixed.all()))
    return kept and (node.inputs[1] is None or (start is not None and bool(start.all())))


def _steps(node: ir.Node) -> int:
    """Return the length of what a Scan scans. Raises: UnknownShape."""
    count = node.attributes.get_int("num_scan_inputs", 0)
    axes = node.attributes.get_ints("scan_input_axes", [0] * count)
    return dims(node.inputs[-count])[axes[0]]


_FLOWS: dict[str, Callable[[ir.Node], Iterator[Work]]] = {
    "If": _branches,
    "Loop": _repeated,
    "Scan": _repeated,
    "SequenceMap": _repeated,
}
"""Op with subgraphs -> what is done in them."""
