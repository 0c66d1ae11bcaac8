"""The verb fuse: rewrites, and the proof that they changed no output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.errors import ProofError
from deploykit.graph import canvases, fusion
from deploykit.graph.passes import DEFAULT, Pass
from deploykit.pipeline import intake, places
from deploykit.pipeline.made import Made, described, path_or_none, written
from deploykit.proof import proving, rewrites
from deploykit.recipes import opened
from deploykit.recipes.describing import NOTHING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx_ir as ir

    from deploykit.pipeline.made import StrPath
    from deploykit.proof.proving import Reference
    from deploykit.recipes.describing import Description
    from deploykit.recipes.opened import Opened
    from deploykit.values import Agreement

_FIX = "leave this pass out, and report the model"


def fuse(
    model: StrPath,
    output: StrPath,
    passes: Sequence[Pass] = DEFAULT,
    *,
    about: Description = NOTHING,
    record: StrPath | None = None,
) -> Made:
    """Return the rewritten model, accepted only if its outputs are unchanged.

    Both models run on random inputs, see `proof.rewrites`; metadata stays.

    about: What the file does not say itself, such as its input size where that is open.

    Raises: ModelError, OptionError, OutputError; ProofError, with the pass that is to blame,
    where an output differs by more than rounding explains.
    """
    model, output, record = Path(model), Path(output), path_or_none(record)
    places.check({"the model": model}, output=output, record=record)
    subject = intake.read(model, about)
    places.check_weights(subject.graph, output)
    reports = []

    def rewrite(one: ir.Model) -> ir.Model:
        reports.append(fusion.fuse(one, passes))
        ops.attach(one)
        return one

    graph = canvases.each(subject.copy(), rewrite)
    report = reports[0]
    candidate = opened.made(graph, output)
    reference = rewrites.measure(subject)
    ran = [each for _ in range(report.rounds) for each in passes]
    agreements = rewrites.compare(candidate, _running(ran), subject, reference)
    if not all(agreement.passed for agreement in agreements):
        raise _blame(subject, ran, reference)
    made_by = {
        "verb": "fuse",
        "passes": report.changed,
        "nodes": [report.nodes_before, report.nodes_after],
        "max_relative_error": max(agreement.relative for agreement in agreements),
    }
    notes = (*subject.notes, f"{report.nodes_before} nodes became {report.nodes_after}")
    artifact = written(candidate, subject.origin(), made_by)
    return described(artifact, candidate, notes, record)


def _running(passes: Sequence[Pass]) -> Callable[[ir.Model], None]:
    """Return what runs each of `passes` once."""

    def run(model: ir.Model) -> None:
        for each in passes:
            fusion.apply(each, model)

    return run


def _blame(model: Opened, ran: Sequence[Pass], reference: Reference) -> ProofError:
    """Return the error that names the first pass after which the outputs differ.

    Found by bisection over the passes in the order in which they ran.
    """
    good, bad = 0, len(ran)
    while bad - good > 1:
        middle = (good + bad) // 2
        if all(agreement.passed for agreement in _after(ran[:middle], model, reference)):
            good = middle
        else:
            bad = middle
    try:
        proving.require(f"pass {ran[bad - 1].name}", _after(ran[:bad], model, reference), fix=_FIX)
    except ProofError as error:
        return error
    return ProofError("the rewrites together changed an output, none of them alone", fix=_FIX)


def _after(ran: Sequence[Pass], model: Opened, reference: Reference) -> tuple[Agreement, ...]:
    partial, run = model.copy(), _running(ran)
    run(partial)
    ops.attach(partial)
    return rewrites.compare(opened.made(partial, model.path), run, model, reference)
