"""Checks that a rewritten ONNX file passes before it takes its final name."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import onnx

from deploykit import backends, verification
from deploykit.errors import DeployError, ProofError

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.values import Agreement

_SEED = 0


def accept(candidate: Path, reference: Path) -> tuple[Agreement, ...]:
    """Return how each output of `candidate` compares with `reference` on one random input.

    ONNX Runtime computes FP16 nodes in FP32 where its CPU kernels lack FP16, so this shows neither
    every overflow nor the full rounding of an FP16 engine.

    Raises: ProofError where `candidate` breaks the ONNX specification, does not run in ONNX
    Runtime, or gives infinities or NaN where `reference` gives numbers.
    """
    try:
        onnx.checker.check_model(str(candidate), full_check=True)
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


def _compare(candidate: Path, reference: Path) -> tuple[Agreement, ...]:
    runtime = backends.load("onnxruntime")
    theirs = runtime.open_session(reference)
    feeds = verification.random_feeds(theirs.inputs, seed=_SEED)
    try:
        ours = runtime.open_session(candidate)
        return verification.verify(ours, theirs, [feeds], atol=math.inf, rtol=math.inf)
    except DeployError as error:
        raise ProofError(
            f"ONNX Runtime cannot run the rewritten model: {error.found}",
            expected="a model that runs wherever the one it was made from does",
            fix="report the model it was made from",
        ) from error
