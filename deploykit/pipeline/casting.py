"""The verb cast: an ONNX file to one in FP16."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.files import onnxfile
from deploykit.measuring import records
from deploykit.pipeline import intake, places
from deploykit.pipeline.made import Made, path_or_none, recorded, written
from deploykit.precision import finiteness, float16, lint, probing
from deploykit.proof import acceptance, rewrites
from deploykit.recipes import opened
from deploykit.recipes.describing import NOTHING
from deploykit.values import Precision

if TYPE_CHECKING:
    from deploykit.pipeline.made import StrPath
    from deploykit.recipes.describing import Description


def cast(
    model: StrPath,
    output: StrPath,
    *,
    about: Description = NOTHING,
    record: StrPath | None = None,
) -> Made:
    """Return the FP16 version of an ONNX file. Raises: InputError, OutputError, ProofError."""
    model, output, record = Path(model), Path(output), path_or_none(record)
    places.check({"the model": model}, output=output, record=record)
    subject = intake.read(model, about)
    places.check_weights(subject.graph, output)
    inputs, _ = onnxfile.interface(subject.graph)
    seen = probing.probe(subject, [acceptance.feeds(subject, inputs, batch=2)])
    graph, wide = float16.cast(subject, seen.magnitudes)
    candidate = opened.made(graph, output)
    own = "" if seen.ran is None else finiteness.of_outputs(subject, seen.ran, ["random pixels"])
    agreements = acceptance.accept(candidate, subject, own=own)
    agreements = rewrites.prove_half(candidate, subject) or agreements
    made_by = {
        "verb": "cast",
        "float_type": Precision.FP16.value,
        "fp32_nodes": wide,
        "max_relative_error": max(agreement.relative for agreement in agreements),
    }
    layers = lint.precision_table(graph)
    share = records.shares(layers).get(Precision.FP16.value, 0.0)
    said = f"{share:.1%} of the multiply-accumulates in FP16"
    notes = (*subject.notes, *filter(None, [own]), said, *records.remarks(layers))
    artifact = written(candidate, subject.origin(), made_by)
    return recorded(Made(artifact, layers, notes), record)
