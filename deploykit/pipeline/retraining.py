"""The verb qat: weights and steps that suit INT8, learnt from the FP32 self or by a loss."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.data import sources
from deploykit.errors import ModelError, OptionError
from deploykit.files import artifacts, onnxfile
from deploykit.graph import canvases
from deploykit.measuring import records
from deploykit.measuring.layer_records import TrainingRecord
from deploykit.pipeline import checkpointing, places, quantizing
from deploykit.pipeline.made import Made, described, path_or_none, written
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.precision import calibration, placement, quantization, tables
from deploykit.recipes import describing, opened
from deploykit.recipes.recipe import RECIPES
from deploykit.training import batches, fake_quant, gains, landmarks, processes, retraining
from deploykit.training.course import Course
from deploykit.training.graphs import relearned
from deploykit.training.objectives import LOSSES
from deploykit.training.snapshots import Snapshots
from deploykit.values import digest, silent

if TYPE_CHECKING:
    from deploykit.pipeline.made import StrPath
    from deploykit.recipes.opened import Opened
    from deploykit.training.batches import Batches
    from deploykit.training.fake_quant import FakeQuantized
    from deploykit.training.gains import Gauge
    from deploykit.training.objectives import Loss
    from deploykit.training.retraining import Run, Trained
    from deploykit.training.steps import Scales
    from deploykit.values import Artifact, CalibrationTable, Json, Progress

_TABLE, _PARTIAL = ".calibration.json", ".partial"
"""Ends of the names of the table that belongs to the result, and of what a run goes on from."""


@dataclass(frozen=True)
class QatOptions:
    """How a model learns."""

    calibrated: QuantizeOptions = field(default_factory=QuantizeOptions)
    """Ranges to begin from, plan and description of the model, as `quantize` takes them."""
    batch_size: int = 16
    """Images of a step, all processes together; fewer where there are fewer."""
    images: str | None = None
    """Data set to learn from; None: the images that it is calibrated on."""
    course: Course = field(default_factory=Course)
    """Its features and heads: None named are those of the recipe, and what the last layers give."""
    scales: Scales = "learned"
    loss: Path | None = None
    """File that defines `loss`, of the task, for images with truth."""
    distill: bool = True
    """Learn from the FP32 self; else from the loss alone."""
    state: Path | None = None
    """Where the weights are written as a PyTorch checkpoint too."""
    bits: int = 8
    """Fewer are for experiments: a file holds INT8."""


def qat(
    model: StrPath,
    output: StrPath,
    options: QatOptions,
    *,
    record: StrPath | None = None,
    progress: Progress = silent,
) -> Made:
    """Return the float model with weights that suit INT8; beside it lies the table for `quantize`.

    `OUTPUT.calibration.json` has the steps it learnt with. What is done so far is kept beside the
    output: a run that was ended goes on there, and ends with the same weights. Under `torchrun`
    the processes share each batch.

    Raises: InputError, OutputError, OptionError; ProofError as `quantize`.
    """
    model, output, record = Path(model), Path(output), path_or_none(record)
    partial, table_path = output.parent / (output.name + _PARTIAL), table_beside(output)
    how = options.calibrated
    places.check(
        {"the model": model, "--plan": how.plan, "--loss": options.loss},
        output=output,
        record=record,
        beside={
            "--table": how.table,
            "--state": options.state,
            "the table of -o": table_path,
            "the snapshot of -o": partial,
        },
    )
    subject = _subject(model, output, how)
    with processes.joined():
        subject, trained, notes = _trained(subject, partial, options, progress)
        if not processes.first():
            processes.wait()  # for the first one to write
            return Made(artifacts.read(output), (), notes)
        graph = subject.copy()
        relearned(graph, trained.weights)
        candidate = opened.made(graph, output)
        table = _measured(candidate, trained.table, how, progress)
        artifact = written(candidate, subject.origin(), _made_by(options, trained))
        tables.write(table_path, table)
        if options.state is not None:
            checkpointing.write(options.state, candidate)
        partial.unlink(missing_ok=True)
        processes.wait()
    said = f"`deploykit quantize {output} --table {table_path}` makes it INT8"
    made = described(artifact, candidate, (*subject.notes, *notes, said), record)
    if record is not None:
        records.append(record, _record(artifact, trained, options))
    return made


def table_beside(output: Path) -> Path:
    """Return where the table of a result lies: `m.onnx` -> `m.calibration.json`."""
    return output.parent / (output.stem + _TABLE)


def _subject(model: Path, output: Path, how: QuantizeOptions) -> Opened:
    """Return the model in the form that placement takes. Raises: ModelError, OptionError."""
    subject = quantizing.taken_in(model, how, how.float_type, output)
    if len(canvases.sizes(subject.graph)) > 1:
        raise ModelError(
            "the model takes images of several sizes",
            expected="one size",
            fix="export it again with one --input-size",
        )
    if how.data is not None:
        raise OptionError(
            "--calib-data to learn from", expected="images: --calib-source or --source"
        )
    if subject.card is None:
        raise describing.unsaid(f"{model} does not say how its images are prepared")
    return subject


def _trained(
    subject: Opened, partial: Path, options: QatOptions, progress: Progress
) -> tuple[Opened, Trained, tuple[str, ...]]:
    """Return the model with its channels scaled, what it learnt, and what is to say of that."""
    how = options.calibrated
    plan = quantizing.plan_for(subject, how)
    placed = placement.place(subject.graph, plan)
    quantization.check(subject.graph, placed, how.float_type)
    loss = None if options.loss is None else LOSSES.load(str(options.loss))
    fed = _batches(subject, options, loss)
    course = _course(subject, options)
    subject, table, tried = quantizing.calibrated(
        subject,
        plan,
        placed,
        how,
        progress,
        without=("bias", "round"),  # training finds better ones
    )
    student = fake_quant.FakeQuantized(
        subject.graph,
        placed,
        table,
        grid=fake_quant.Grid(how.float_type, options.bits),
        scales=options.scales,
    )
    run = retraining.begin(
        subject.graph, student, course, fed.steps, loss=loss, logits=_logits(subject)
    )
    made_of = _made_of(subject, student, fed, options)
    gauge = gains.Gauge(run, fed, progress)
    said = {name: json.dumps(value) for name, value in asdict(course).items()}
    snapshots = Snapshots(partial, {**made_of, **said})
    resumed = snapshots.restore(run)
    before = run.step
    for each in retraining.advance(run, fed, progress):
        if processes.first():
            snapshots.keep(each)
    trained = run.result()
    repaired = (repair.note() for repair in tried)
    return subject, trained, (*repaired, *_notes(run, gauge, before if resumed else None))


def _batches(subject: Opened, options: QatOptions, loss: Loss | None) -> Batches:
    """Return the images to learn from. Raises: DataError, OptionError."""
    source = options.images or options.calibrated.source
    if source is None:
        raise OptionError("no images to learn from", fix="add --source, such as folder:DIR")
    card = subject.card
    assert card is not None  # checked before
    data = sources.dataset(source)
    if loss is not None:
        batches.check_truth(data, card.class_names)
    inputs, _ = onnxfile.interface(subject.graph)
    size = min(options.batch_size, len(data.samples)) if data.samples else options.batch_size
    return batches.Batches(
        data, card.preprocess, inputs, size, seed=options.course.seed, flips=loss is None
    )


def _course(subject: Opened, options: QatOptions) -> Course:
    """Return the course with the tensors that are compared. Raises: OptionError."""
    course, graph = options.course, subject.graph.graph
    if not options.distill:
        return replace(course, features=(), heads=())
    known = course.features
    if not known:
        known = landmarks.features(graph, _modules(subject))
    return replace(course, features=known, heads=course.heads or landmarks.heads(graph))


def _logits(subject: Opened) -> tuple[str, ...]:
    """Return the outputs that are class scores, by what the file says of itself."""
    card = subject.card
    outputs = card.outputs if card is not None else ()
    return tuple(output.name for output in outputs if output.kind == "logits")


def _modules(subject: Opened) -> tuple[str, ...]:
    """Return the modules whose outputs are features, by the shipped recipe that the card names."""
    card = subject.card
    if card is None or card.recipe not in RECIPES.shipped():
        return ()
    variants = RECIPES.load(card.recipe).variants
    return variants[card.variant].features if card.variant in variants else ()


def _made_of(
    subject: Opened, student: FakeQuantized, fed: Batches, options: QatOptions
) -> dict[str, str]:
    """Return what a training is made of: a snapshot of another one does not fit."""
    loss = "" if options.loss is None else hashlib.sha256(options.loss.read_bytes()).hexdigest()
    names = [sample.name for sample in fed.dataset.samples]
    return {
        "the model": subject.sha256,
        "the table": digest([json.dumps(student.table.to_json(), sort_keys=True)]),
        "the layers": digest([repr(student.placed)]),
        "the steps": f"{options.scales} {student.grid}",
        "the images": f"{fed.dataset.name} {digest(names)}",
        "the batches": f"{fed.size} of {processes.count()} processes",
        "the loss": loss,
    }


def _measured(
    candidate: Opened, table: CalibrationTable, how: QuantizeOptions, progress: Progress
) -> CalibrationTable:
    """Return a table with the thresholds that were learnt, bound to the new weights.

    Where the images are named, what the tensors reach is measured anew.
    """
    own = replace(
        table,
        model_sha256=candidate.sha256,
        observer=f"{table.observer}, learnt",
        factors={},
        shifts={},
        ways={},
    )
    if how.source is None or candidate.card is None:
        return own
    seen = calibration.calibrate(
        candidate,
        sources.dataset(how.source),
        candidate.card.preprocess,
        tuple(table.ranges),
        options=replace(how.calibration, observer="minmax"),
        progress=progress,
    )
    ranges = {
        name: replace(each, threshold=table.ranges[name].threshold)
        for name, each in seen.ranges.items()
    }
    return replace(own, ranges=ranges)


def _record(artifact: Artifact, trained: Trained, options: QatOptions) -> TrainingRecord:
    """Return what a report says of the training."""
    return TrainingRecord(
        model=artifact.path.name,
        model_sha256=artifact.sha256,
        curve=trained.curve,
        steps=trained.steps,
        dataset=options.images or options.calibrated.source or "",
    )


def _made_by(options: QatOptions, trained: Trained) -> Json:
    said: dict[str, Any] = {"scales": options.scales, "batch_size": options.batch_size}
    course = {name: value for name, value in asdict(options.course).items() if value != ()}
    return {"verb": "qat", **said, "course": course, "curve": list(trained.curve)}


def _notes(run: Run, gauge: Gauge, resumed: int | None) -> list[str]:
    """Return what a user reads."""
    notes = gauge.notes(run)
    if resumed is not None:
        notes.append(f"went on from step {resumed}, where a run before had ended")
    if not run.course.features and run.course.heads:
        notes.append("no features to compare are known: learnt from what the heads give alone")
    return notes
