"""The verb fuse: rewrites, and the proof that they changed no output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.errors import ProofError
from deploykit.files import artifacts, onnxfile
from deploykit.graph import fusion
from deploykit.graph.passes import DEFAULT, Pass
from deploykit.pipeline import places
from deploykit.proof import acceptance, random_inputs, verification
from deploykit.tasks.agreement import PaddedRows

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from deploykit.values import Agreement, Artifact

TOLERANCE = 1e-4
"""Largest error accepted of all rewrites together, relative to the output's range."""
_SEED = 0
_BATCH = 2  # where the batch is dynamic: a rewrite that assumed 1 shows


def fuse(model: Path, output: Path, passes: Sequence[Pass] = DEFAULT) -> Artifact:
    """Return the artifact of the rewritten model, accepted only if its outputs are unchanged.

    Both models run in ONNX Runtime on random inputs; metadata stays.

    Raises: ModelError, OptionError, OutputError; ProofError, with the pass that is to blame,
    where an output differs by more than TOLERANCE of its range.
    """
    places.check({"the model": model}, output=output)
    rewritten = onnxfile.read_model(model)
    report = fusion.fuse(rewritten, passes)
    ops.attach(rewritten)
    with artifacts.replacing(output) as temporary:
        onnxfile.write_model(rewritten, temporary)
        agreements = _compare(temporary, model)
        if not all(agreement.passed for agreement in agreements):
            raise _blame(model, temporary, passes, report.rounds)
    inputs, outputs = onnxfile.interface(rewritten)
    return artifacts.describe(
        output,
        made_by={
            "verb": "fuse",
            "passes": report.changed,
            "nodes": [report.nodes_before, report.nodes_after],
            "max_relative_error": max(agreement.relative for agreement in agreements),
        },
        parents=(model,),
        inputs=inputs,
        outputs=outputs,
    )


def _compare(candidate: Path, reference: Path) -> tuple[Agreement, ...]:
    theirs, chosen = acceptance.open_filled(reference)
    feeds = random_inputs.feeds(theirs.inputs, seed=_SEED, batch=_BATCH)
    ours, _ = acceptance.open_filled(candidate)
    return verification.verify(
        ours, theirs, [feeds], atol=0.0, rtol=TOLERANCE, pairing=PaddedRows(chosen)
    )


def _blame(model: Path, scratch: Path, passes: Sequence[Pass], rounds: int) -> ProofError:
    """Return the error that names the first pass after which the outputs differ.

    Found by bisection over the passes in the order in which they ran; `scratch` is overwritten.
    """
    ran = [each for _ in range(rounds) for each in passes]
    good, bad = 0, len(ran)
    while bad - good > 1:
        middle = (good + bad) // 2
        if all(agreement.passed for agreement in _after(ran[:middle], model, scratch)):
            good = middle
        else:
            bad = middle
    worst = max(_after(ran[:bad], model, scratch), key=lambda a: (not a.passed, a.relative))
    return ProofError(
        f"pass {ran[bad - 1].name} changed output {worst.output!r}: largest error "
        f"{worst.max_abs:.3g}, {worst.relative:.3g} of its range",
        expected=f"at most {TOLERANCE:g} of the range",
        fix="leave this pass out, and report the model",
    )


def _after(ran: Sequence[Pass], model: Path, scratch: Path) -> tuple[Agreement, ...]:
    partial = onnxfile.read_model(model)
    for each in ran:
        fusion.apply(each, partial)
    onnxfile.write_model(partial, scratch)
    return _compare(scratch, model)
