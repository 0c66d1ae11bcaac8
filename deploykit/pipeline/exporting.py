"""Checkpoint and recipe -> ONNX, accepted only when ONNX Runtime agrees with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.backends import overloads
from deploykit.errors import OptionError
from deploykit.graph import canvases, fusion
from deploykit.networks import loading, reparam, tracing
from deploykit.networks.loading import NetworkOptions
from deploykit.pipeline import places
from deploykit.pipeline.made import Made, described, path_or_none, written
from deploykit.proof import exports, trained_answers
from deploykit.recipes import metadata, opened
from deploykit.values import silent

if TYPE_CHECKING:
    import onnx_ir as ir

    from deploykit.networks.loading import Network
    from deploykit.pipeline.made import StrPath
    from deploykit.proof.proving import Reference
    from deploykit.values import Progress

OPSETS = range(17, 24)
"""17 is what TensorRT 8.6 reads; 19 is the first with FP16 scales for Q/DQ."""


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
    or the export changed an output by more than rounding explains.
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
    folded = replace(trained, module=reparam.deployed(trained.recipe, trained.module))
    references = _references(trained, folded)
    next(steps)
    traced = [tracing.to_onnx(folded.at(s), options.opset) for s in card.preprocess.sizes]
    next(steps)
    model = canvases.merged([_fused(one) for one in traced])
    metadata.write(model.metadata_props, card)
    next(steps)
    candidate = opened.made(model, output)
    agreements = [
        agreement
        for reference in references
        for agreement in exports.prove_export(candidate, reference, trained.recipe.outputs)
    ]
    for _ in steps:
        pass
    worst = max(agreement.relative for agreement in agreements)
    said = {"recipe": card.recipe, "variant": card.variant, "opset": options.opset}
    chosen = {"weights": list(trained.notes)} if trained.notes else {}
    made_by = {"verb": "export", **said, **chosen, "max_relative_error": worst}
    artifact = written(candidate, {path.name: card.checkpoint_sha256}, made_by)
    notes = (
        f"{card.recipe} {card.variant}, opset {options.opset}",
        *trained.notes,
        f"agrees with PyTorch within {worst:.1e} of each output's range",
        *trained_answers.notes(references[0]),
        *overloads.notes(model),
    )
    return described(artifact, candidate, notes, record)


def _references(trained: Network, folded: Network) -> list[Reference]:
    """Return what the file is judged by, for each size; the folding of the weights is proven."""
    further = [(trained.at(size), folded.at(size)) for size in trained.card.preprocess.canvases]
    first = exports.prove_fold(trained, folded)
    return [first, *(exports.prove_fold(*pair, batch=1) for pair in further)]


def _fused(model: ir.Model) -> ir.Model:
    fusion.fuse(model)
    ops.attach(model)
    return model
