"""Checkpoint and recipe -> ONNX, accepted only when ONNX Runtime agrees with PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit import ops
from deploykit.errors import OptionError
from deploykit.files import artifacts, onnxfile
from deploykit.graph import fusion
from deploykit.networks import loading, tracing
from deploykit.networks.loading import Network, NetworkOptions
from deploykit.proof import acceptance, exports
from deploykit.recipes import metadata
from deploykit.values import silent

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.values import Agreement, Artifact, Progress

OPSETS = range(17, 24)
"""17 is what TensorRT 8.6 reads; 19 is the first with FP16 scales for Q/DQ."""


@dataclass(frozen=True)
class ExportOptions(NetworkOptions):
    """What the user may decide about an export."""

    opset: int = 19


def export(
    path: Path, output: Path, options: ExportOptions, *, progress: Progress = silent
) -> tuple[Artifact, tuple[Agreement, ...]]:
    """Return the ONNX artifact made from a checkpoint, and how well it agrees with PyTorch.

    Raises: CheckpointError, OptionError, OutputError; ProofError where folding the branches
    or the export changed an output by more than rounding explains.
    """
    if options.opset not in OPSETS:
        raise OptionError(f"opset {options.opset}", expected=f"{OPSETS.start} to {OPSETS.stop - 1}")
    artifacts.check_writable(output)
    steps = progress(("load", "fold branches", "trace", "fuse", "prove"), "export", 5)
    next(steps)
    trained = loading.load_network(path, options)
    next(steps)
    folded = Network(
        trained.recipe.family.deploy(trained.module).eval(), trained.recipe, trained.card
    )
    reference = exports.prove_fold(trained, folded)
    next(steps)
    model = tracing.to_onnx(folded, options.opset)
    next(steps)
    fusion.fuse(model)
    ops.attach(model)
    metadata.write(model.metadata_props, folded.card)
    next(steps)
    with artifacts.replacing(output) as temporary:
        onnxfile.write_model(model, temporary)
        session, selection = acceptance.open_filled(temporary)
        agreements = exports.prove_export(session, selection, reference)
    for _ in steps:
        pass
    artifact = artifacts.describe(
        output,
        made_by={
            "verb": "export",
            "recipe": folded.card.recipe,
            "variant": folded.card.variant,
            "opset": options.opset,
            "max_relative_error": max(a.relative for a in agreements),
        },
        parents=(path,),
        inputs=session.inputs,
        outputs=session.outputs,
    )
    return artifact, agreements
