"""The verb quantize: an ONNX file to one in INT8."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deploykit.backends import targets
from deploykit.data import arrays, sources
from deploykit.errors import OptionError
from deploykit.files import onnxfile
from deploykit.pipeline import intake, judging, migrating, places, preparing, repairing
from deploykit.pipeline.made import Made, path_or_none, recorded, written
from deploykit.precision import (
    calibration,
    lint,
    placement,
    quality,
    quantization,
    repairs,
    tables,
)
from deploykit.precision.calibration import CalibrationOptions
from deploykit.precision.repairs import choosing
from deploykit.proof import acceptance
from deploykit.recipes import describing, opened
from deploykit.recipes.describing import NOTHING
from deploykit.values import Precision, silent

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from deploykit.data.arrays import ArraySet
    from deploykit.pipeline.made import StrPath
    from deploykit.pipeline.migrating import Measured
    from deploykit.pipeline.repairing import Repair
    from deploykit.precision.placement import Placement
    from deploykit.recipes.describing import Description
    from deploykit.recipes.opened import Opened
    from deploykit.values import (
        CalibrationTable,
        PrecisionPlan,
        Progress,
    )


@dataclass(frozen=True)
class QuantizeOptions:
    """How a model is quantised."""

    source: str | None = None
    """Data set of the images to calibrate on; None: `table` holds the ranges already."""
    data: Path | None = None
    """Folder of arrays for the inputs, in place of images, see `data.arrays`."""
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    table: Path | None = None
    """Calibration table: read where it exists, else written."""
    asked: Collection[str] | None = None
    """Fields of `calibration` that an existing table must agree with; None: `observer` and `size`
    where there are images to calibrate on."""
    plan: Path | None = None
    """JSON {"layers": {node: precision}, "reasons": {node: text}}, over the recipe's own."""
    float_type: Precision = Precision.FP16
    about: Description = NOTHING
    """What the file does not say itself."""
    strip_qdq: bool = False
    """Take Q/DQ that the file has off, instead of keeping it."""
    int8_layers: Collection[str] = ()
    """Kinds of layers in INT8 that a rule of placement keeps in float, such as `narrow`, or `all`:
    every kind that has a kernel."""
    float_layers: Collection[str] = ()
    """Kinds of layers in float, such as `grouped`, to which depthwise ones belong."""
    target_sm: str | None = None
    """The GPU, such as T4 or 75, where it lacks kernels; None: any from SM80 on."""
    repair: Collection[str] = (repairing.AUTO,)
    """Of `precision.repairs.NAMES`; `auto`: those that help on images held out; `none`."""
    amax: Path | None = None
    """Checkpoint of pytorch-quantization or ModelOpt whose scales are taken; nothing is run."""
    cache: Path | None = None
    """Calibration cache of TensorRT to write, of the model as it is: nothing is repaired."""


class Calibrated(NamedTuple):
    """A model whose ranges are known."""

    model: Opened
    """The float model that they are of: its channels may have been scaled."""
    table: CalibrationTable
    repairs: tuple[Repair, ...]


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
        subject, table, tried = calibrated(subject, plan, placed, options, progress)
    else:
        table, tried = migrating.tabled(scales, subject, placed), ()
    half = options.float_type is Precision.FP16
    cached = migrating.write_cache(options.cache, placed, table)
    seen, images = judging.probed(subject, placed, table, options.data or options.source, half=half)
    graph, summary = quantization.quantize(
        subject, table, plan, float_type=options.float_type, reached=seen.magnitudes
    )
    candidate = opened.made(graph, output)
    agreements = acceptance.accept(candidate, subject, seen.ran, columns=judging.has_rows(graph))
    noise = quality.layer_noise(subject.graph, placed, table, seen.noise)
    outputs = [str(value.name) for value in graph.graph.outputs]
    found = judging.judged(images, noise, agreements, outputs)
    made_by = {"verb": "quantize", **summary, "quality": found.to_json()}
    if tried:
        made_by["repairs"] = {repair.name: repair.to_json() for repair in tried}
    artifact = written(candidate, subject.origin(), made_by)
    layers = lint.precision_table(graph)
    notes = (
        *subject.notes,
        *judging.notes(layers, table),
        *cached,
        *(repair.note() for repair in tried),
        *found.notes(),
        *judging.doubts(table),
        *judging.wide(summary["beyond_fp16"]),
    )
    return recorded(Made(artifact, layers, notes), record)


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


