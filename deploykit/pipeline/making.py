"""The verbs that write model files from other model files: quantize and build."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from deploykit import backends
from deploykit.data import sources
from deploykit.errors import ModelError, OptionError
from deploykit.files import artifacts, onnxfile
from deploykit.measuring import records
from deploykit.pipeline import places
from deploykit.precision import calibration, float16, lint, placement, quantization
from deploykit.precision.calibration import CalibrationOptions
from deploykit.recipes import metadata
from deploykit.values import Precision, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from deploykit.backends import BuildOptions
    from deploykit.pipeline.exporting import ExportOptions
    from deploykit.recipes.metadata import ModelCard
    from deploykit.values import (
        Artifact,
        CalibrationTable,
        Json,
        LayerPrecision,
        PrecisionPlan,
        Progress,
    )


@dataclass(frozen=True)
class QuantizeOptions:
    """How a model is quantised."""

    source: str | None = None
    """Data set of the images to calibrate on; None: `table` holds the ranges already."""
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    table: Path | None = None
    """Calibration table: read where it exists, else written."""
    plan: Path | None = None
    """JSON {"layers": {node: precision}, "reasons": {node: text}}, over the recipe's own."""
    float_type: Precision = Precision.FP16


@dataclass(frozen=True)
class Made:
    """A model file, and the precision of its layers."""

    artifact: Artifact
    layers: tuple[LayerPrecision, ...]
    notes: tuple[str, ...] = ()
    target: str = ""

    def to_json(self) -> Json:
        """Return what is known beyond the artifact as plain JSON values."""
        return {
            "precision": records.shares(self.layers),
            "layers": [vars(layer) for layer in self.layers],
            "notes": list(self.notes),
        }


def export(
    checkpoint: Path,
    output: Path,
    options: ExportOptions,
    *,
    record: Path | None = None,
    progress: Progress = silent,
) -> Made:
    """Return the ONNX file made from a checkpoint, proven against PyTorch.

    Raises: as `exporting.export`.
    """
    from deploykit.pipeline import exporting  # noqa: PLC0415 - torch, which nothing else here needs

    places.check({"the checkpoint": checkpoint}, output=output, record=record)
    artifact, agreements = exporting.export(checkpoint, output, options, progress=progress)
    worst = max(agreement.relative for agreement in agreements)
    made_by = artifact.made_by
    notes = (
        f"{made_by['recipe']} {made_by['variant']}, opset {made_by['opset']}",
        f"agrees with PyTorch within {worst:.1e} of each output's range",
    )
    return _recorded(Made(artifact, _layers(output), notes), record)


def cast(model: Path, output: Path, *, record: Path | None = None) -> Made:
    """Return the FP16 version of an ONNX file. Raises: InputError, OutputError, ProofError."""
    places.check({"the model": model}, output=output, record=record)
    artifact = float16.cast(model, output, float_type=Precision.FP16)
    layers = _layers(output)
    share = records.shares(layers).get(Precision.FP16.value, 0.0)
    notes = (f"{share:.1%} of the multiply-accumulates in FP16",)
    return _recorded(Made(artifact, layers, notes), record)


def _layers(path: Path) -> tuple[LayerPrecision, ...]:
    return lint.precision_table(onnxfile.read_model(path))


def _recorded(made: Made, record: Path | None) -> Made:
    """Append the artifact's record to the file `record` and return `made`."""
    if record is not None:
        kept = records.artifact_record(made.artifact, made.layers, target=made.target)
        records.append(record, kept)
    return made


def quantize(
    model: Path,
    output: Path,
    options: QuantizeOptions,
    *,
    record: Path | None = None,
    progress: Progress = silent,
) -> Made:
    """Return the INT8 model: calibrated, Q/DQ placed by TensorRT's rules, proven.

    Raises: InputError, OutputError; ProofError where the quantised graph does not run or lint.
    """
    reads = {"the model": model, "--plan": options.plan}
    places.check(reads, output=output, record=record, beside={"--table": options.table})
    graph = onnxfile.read_model(model)
    card = metadata.read(graph.metadata_props)
    plan = _plan(graph, card, options)
    placed = placement.place(graph, plan)
    quantization.check(graph, placed, options.float_type)
    table = _table(model, placement.activations(placed), card, options, progress)
    artifact = quantization.quantize(model, table, plan, output, float_type=options.float_type)
    layers = _layers(output)
    return _recorded(Made(artifact, layers, _notes(layers, table)), record)


