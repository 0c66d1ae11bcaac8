"""The verb quantize: an ONNX file to one in INT8."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deploykit.pipeline import calibrating, judging, mending, migrating, places, repairing
from deploykit.pipeline.calibrating import QuantizeOptions, plan_for, taken_in
from deploykit.pipeline.made import Made, path_or_none, recorded, written
from deploykit.pipeline.repairing import Calibrated
from deploykit.precision import lint, placement, quality, quantization, tables
from deploykit.precision.calibration import CalibrationOptions
from deploykit.precision.repairs import comparing
from deploykit.proof import acceptance
from deploykit.recipes import opened
from deploykit.values import Precision, silent

if TYPE_CHECKING:
    from collections.abc import Collection

    from deploykit.pipeline.judging import Quality
    from deploykit.pipeline.made import StrPath
    from deploykit.pipeline.migrating import Measured
    from deploykit.pipeline.repairing import Wanted
    from deploykit.precision.placement import Placement
    from deploykit.precision.probing import Probed
    from deploykit.precision.repairs.comparing import Noise
    from deploykit.recipes.opened import Opened
    from deploykit.values import Agreement, Json, PrecisionPlan, Progress

__all__ = ["Calibrated", "QuantizeOptions", "calibrated", "plan_for", "quantize", "taken_in"]


def quantize(
    model: StrPath,
    output: StrPath,
    options: QuantizeOptions,
    *,
    record: StrPath | None = None,
    progress: Progress = silent,
) -> Made:
    """Return the INT8 model: calibrated, Q/DQ placed by TensorRT's rules, proven.

    Raises: InputError, OutputError; ProofError where the quantised graph does not run or lint.
    """
    model, output, record = Path(model), Path(output), path_or_none(record)
    options = _asked(options, model, output, record)
    subject, plan, scales = _subject(model, output, options)
    placed = placement.place(subject.graph, plan)
    quantization.check(subject.graph, placed, options.float_type)
    if scales is None:
        found = calibrating.known(subject, placement.activations(placed), options)
        fresh = found is None
        found = found or _calibrated(subject, placed, options, progress)
    else:
        found, fresh = Calibrated(subject, migrating.tabled(scales, subject, placed)), False
    proven = _proven(found, plan, placed, options, output)
    if fresh:
        wanted = repairing.Wanted.named(options.repair)
        better = _repaired(found, wanted, plan, placed, options, progress, noise=proven.noise)
        if better.table is not found.table:
            proven = _proven(better, plan, placed, options, output)
        found = better
    cached = migrating.write_cache(options.cache, placed, found.table)
    quality = proven.quality(found, placed)
    made_by = {"verb": "quantize", **proven.summary, "quality": quality.to_json()}
    if found.repairs:
        made_by["repairs"] = {repair.name: repair.to_json() for repair in found.repairs}
    artifact = written(proven.candidate, found.model.origin(), made_by)
    layers = lint.precision_table(proven.candidate.graph)
    notes = (
        *found.model.notes,
        *filter(None, [proven.own]),
        *judging.notes(layers, found.table),
        *cached,
        *(repair.note() for repair in found.repairs),
        *quality.notes(),
        *judging.doubts(found.table),
        *judging.wide(proven.summary["beyond_fp16"]),
    )
    return recorded(Made(artifact, layers, notes), record)


class _Proven(NamedTuple):
    """A quantised model that runs as its float one."""

    candidate: Opened
    summary: Json
    agreements: tuple[Agreement, ...]
    seen: Probed
    images: str
    """What it was run on, in words."""
    noise: Noise
    """Of its outputs."""
    own: str
    """Where the float model is not finite by itself; empty: it is."""

    def quality(self, found: Calibrated, placed: Placement) -> Quality:
        """Return how far it is from the float model."""
        noise = quality.layer_noise(found.model.graph, placed, found.table, self.seen.noise)
        outputs = [str(value.name) for value in self.candidate.graph.graph.outputs]
        return judging.judged(self.images, noise, self.agreements, outputs)


def _proven(
    found: Calibrated,
    plan: PrecisionPlan,
    placed: Placement,
    options: QuantizeOptions,
    output: Path,
) -> _Proven:
    """Return the quantised model of `found`. Raises: ProofError, and as `quantization.quantize`."""
    subject, table = found.model, found.table
    half = options.float_type is Precision.FP16
    seen, images, own = judging.probed(
        subject, placed, table, options.data or options.source, half=half
    )
    graph, summary = quantization.quantize(
        subject, table, plan, float_type=options.float_type, reached=seen.magnitudes
    )
    candidate, noise = opened.made(graph, output), comparing.Noise()
    agreements = acceptance.accept(
        candidate,
        quantization.corrected(subject, table, plan),
        seen.ran,
        columns=judging.has_rows(graph),
        watch=noise.add,
        own=own,
    )
    return _Proven(candidate, summary, agreements, seen, images, noise, own)


def _asked(
    options: QuantizeOptions, model: Path, output: Path, record: Path | None
) -> QuantizeOptions:
    """Return what is asked for, checked before the model is read. Raises: InputError."""
    reads = {"the model": model, "--plan": options.plan, "--amax": options.amax}
    places.check(
        reads,
        output=output,
        record=record,
        beside={"--table": options.table, "--write-cache": options.cache},
    )
    repair = migrating.without_repairs(options.repair, options.cache)
    repairing.Wanted.named(repair)  # raises before the model is read
    return replace(options, repair=repair)


def _subject(
    model: Path, output: Path, options: QuantizeOptions
) -> tuple[Opened, PrecisionPlan, Measured | None]:
    """Return the model as it can be quantised, what shall be INT8, and scales from elsewhere.

    Raises: InputError, OutputError.
    """
    subject = taken_in(model, options, options.float_type, output)
    plan = plan_for(subject, options)
    if options.amax is None:
        return subject, plan, None
    scales = migrating.measured(options.amax, subject, plan)
    return subject, scales.plan, scales


def calibrated(  # noqa: PLR0913 - as for `quantize`, and what is not tried
    model: Opened,
    plan: PrecisionPlan,
    placed: Placement,
    options: QuantizeOptions,
    progress: Progress,
    *,
    without: Collection[str] = (),
) -> Calibrated:
    """Return the ranges of a model, and the model repaired where that is asked for.

    Those of a table that is there are of the model as the table knows it. without: repairs that
    are of no use to the caller.

    Raises: InputError, OptionError, ModelError, BackendError.
    """
    found = calibrating.known(model, placement.activations(placed), options)
    if found is not None:
        return found
    found = _calibrated(model, placed, options, progress)
    wanted = repairing.Wanted.named(options.repair).without(without)
    found = _repaired(found, wanted, plan, placed, options, progress)
    # What was seen of each tensor is of use to repairs alone, and large where workers are sent it.
    return found._replace(table=replace(found.table, candidates={}, reaches={}))


def _calibrated(
    model: Opened, placed: Placement, options: QuantizeOptions, progress: Progress
) -> Calibrated:
    """Return a model calibrated anew, with what repairs ask. Raises: as `calibrated`."""
    wanted = repairing.Wanted.named(options.repair)
    how = replace(options.calibration, candidates=bool(wanted.names))
    given = replace(options, calibration=how)
    return Calibrated(
        model, calibrating.made(model, placement.activations(placed), given, progress)
    )


def _repaired(  # noqa: PLR0913, PLR0917 - a model, what is known of it, and what is wanted
    found: Calibrated,
    wanted: Wanted,
    plan: PrecisionPlan,
    placed: Placement,
    options: QuantizeOptions,
    progress: Progress,
    *,
    noise: Noise | None = None,
) -> Calibrated:
    """Return a model with the repairs that are asked for; its table is written where one is named.

    noise: of its outputs; None: not known.

    Raises: InputError, OutputError, ModelError, BackendError.
    """
    source = options.data or options.source
    if mending.worth(wanted, noise):
        named = "observer" in (options.asked or ())
        means = mending.Means(
            plan,
            placed,
            lambda: repairing.images(found.model, source, options.calibration.size),
            lambda model: _calibrated(model, placed, options, progress).table,
            named or options.calibration.observer != CalibrationOptions().observer,
        )
        found = mending.repaired(found, wanted, means, noise)
    if options.table is not None:
        tables.write(options.table, found.table)
    return found
