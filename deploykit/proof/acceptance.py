"""Checks that a rewritten ONNX file passes before it takes its final name.

A detector's results are compared with its score threshold taken away, so that every row is filled
whatever the image shows: an empty result on both sides would prove nothing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from deploykit import ops
from deploykit.backends import onnxruntime
from deploykit.errors import DeployError, ProofError
from deploykit.ops.plugin import NAMESPACE
from deploykit.proof import random_inputs, verification
from deploykit.recipes import opened
from deploykit.tasks.agreement import PaddedRows
from deploykit.tasks.matching import KEYS, Selection

if TYPE_CHECKING:
    from deploykit.backends import Session
    from deploykit.recipes.opened import Opened
    from deploykit.values import Agreement

_SEED = 0
_NMS = "DKBatchedNms"
NO_THRESHOLD = -1.0
"""A score threshold that every box passes: scores are 0 or more."""


def selection(model: ir.Model) -> Selection:
    """Return how a detector chooses its rows; nothing is known of a model without our NMS."""
    node = _last_nms(model)
    if node is None:
        return Selection()
    given = {name: attribute.value for name, attribute in node.attributes.items()}
    known = {a.name: given.get(a.name, a.default) for a in ops.shipped()[_NMS].attributes}
    return Selection(
        float(known["score_threshold"]),
        float(known["iou_threshold"]),
        agnostic=bool(known["class_agnostic"]),
    )


def open_filled(subject: Opened) -> tuple[Session, Selection]:
    """Return a model as ONNX Runtime runs it, and how it chooses rows.

    A detector's score threshold is `NO_THRESHOLD`, in a copy of the model. Raises: ModelError.
    """
    if _last_nms(subject.graph) is None:
        return onnxruntime.open_model(subject), Selection()
    model = subject.copy()
    node = _last_nms(model)
    assert node is not None  # as in the model that this is a copy of
    node.attributes["score_threshold"] = ir.AttrFloat32("score_threshold", NO_THRESHOLD)
    ops.attach(model)
    return onnxruntime.open_model(opened.made(model, subject.path)), selection(model)


def _last_nms(model: ir.Model) -> ir.Node | None:
    """Return the NMS that makes the rows of a detector's results, None where there is none."""
    outputs = {value.name: value for value in model.graph.outputs}
    if any(name not in outputs for name in KEYS):
        return None
    node = outputs["count"].producer()
    while node is not None and node.op_type in ("Cast", "Identity") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    ours = node is not None and node.domain == NAMESPACE and node.op_type == _NMS
    return node if ours else None


def accept(candidate: Opened, reference: Opened) -> tuple[Agreement, ...]:
    """Return how each output of `candidate` compares with `reference` on one random input.

    ONNX Runtime computes FP16 nodes in FP32 where its CPU kernels lack FP16, so this shows neither
    every overflow nor the full rounding of an FP16 engine.

    Raises: ProofError where `candidate` breaks the ONNX specification, does not run in ONNX
    Runtime, or gives infinities or NaN where `reference` gives numbers.
    """
    try:
        onnx.checker.check_model(candidate.data, full_check=True)
    except Exception as error:  # the checker's errors have no common class
        raise ProofError(
            f"the rewritten model breaks the ONNX specification: {error}",
            expected="a valid model",
            fix="report the model it was made from",
        ) from error
    agreements = _compare(candidate, reference)
    for agreement in agreements:
        if not math.isfinite(agreement.max_abs):
            raise ProofError(
                f"output {agreement.output!r} of the rewritten model is not finite",
                expected="numbers, as the model it was made from gives",
                fix="keep the layers that overflow in FP32, with a plan",
            )
    return agreements


def _compare(candidate: Opened, reference: Opened) -> tuple[Agreement, ...]:
    theirs, chosen = open_filled(reference)
    feeds = random_inputs.feeds(theirs.inputs, seed=_SEED)
    try:
        ours, _ = open_filled(candidate)
        return verification.verify(
            ours, theirs, [feeds], atol=math.inf, rtol=math.inf, pairing=PaddedRows(chosen)
        )
    except DeployError as error:
        raise ProofError(
            f"ONNX Runtime cannot run the rewritten model: {error.found}",
            expected="a model that runs wherever the one it was made from does",
            fix="report the model it was made from",
        ) from error
