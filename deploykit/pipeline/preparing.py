"""A graph of any exporter as `quantize` takes it, proven to compute what the file does.

What is brought into another form: operators of an older ONNX, a residual written as Sum, padding
that is computed, weights behind other nodes or stored as int8, batch norms, nodes without names.
Files that `export` wrote have that form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from deploykit.errors import DeployError, ModelError, ProofError
from deploykit.graph import fusion, opsets
from deploykit.graph.passes import FOREIGN
from deploykit.precision import lint
from deploykit.precision.lint.rules import INTEGER_OPS
from deploykit.precision.quantization import given, operators
from deploykit.proof import acceptance, float64, proving
from deploykit.recipes import metadata
from deploykit.tasks.agreement import PaddedRows

if TYPE_CHECKING:
    from deploykit.backends import Arrays
    from deploykit.recipes.opened import Opened

_HALVES = tuple(map(ir.DataType, float64.HALVES))
_ROUNDINGS = 64 * 2.0**-11
"""Of FP16 one after the other, of what an output has in all."""
_HALF = "quantise the float32 model that this one was made from"
_OWN = ("zero-point", "scale", "per-channel-activation", "weight-axis", "axis-opset")
"""Rules of the lint that Q/DQ breaks whatever is done to other layers."""
_FIX = "report the model; a file that `deploykit fuse` wrote needs no preparing"


def prepared(model: Opened, opset: int, *, strip: bool = False) -> Opened:
    """Return a model in the form that `quantize` takes; the same where it has that.

    opset: the least that it must have. strip: take its Q/DQ off first, which changes what it
    computes.

    Raises: ModelError where it cannot be converted; ProofError where its outputs changed.
    """
    if metadata.foreign(model.card):
        model = _in_single(model)
    if strip:
        model = _stripped(model)
    graph, notes = model.copy(), []
    if opsets.version(graph) < opset:
        notes.append(f"opset {opsets.version(graph)} raised to {opset}")
        graph = opsets.raised(graph, opset)
    if metadata.foreign(model.card):
        notes += _brought(graph)
    _check_own(graph)
    if not notes:
        return model
    candidate = model.altered(graph, tuple(notes))
    _prove(candidate, model)
    return candidate


def _check_own(graph: ir.Model) -> None:
    """Check that Q/DQ that a file has, which stays, is none that TensorRT refuses.

    Raises: ModelError.
    """
    kinds = {node.op_type for node in graph.graph}
    if "QuantizeLinear" not in kinds or kinds.intersection(INTEGER_OPS):
        return  # ops on integers cannot be taken off either: who looks for layers names them
    wrong = [finding for finding in lint.lint(graph) if finding.rule in _OWN]
    if wrong:
        raise ModelError(
            f"the file is quantised already, in a way that TensorRT refuses ({len(wrong)} nodes): "
            f"{wrong[0].node}: {wrong[0].message}",
            expected="Q/DQ that can be kept",
            fix="--strip-qdq takes it off and places it anew",
        )


def _stripped(model: Opened) -> Opened:
    graph = model.copy()
    off = given.stripped(graph)
    whole = operators.left(graph)
    if whole:
        raise ModelError(
            f"{', '.join(whole)} cannot be made float: scales are computed, or the op is unknown",
            fix="quantise the float model that this one was made from",
        )
    parts = [f"{off.pairs} Q/DQ of the file taken off"] if off.pairs else []
    parts += [f"{off.operators} ops on integers made float"] if off.operators else []
    parts += [f"Relu put back at {off.cut} places whose levels begin at 0"] if off.cut else []
    return model.altered(graph, (", ".join(parts),)) if parts else model


def _in_single(model: Opened) -> Opened:
    """Return a model whose FP16 numbers are float32; the same where it has none.

    Raises: ProofError where it computes something else, by more than FP16 rounds.
    """
    weights = [value.const_value for value in model.graph.graph.initializers.values()]
    count = sum(each is not None and each.dtype in _HALVES for each in weights)
    values = (value for node in model.graph.graph for value in node.outputs)
    if not count and not any(value.dtype in _HALVES for value in values):
        return model
    graph = ir.from_proto(float64.in_single(ir.to_proto(model.copy())))
    wide = model.altered(graph, (f"FP16 widened to float32, {count} weights among it",))
    theirs, _ = acceptance.open_filled(model)
    ours, _ = acceptance.open_filled(wide)
    feed = acceptance.feeds(wide, ours.inputs)
    types = {spec.name: np.dtype(spec.dtype) for spec in theirs.inputs}
    expected = theirs.run({name: array.astype(types[name]) for name, array in feed.items()})
    for name, found in ours.run(feed).items():
        truth, given = found.astype(np.float64), expected[name].astype(np.float64)
        far = np.linalg.norm(truth - given) > _ROUNDINGS * np.linalg.norm(truth)
        if np.isfinite(given).all() and far:
            raise ProofError(
                f"output {name!r} differs in float32 from what it is in FP16", fix=_HALF
            )
    return wide


def _brought(graph: ir.Model) -> list[str]:
    """Return what was done to a graph, in place."""
    notes = []
    widened = given.widened(graph)
    if widened:
        notes.append(f"{widened} weights were stored as int8: layers per channel keep their levels")
    report = fusion.fuse(graph, FOREIGN)
    if report.changed:
        notes.append(
            f"{report.nodes_before} nodes became {report.nodes_after} "
            f"({', '.join(sorted(report.changed))})"
        )
    return notes


def _prove(candidate: Opened, model: Opened) -> None:
    """Run both: equal outputs need no more, others are judged by rounding. Raises: ProofError.

    Rounding is that of the float32 model under nudged inputs: what INT8 rounds comes on top of it,
    and float64 would take longer than the calibration.
    """
    theirs, selection = acceptance.open_filled(model)
    ours, _ = acceptance.open_filled(candidate)
    feed = acceptance.feeds(model, theirs.inputs, batch=2)
    expected = theirs.run(feed)
    try:
        found = ours.run(feed)
    except DeployError as error:
        raise ProofError(f"the prepared model does not run: {error.found}", fix=_FIX) from error
    if _same(found, expected):
        return
    reference = proving.measure(theirs, None, feed, lambda: PaddedRows(selection))
    proving.require("preparing", proving.compare(ours, reference), fix=_FIX)


def _same(found: Arrays, expected: Arrays) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name], equal_nan=True) for name in expected
    )
