"""What is wrong with a Q/DQ graph, and which precision each of its layers should get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from deploykit.graph import cost, inferring
from deploykit.precision.lint.checks import Facts
from deploykit.precision.lint.graph import runs_int8
from deploykit.precision.lint.rules import INTEGER_OPS, RULES, Severity
from deploykit.values import LayerPrecision, Precision

if TYPE_CHECKING:
    from collections.abc import Iterable

_FLOATS = {ir.DataType.FLOAT16: Precision.FP16, ir.DataType.FLOAT: Precision.FP32}
_SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing, at one node."""

    severity: Severity
    """`error`: refused by TensorRT or silently run in float; `warning`: costs speed or accuracy."""
    rule: str
    node: str
    message: str
    fix: str


def lint(model: ir.Model, *, target_sm: int | None = None) -> tuple[Finding, ...]:
    """Return all findings in a Q/DQ graph, ours or any other tool's, the gravest first.

    target_sm: compute capability of the GPU, such as 75, for what depends on it. The model is
    left as it is, save that its shapes are inferred.
    """
    inferring.infer(model)
    facts = Facts(model, target_sm)
    found = [
        Finding(rule.severity, rule.id, _name(node), message, rule.fix)
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        for rule in RULES
        if (not rule.ops or node.op_type in rule.ops)
        and node.domain in rule.domains
        and (message := rule.check(node, facts))
    ]
    return tuple(sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity)))


def precision_table(model: ir.Model) -> tuple[LayerPrecision, ...]:
    """Return what TensorRT should run each node that multiplies in, in the graph's order.

    Those of local functions and subgraphs are among them, and what cannot be counted, with a note.
    """
    return tuple(
        LayerPrecision(w.name, w.node.op_type, _precision(w.node), w.macs or 0, w.note)
        for w in cost.works(model)
    )


def int8_share(layers: Iterable[LayerPrecision]) -> float:
    """Return the share of all multiply-accumulates that are INT8; 0 where there are none."""
    counts = [(layer.macs, layer.precision == Precision.INT8.value) for layer in layers]
    total = sum(macs for macs, _ in counts)
    return sum(macs for macs, is_int8 in counts if is_int8) / total if total else 0.0


def _name(node: ir.Node) -> str:
    return node.name or str(node.outputs[0].name)


def _precision(node: ir.Node) -> str:
    if node.op_type in INTEGER_OPS or runs_int8(node):
        return Precision.INT8.value
    kinds = {value.dtype for value in (*node.inputs[:1], *node.outputs) if value is not None}
    found = {_FLOATS[kind] for kind in kinds if kind in _FLOATS}
    return found.pop().value if len(found) == 1 else "unknown"
