"""ONNX rewrites to a fixed point, and the proof that they changed no output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit import acceptance, artifacts, customops, onnxfile, random_inputs, verification
from deploykit.errors import ModelError, OptionError, ProofError
from deploykit.passes import DEFAULT, Pass

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.values import Agreement, Artifact

TOLERANCE = 1e-4
"""Largest error accepted of all rewrites together, relative to the output's range."""
MAX_ROUNDS = 20
_SEED = 0
_BATCH = 2  # where the batch is dynamic: a rewrite that assumed 1 shows


@dataclass(frozen=True)
class FusionReport:
    """What the rewrites did."""

    changed: dict[str, int]
    """Pass -> in how many rounds it changed the model; only those that did."""
    rounds: int
    """How often every pass ran; the last round changed nothing."""
    nodes_before: int
    nodes_after: int


def fuse(model: ir.Model, passes: Sequence[Pass] = DEFAULT) -> FusionReport:
    """Return what `passes` did to `model`, rewritten in place until nothing changes any more.

    Raises: ModelError where a pass cannot handle the model; ProofError where passes undo each
    other for ever.
    """
    before, changed = len(model.graph), dict[str, int]()
    for count in range(1, MAX_ROUNDS + 1):
        active = [each.name for each in passes if _apply(each, model)]
        if not active:
            return FusionReport(changed, count, before, len(model.graph))
        for name in active:
            changed[name] = changed.get(name, 0) + 1
    raise ProofError(
        f"the model still changes after {MAX_ROUNDS} rounds of {', '.join(active)}",
        expected="passes that end",
        fix="leave one of these passes out, and report the model",
    )


def _apply(each: Pass, model: ir.Model) -> bool:
    try:
        return each.apply(model)
    except Exception as error:  # a foreign model can break a rewrite in any way
        raise ModelError(
            f"pass {each.name} cannot handle this model: {type(error).__name__}: {error}",
            fix="check the model with onnx.checker; leave the pass out if the model is sound",
        ) from error


def fuse_file(model: Path, output: Path, passes: Sequence[Pass] = DEFAULT) -> Artifact:
    """Return the artifact of the rewritten model, accepted only if its outputs are unchanged.

    Both models run in ONNX Runtime on random inputs; metadata stays.

    Raises: ModelError, OptionError, OutputError; ProofError, with the pass that is to blame,
    where an output differs by more than TOLERANCE of its range.
    """
    rewritten = onnxfile.read_model(model)
    if output.resolve() == model.resolve():
        raise OptionError(f"{output} is the input itself", fix="give another name for the output")
    artifacts.check_writable(output)
    report = fuse(rewritten, passes)
    customops.attach(rewritten)
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
    return verification.verify(ours, theirs, [feeds], atol=0.0, rtol=TOLERANCE, selection=chosen)


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
        _apply(each, partial)
    onnxfile.write_model(partial, scratch)
    return _compare(scratch, model)