def taken_in(
    model: Path,
    options: QuantizeOptions,
    float_type: Precision,
    output: Path | None = None,
) -> Opened:
    """Return a model as it is placed and calibrated: what it computes in float, and its opset.

    float_type: of the steps that it must hold. output: an ONNX file that is to be written.

    Raises: InputError, OutputError.
    """
    taken = intake.read(model, options.about)
    if output is not None:
        places.check_weights(taken.graph, output)
    opset = quantization.MIN_OPSET.get(float_type, 0)
    return preparing.prepared(taken, opset, strip=options.strip_qdq)


def plan_for(model: Opened, options: QuantizeOptions) -> PrecisionPlan:
    """Return the plan of the recipe, with the user's over it. Raises: InputError."""
    sm = None if options.target_sm is None else int(targets.target(options.target_sm).sm)
    kinds = placement.Kinds(options.int8_layers, options.float_layers, sm)
    plan = placement.default_plan(model.graph, model.card, kinds)
    if options.plan is None:
        return plan
    names = {node.name or "" for node in model.graph.graph}
    return placement.read_plan(options.plan, plan, model_sha256=model.sha256, nodes=names)


def calibrated(
    model: Opened,
    plan: PrecisionPlan,
    placed: Placement,
    options: QuantizeOptions,
    progress: Progress,
) -> Calibrated:
    """Return the ranges of a model, repaired first where that is asked for.

    Those of a table that is there are of the model as the table knows it.

    Raises: InputError, OptionError, ModelError, BackendError.
    """
    tensors, wanted = placement.activations(placed), repairing.Wanted.named(options.repair)
    if options.table is not None and options.table.exists():
        known = migrating.read(options.table, model, tensors)
        repairing.check(known, wanted)
        model = repairs.restored(model, known)
        return Calibrated(model, _checked(known, model, options), repairing.known(known))
    source = options.data or options.source
    tried: tuple[Repair, ...] = ()
    if wanted.names and source is not None:
        seen = repairing.images(model, source, options.calibration.size)
        if seen is not None:
            model, tried, uneven = repairing.repaired(model, plan, placed, seen, wanted)
            if repairing.chooses(wanted, options.calibration, options.asked or (), uneven=uneven):
                how = replace(options.calibration, candidates=True)
                given = replace(options, calibration=how)
                table = _made(model, tensors, given, progress)
                table, found = repairing.chosen(model, table, plan, placed, seen, wanted)
                if found.taken and options.table is not None:
                    tables.write(options.table, table)
                return Calibrated(model, table, (*tried, found))
    return Calibrated(model, _made(model, tensors, options, progress), tried)


def _made(
    model: Opened, tensors: Sequence[str], options: QuantizeOptions, progress: Progress
) -> CalibrationTable:
    """Return the ranges, calibrated now and written where a table is named. Raises: InputError."""
    how = options.calibration
    if options.data is not None:
        data = _arrays(model, options.data)
        table = calibration.calibrate_on(model, data, tensors, options=how, progress=progress)
    elif options.source is None:
        raise OptionError("no images to calibrate on", fix="name a data set, or an existing table")
    elif model.card is None:
        raise describing.unsaid(f"{model.path} does not say how its images are prepared")
    else:
        images, prepared = sources.dataset(options.source), model.card.preprocess
        table = calibration.calibrate(
            model, images, prepared, tensors, options=how, progress=progress
        )
    if options.table is not None:
        tables.write(options.table, table)
    return table


def _arrays(model: Opened, folder: Path) -> ArraySet:
    return arrays.opened(folder, onnxfile.interface(model.graph)[0])


def _checked(table: CalibrationTable, model: Opened, options: QuantizeOptions) -> CalibrationTable:
    """Return the table of a file. Raises: StaleTableError where it is not what is asked for."""
    tables.check_fresh(table, model)
    if options.data is not None:
        tables.check_arrays(table, _arrays(model, options.data))
    images, asked = None, options.asked
    if options.source is not None and model.card is not None:
        images = (sources.dataset(options.source), model.card.preprocess)
        by_default = {"size"} if table.observer == choosing.LABEL else {"observer", "size"}
        asked = by_default if asked is None else asked
    tables.check_asked(table, options.calibration, asked or (), images=images)
    return table
