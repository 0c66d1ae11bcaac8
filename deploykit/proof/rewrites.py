"""Proofs of a graph that was rewritten: fused, or in FP16.

A rewrite that should change nothing is done twice, to the model and to a copy of it in float64:
what is wrong in the last place shows there, whatever the range of the outputs.

FP16 is computed here in numpy: each tensor of that type is rounded to it, subnormal numbers and
infinities as they are, for ONNX Runtime computes most of such a graph in float32 on a CPU and hides
what leaves the range. Sums inside a node are float64, as an engine adds up in float32.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import onnx_ir as ir

from deploykit import ops
from deploykit.errors import DeployError, ProofError
from deploykit.files import onnxfile
from deploykit.graph.editing import exact
from deploykit.proof import acceptance, proving
from deploykit.proof.float64 import Float64Session, widened
from deploykit.proof.rule import DOUBLE, HALF
from deploykit.tasks.agreement import PaddedRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from deploykit.proof.proving import Reference
    from deploykit.recipes.opened import Opened
    from deploykit.values import Agreement

    Array: TypeAlias = NDArray[np.generic]

_BATCH = 2  # where the batch is dynamic: a rewrite that assumed 1 shows


def measure(model: Opened) -> Reference:
    """Return what rewritten versions of `model` are judged by: two images, then one alone."""
    single, selection = acceptance.open_filled(model)
    feed = acceptance.feeds(model, single.inputs, batch=_BATCH)
    open_batch = all(isinstance(spec.shape[0], str) for spec in single.inputs if spec.shape)
    return proving.measure(
        single,
        in_double(model.graph),
        feed,
        lambda: PaddedRows(selection),
        alone=open_batch,
    )


def in_double(graph: ir.Model, fused: ir.Model | None = None) -> Float64Session | None:
    """Return a detector or another model in float64, no score threshold; None where that fails.

    fused: the graph as rewrites left it in memory: weights that they computed are taken as they
    were before they were rounded.
    """
    if onnxfile.has_data_beside(graph):
        return None  # twice the memory of what is too large for one file
    weights = {} if fused is None else fused.graph.initializers
    kept = {name: found for name in weights if (found := exact(weights[name])) is not None}
    try:
        return Float64Session(ir.to_proto(acceptance.filled(graph)), kept)
    except DeployError:
        return None


def compare(
    candidate: Opened, rewrite: Callable[[ir.Model], object], model: Opened, reference: Reference
) -> tuple[Agreement, ...]:
    """Return how `candidate`, which is `model` after `rewrite`, agrees in float32 and float64.

    An output that does not agree in one of the two is returned as it is there.
    """
    session, _ = acceptance.open_filled(candidate)
    found = proving.compare(session, reference)
    wide = _rewritten_in_double(rewrite, model) if reference.exact else None
    if wide is None:
        return found
    judged = proving.compare(wide, reference, DOUBLE)
    if not all(a.passed for a in judged):
        return judged
    if not all(a.passed for a in found):
        # The rewrite is right; what it rounds in float32 may be more than what the model rounds.
        rounded = wide.run(reference.feeds[0], watch=_single)
        wider = replace(reference, rounded=(*reference.rounded, rounded))
        found = proving.compare(session, wider)
    return found


def _single(_: str, array: Array) -> Array:
    """Return an array as float32 would hold it."""
    wide = array.dtype == np.float64
    return array.astype(np.float32).astype(np.float64) if wide else array


def _rewritten_in_double(
    rewrite: Callable[[ir.Model], object], model: Opened
) -> Float64Session | None:
    """Return the rewritten copy in float64; None where the rewrite does not know the type."""
    try:
        wide = ir.from_proto(widened(ir.to_proto(model.copy())))
        rewrite(wide)
        ops.attach(wide)
    except DeployError:
        return None
    return in_double(wide)


def prove_half(candidate: Opened, model: Opened) -> tuple[Agreement, ...]:
    """Return how the FP16 version of `model` agrees with it, in FP16's own arithmetic.

    Nothing where the model does not run in float64. Raises: ProofError where a tensor leaves the
    range of FP16, or ONNX Runtime errs by more than FP16 explains.
    """
    single, selection = acceptance.open_filled(model)
    feed = acceptance.feeds(model, single.inputs)
    reference = proving.measure(single, in_double(model.graph), feed, lambda: PaddedRows(selection))
    halves = in_double(candidate.graph)
    if not reference.exact or halves is None:
        return ()
    overflows: list[str] = []
    rounded = halves.run(feed, watch=_rounding(candidate.graph, overflows))
    for name, truth in reference.truth[0].items():
        if np.isfinite(truth).all() and not np.isfinite(rounded[name]).all():
            raise ProofError(
                f"output {name!r} is not finite in FP16: {overflows[0]!r} leaves its range"
                if overflows
                else f"output {name!r} is not finite in FP16",
                expected="numbers, as the model it was made from gives",
                fix="keep the layers that overflow in FP32, with a plan",
            )
    session, _ = acceptance.open_filled(candidate)
    judged = replace(reference, rounded=(rounded,))
    agreements = proving.compare(session, judged, HALF)
    proving.require(
        "FP16 in ONNX Runtime",
        [a for a in agreements if a.allowed is not None],
        fix="report the model it was made from",
    )
    return agreements


def _rounding(graph: ir.Model, overflows: list[str]) -> Callable[[str, Array], Array]:
    """Return a watch that rounds tensors of FP16 to it; what becomes infinite is noted."""
    half = {
        str(value.name)
        for node in graph.graph
        for value in node.outputs
        if value.dtype is ir.DataType.FLOAT16
    }

    def watch(name: str, array: Array) -> Array:
        if name not in half:
            return array
        with np.errstate(over="ignore"):
            rounded = array.astype(np.float16).astype(np.float64)
        if not np.isfinite(rounded).all() and np.isfinite(array).all():
            overflows.append(name)
        return rounded

    return watch
