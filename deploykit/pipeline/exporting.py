"""Checkpoint and recipe -> ONNX, accepted only when ONNX Runtime agrees with PyTorch."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.backends.pytorch import TorchSession
from deploykit.errors import OptionError, ProofError
from deploykit.graph import fusion
from deploykit.networks import loading, tracing
from deploykit.networks.loading import Network, NetworkOptions
from deploykit.pipeline import places
from deploykit.pipeline.made import Made, described, path_or_none, written
from deploykit.proof import acceptance, random_inputs, verification
from deploykit.recipes import metadata, opened
from deploykit.tasks.agreement import PaddedRows
from deploykit.tasks.matching import Selection
from deploykit.values import silent

if TYPE_CHECKING:
    from deploykit import backends
    from deploykit.pipeline.made import StrPath
    from deploykit.values import Agreement, Progress

OPSETS = range(17, 24)
"""17 is what TensorRT 8.6 reads; 19 is the first with FP16 scales for Q/DQ."""
TOLERANCE = 1e-4
"""Largest error accepted of a fold or an export, relative to the range of each output column."""
NOISE = 1e-5
"""Error accepted beside it: a class score that hardly varies has no range to speak of."""
_TRIALS = 2
_THRESHOLD = "score_threshold"
"""Attribute of a detector's network: rows are boxes with a score above it."""


@dataclass(frozen=True)
class ExportOptions(NetworkOptions):
    """What the user may decide about an export."""

    opset: int = 19


def export(
    checkpoint: StrPath,
    output: StrPath,
    options: ExportOptions,
    *,
    record: StrPath | None = None,
    progress: Progress = silent,
) -> Made:
    """Return the ONNX file made from a checkpoint, proven against PyTorch.

    Raises: CheckpointError, OptionError, OutputError; ProofError where folding the branches
    or the export changed the outputs by more than TOLERANCE of their range.
    """
    if options.opset not in OPSETS:
        raise OptionError(f"opset {options.opset}", expected=f"{OPSETS.start} to {OPSETS.stop - 1}")
    path, output, record = Path(checkpoint), Path(output), path_or_none(record)
    places.check({"the checkpoint": path}, output=output, record=record)
    steps = progress(("load", "fold branches", "trace", "fuse", "prove"), "export", 5)
    next(steps)
    trained = loading.load_network(path, options)
    card = trained.card
    next(steps)
    folded = replace(trained, module=trained.recipe.family.deploy(trained.module).eval())
    reference = TorchSession(_filled(trained))
    _prove("folding the branches", TorchSession(_filled(folded)), reference)
    next(steps)
    model = tracing.to_onnx(folded, options.opset)
    next(steps)
    fusion.fuse(model)
    ops.attach(model)
    metadata.write(model.metadata_props, card)
    next(steps)
    candidate = opened.made(model, output)
    session, selection = acceptance.open_filled(candidate)
    agreements = _prove("the export", session, reference, selection)
    for _ in steps:
        pass
    worst = max(agreement.relative for agreement in agreements)
    said = {"recipe": card.recipe, "variant": card.variant, "opset": options.opset}
    made_by = {"verb": "export", **said, "max_relative_error": worst}
    artifact = written(candidate, {path.name: card.checkpoint_sha256}, made_by)
    notes = (
        f"{card.recipe} {card.variant}, opset {options.opset}",
        f"agrees with PyTorch within {worst:.1e} of each output's range",
    )
    return described(artifact, candidate, notes, record)


def _filled(network: Network) -> Network:
    """Return the network without a score threshold, where it has one: all its rows are filled."""
    if not hasattr(network.module, _THRESHOLD):
        return network
    module = copy.copy(network.module)
    setattr(module, _THRESHOLD, acceptance.NO_THRESHOLD)
    return replace(network, module=module)


def _prove(
    what: str,
    candidate: backends.Session,
    reference: backends.Session,
    selection: Selection = Selection(score=acceptance.NO_THRESHOLD),  # noqa: B008 - a frozen value
) -> tuple[Agreement, ...]:
    feeds = [
        random_inputs.feeds(reference.inputs, seed=seed, batch=seed + 1) for seed in range(_TRIALS)
    ]
    agreements = verification.verify(
        candidate,
        reference,
        feeds,
        atol=NOISE,
        rtol=TOLERANCE,
        columns=True,
        pairing=PaddedRows(selection),
    )
    for agreement in agreements:
        if not agreement.passed:
            raise ProofError(
                f"{what} changed output {agreement.output!r}: largest error "
                f"{agreement.max_abs:.3g}, {agreement.relative:.3g} of its range"
                + (f"; {agreement.note}" if agreement.note else ""),
                expected=f"at most {TOLERANCE:g} of the range",
                fix="check that the recipe's network equals the one that was trained",
            )
    names = {spec.name for spec in reference.outputs}
    return tuple(agreement for agreement in agreements if agreement.output in names)
