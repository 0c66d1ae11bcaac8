"""What a model is calibrated on: taken in, planned, and its ranges found or read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deploykit.backends import targets
from deploykit.data import arrays, sources
from deploykit.errors import OptionError
from deploykit.files import onnxfile
from deploykit.pipeline import intake, migrating, places, preparing, repairing
from deploykit.precision import calibration, placement, quantization, repairs, tables
from deploykit.precision.calibration import CalibrationOptions
from deploykit.precision.repairs import choosing
from deploykit.recipes import describing
from deploykit.recipes.describing import NOTHING
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from deploykit.data.arrays import ArraySet
    from deploykit.pipeline.repairing import Calibrated
    from deploykit.recipes.describing import Description
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable, PrecisionPlan, Progress


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


def known(model: Opened, tensors: Sequence[str], options: QuantizeOptions) -> Calibrated | None:
    """Return the ranges in the table that is there, of the model as the table knows it.

    None: no table is there. Raises: InputError, OptionError.
    """
    if options.table is None or not options.table.exists():
        return None
    table = migrating.read(options.table, model, tensors)
    repairing.check(table, repairing.Wanted.named(options.repair))
    model = repairs.restored(model, table)
    return repairing.Calibrated(model, _checked(table, model, options), repairing.known(table))


def made(
    model: Opened, tensors: Sequence[str], options: QuantizeOptions, progress: Progress
) -> CalibrationTable:
    """Return the ranges, calibrated now. Raises: InputError, OptionError."""
    how = options.calibration
    if options.data is not None:
        data = _arrays(model, options.data)
        return calibration.calibrate_on(model, data, tensors, options=how, progress=progress)
    if options.source is None:
        raise OptionError("no images to calibrate on", fix="name a data set, or an existing table")
    if model.card is None:
        raise describing.unsaid(f"{model.path} does not say how its images are prepared")
    images, prepared = sources.dataset(options.source), model.card.preprocess
    return calibration.calibrate(model, images, prepared, tensors, options=how, progress=progress)


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
        by_default = {"size"} if table.observer in choosing.LABELS else {"observer", "size"}
        asked = by_default if asked is None else asked
    tables.check_asked(table, options.calibration, asked or (), images=images)
    return table