def _plan(graph: ir.Model, card: ModelCard | None, options: QuantizeOptions) -> PrecisionPlan:
    plan = placement.default_plan(graph, card)
    if options.plan is None:
        return plan
    return placement.read_plan(options.plan, plan)


def _table(
    model: Path,
    tensors: Sequence[str],
    card: ModelCard | None,
    options: QuantizeOptions,
    progress: Progress,
) -> CalibrationTable:
    if options.table is not None and options.table.exists():
        table = calibration.read_table(options.table)
        calibration.check_fresh(table, model)
        return table
    if options.source is None:
        raise OptionError("no images to calibrate on", fix="name a data set, or an existing table")
    if card is None:
        raise ModelError(
            f"{model} does not say how its images are prepared",
            expected="an ONNX file from `deploykit export`",
        )
    table = calibration.calibrate(
        model,
        sources.dataset(options.source),
        card.preprocess,
        tensors,
        options=options.calibration,
        progress=progress,
    )
    if options.table is not None:
        calibration.write_table(options.table, table)
    return table


def _notes(layers: Sequence[LayerPrecision], table: CalibrationTable) -> tuple[str, ...]:
    share = records.shares(layers).get(Precision.INT8.value, 0.0)
    notes = [
        f"{share:.1%} of the multiply-accumulates in INT8",
        f"calibrated on {len(table.samples)} images ({table.observer})",
    ]
    if table.skipped:
        notes.append(f"{len(table.skipped)} unreadable images left out: {table.skipped[0]}, ...")
    return tuple(notes)


def build(
    model: Path, output: Path, backend: str, options: BuildOptions, *, record: Path | None = None
) -> Made:
    """Return the engine built from `model`, with the precision that each layer really got.

    The builder's own log is kept beside it as `<output>.log`.

    Raises: InputError, OptionError, OutputError, BackendError; ProofError where a precision
    that the graph asks for was not honoured.
    """
    log = output.with_name(output.name + ".log")
    places.check(
        {"the model": model},
        output=output,
        record=record,
        beside={"the log of -o": log, "--timing-cache": options.timing_cache},
    )
    chosen = backends.load(backend)
    card = metadata.read(onnxfile.read_model(model).metadata_props)
    built = chosen.build(model, output, options)
    artifacts.write_text(log, built.log)
    target = " ".join([backend, *(f"SM{sm}" for sm in options.sms)])
    artifact = artifacts.describe(
        output,
        made_by={
            "verb": "build",
            "backend": backend,
            "sms": list(options.sms),
            "card": None if card is None else card.to_json(),
            "seconds": round(built.seconds, 3),
            **({} if built.plugins is None else {"plugins": dict(built.plugins)}),
            "precision": records.shares(built.layers),
        },
        parents=(model,),
        inputs=built.inputs,
        outputs=built.outputs,
    )
    shares = records.shares(built.layers)
    parts = ", ".join(f"{share:.1%} {name}" for name, share in shares.items())
    notes = (
        f"built in {built.seconds:.1f} s for {target}",
        f"read back: {parts} of the MACs",
        *_needs(built.plugins),
    )
    return _recorded(Made(artifact, built.layers, notes, target), record)


def _needs(plugins: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield what became of our ops, and what the engine needs for them where it runs."""
    if plugins is None:
        return
    ops = ", ".join(f"{count} x {name}" for name, count in sorted(plugins["ops"].items()))
    if plugins["how"] == "none":
        yield f"standard ops for {ops}: it runs without plugins"
    elif plugins["how"] == "library":
        name = PurePath(plugins["library"]).name
        yield f"plugins for {ops}: where it runs, it needs this very {name}"
    else:
        yield f"plugins for {ops}: where it runs, it needs deploykit and nvcc"
