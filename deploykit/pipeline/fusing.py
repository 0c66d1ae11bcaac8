"""The verb fuse: rewrites, and the proof that they changed no output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.errors import ProofError
from deploykit.graph import fusion
from deploykit.graph.passes import DEFAULT, Pass
from deploykit.pipeline import places
from deploykit.pipeline.made import Made, described, path_or_none, written
from deploykit.proof import acceptance, random_inputs, verification
from deploykit.recipes import opened
from deploykit.tasks.agreement import PaddedRows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.pipeline.made import StrPath
    from deploykit.recipes.opened import Opened
    from deploykit.values import Agreement

TOLERANCE = 1e-4
"""Largest error accepted of all rewrites together, relative to the output's range."""
_SEED = 0
_BATCH = 2  # where the batch is dynamic: a rewrite that assumed 1 shows


def fuse(
    model: StrPath,
    output: StrPath,
    passes: Sequence[Pass] = DEFAULT,
    *,
    record: StrPath | None = None,
) -> Made:
    """Return the rewritten model, accepted only if its outputs are unchanged.

    Both models run in ONNX Runtime on random inputs; metadata stays.

    Raises: ModelError, OptionError, OutputError; ProofError, with the pass that is to blame,
    where an output differs by more than TOLERANCE of its range.
    """
    model, output, record = Path(model), Path(output), path_or_none(record)
    places.check({"the model": model}, output=output, record=record)
    subject = opened.read(model)
    graph = subject.copy()
    report = fusion.fuse(graph, passes)
    ops.attach(graph)
    candidate = opened.made(graph, output)
    agreements = _compare(candidate, subject)
    if not all(agreement.passed for agreement in agreements):
        raise _blame(subject, passes, report.rounds)
    made_by = {
        "verb": "fuse",
        "passes": report.changed,
        "nodes": [report.nodes_before, report.nodes_after],
        "max_relative_error": max(agreement.relative for agreement in agreements),
    }
    notes = (f"{report.nodes_before} nodes became {report.nodes_after}",)
    artifact = written(candidate, subject.origin(), made_by)
    return described(artifact, candidate, notes, record)


def _compare(candidate: Opened, reference: Opened) -> tuple[Agreement, ...]:
    theirs, chosen = acceptance.open_filled(reference)
    feeds = random_inputs.feeds(theirs.inputs, seed=_SEED, batch=_BATCH)
    ours, _ = acceptance.open_filled(candidate)
    return verification.verify(
        ours, theirs, [feeds], atol=0.0, rtol=TOLERANCE, pairing=PaddedRows(chosen)
    )


def _blame(model: Opened, passes: Sequence[Pass], rounds: int) -> ProofError:
    """Return the error that names the first pass after which the outputs differ.

    Found by bisection over the passes in the order in which they ran.
    """
    ran = [each for _ in range(rounds) for each in passes]
    good, bad = 0, len(ran)
    while bad - good > 1:
        middle = (good + bad) // 2
        if all(agreement.passed for agreement in _after(ran[:middle], model)):
            good = middle
        else:
            bad = middle
    worst = max(_after(ran[:bad], model), key=lambda a: (not a.passed, a.relative))
    return ProofError(
        f"pass {ran[bad - 1].name} changed output {worst.output!r}: largest error "
        f"{worst.max_abs:.3g}, {worst.relative:.3g} of its range",
        expected=f"at most {TOLERANCE:g} of the range",
        fix="leave this pass out, and report the model",
    )


def _after(ran: Sequence[Pass], model: Opened) -> tuple[Agreement, ...]:
    partial = model.copy()
    for each in ran:
        fusion.apply(each, partial)
    return _compare(opened.made(partial, model.path), model)
