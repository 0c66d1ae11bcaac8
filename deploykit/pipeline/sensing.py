"""The verb sensitivity: how much each layer suffers from INT8."""

from __future__ import annotations

import importlib
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from deploykit.errors import OptionError, unknown_name
from deploykit.graph import cost
from deploykit.measuring import records
from deploykit.measuring.layer_records import SensitivityRecord
from deploykit.pipeline import opening, places, quantizing
from deploykit.pipeline.made import path_or_none
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.precision import placement
from deploykit.precision.placement import plans
from deploykit.precision.sensitivity import journal, local, scores, spreading
from deploykit.precision.sensitivity.scores import BY_GRADIENT, LOCAL, METRICS, Sensitivities
from deploykit.precision.sensitivity.work import Question, Worker
from deploykit.recipes import describing
from deploykit.tasks.evaluation import Contract
from deploykit.values import Precision, digest, silent

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from deploykit.pipeline.made import StrPath
    from deploykit.precision.sensitivity.alone import Alone
    from deploykit.precision.sensitivity.journal import Journal
    from deploykit.precision.sensitivity.work import Alones
    from deploykit.recipes.opened import Opened
    from deploykit.values import CalibrationTable, PrecisionPlan, Progress

IMAGES = 32
"""That layers and outputs are compared on, where nobody says how many."""
_PARTIAL = ".partial"
"""Behind the name of the file: what is done so far."""


@dataclass(frozen=True)
class SensitivityOptions:
    """What is measured, on what, and by whom."""

    calibrated: QuantizeOptions = field(default_factory=QuantizeOptions)
    """Ranges, plan and description of the model, as `quantize` takes them."""
    metrics: Sequence[str] = (*LOCAL, "output")
    """Of `scores.METRICS`; those of a layer's own result are found together."""
    images: int = IMAGES
    """Calibration images that layers and outputs are compared on."""
    source: str | None = None
    """Images with truth, for the metric `task`."""
    limit: int | None = None
    """Of them; None: all."""
    alone: Alone = "int8"
    """What one layer at a time is while the others are the other, for `output` and `task`."""
    workers: int = 1
    ray: str | None = None
    """Address of a Ray cluster."""
    batch_size: int | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without the model. Raises: OptionError."""
        for name in self.metrics:
            if name not in METRICS:
                raise unknown_name("measure", name, METRICS)
        if not self.metrics:
            raise OptionError("no measure is asked for", expected="one of " + ", ".join(METRICS))
        if "task" in self.metrics and self.source is None:
            raise OptionError(
                "the measure task needs images with truth", fix="add --source, such as coco:DIR"
            )
        if self.images < 1:
            raise OptionError(f"{self.images} images", expected="at least 1")


class Sensed(NamedTuple):
    """What the verb returns."""

    path: Path
    found: Sensitivities
    notes: tuple[str, ...]


def sensitivity(
    model: StrPath,
    output: StrPath,
    options: SensitivityOptions,
    *,
    record: StrPath | None = None,
    progress: Progress = silent,
) -> Sensed:
    """Measure what INT8 costs in each layer, and write it to `output` as JSON.

    What is done so far is kept beside it: a run that was killed goes on there, and ends with the
    same file.

    Raises: InputError, OutputError, OptionError, BackendError.
    """
    model, output, record = Path(model), Path(output), path_or_none(record)
    how = options.calibrated
    partial = output.parent / (output.name + _PARTIAL)
    places.check(
        {"the model": model, "--plan": how.plan},
        output=output,
        record=record,
        beside={"--table": how.table, "the journal of -o": partial},
    )
    subject = quantizing.taken_in(model, how, Precision.FP16)
    plan = quantizing.plan_for(subject, how)
    placed = placement.place(subject.graph, plan)
    subject, table, _ = quantizing.calibrated(subject, plan, placed, how, progress)
    worker = Worker(_question(subject, plan, table, options))
    kept, known = journal.opened(partial, _key(worker.question, options))
    units = [unit for unit in worker.units() if not kept.has(unit)]
    work = spreading.results(worker, units, workers=options.workers, address=options.ray)
    for unit, result in progress(work, "sensitivity", len(units)):
        kept.take(unit, result)
    found = _found(worker, kept, table, options)
    scores.write(output, found)
    kept.forget()
    if record is not None:
        records.append(record, _record(subject, found))
    resumed = (f"went on where {partial.name} had ended",) if known else ()
    return Sensed(output, found, (*subject.notes, *resumed))


def _question(
    model: Opened, plan: PrecisionPlan, table: CalibrationTable, options: SensitivityOptions
) -> Question:
    """Return the work in plain values. Raises: OptionError, ModelError."""
    how, card, contract = options.calibrated, model.card, None
    source: str | Path | None = how.data or how.source
    if source is None:
        raise OptionError(
            "no images to compare on", fix="add --calib-dir, whether or not there is a table"
        )
    if how.data is None and card is None:
        raise describing.unsaid(f"{model.path} does not say how its images are prepared")
    if "task" in options.metrics:
        if card is None or how.data is not None:
            raise OptionError("the measure task needs images", fix="name them by --calib-dir")
        contract = Contract(card.preprocess, card.class_names, opening.task_named(card, model.path))
    return Question(
        data=model.data,
        path=model.path,
        plan=plan,
        table=table,
        preprocess=None if how.data is not None or card is None else card.preprocess,
        contract=contract,
        source=source,
        images=options.images,
        alone=options.alone,
        local=any(name in LOCAL for name in options.metrics),
        outputs="output" in options.metrics,
        task_source=options.source if "task" in options.metrics else None,
        task_images=options.limit,
        batch_size=options.batch_size,
        gradient=_gradients().answer if {*options.metrics} & {*BY_GRADIENT} else None,
    )


def _key(question: Question, options: SensitivityOptions) -> str:
    """Return what tells this work from other work (hex)."""
    given = (
        json.dumps(question.table.to_json(), sort_keys=True),
        json.dumps(plans.to_json(question.plan, model_sha256=""), sort_keys=True),
        *map(repr, (sorted(options.metrics), question.source, question.images, question.alone)),
        *map(repr, (question.task_source, question.task_images, question.batch_size)),
    )
    return digest(given)


def _found(
    worker: Worker, kept: Journal, table: CalibrationTable, options: SensitivityOptions
) -> Sensitivities:
    """Return all that the units gave, in the order of the layers."""
    own = {name: vars(each) for name, each in local.scores(kept.energies).items()}
    alone = journal.ordered(kept.groups, "alone")
    others = {name: each for group in alone for name, each in group.layers.items()}
    slopes = _mean(journal.ordered(kept.groups, "gradient"))
    layers = {}
    for name in worker.layers:
        known = {**own.get(name, {}), **slopes.get(name, {}), **others.get(name, {})}
        layers[name] = {m: known[m] for m in METRICS if m in options.metrics and m in known}
    macs = {work.name: work.macs for work in cost.works(worker.model.graph)}
    return Sensitivities(
        model_sha256=table.model_sha256,
        table_sha256=digest([json.dumps(table.to_json(), sort_keys=True)]),
        layers=layers,
        macs={name: count for name in layers if (count := macs.get(name)) is not None},
        alone=options.alone,
        images=options.images,
        source=str(worker.question.source),
        base=alone[0].base if alone else {},
        primary=alone[0].primary if alone else "",
        task_images=options.limit or 0,
        task_source=worker.question.task_source or "",
    )


def _record(model: Opened, found: Sensitivities) -> SensitivityRecord:
    """Return what a report says of it."""
    measure = found.measured()[-1]
    data = found.to_json()
    return SensitivityRecord(
        model=model.path.name,
        model_sha256=model.sha256,
        measure=measure,
        layers=data["layers"],
        losses=found.losses(measure),
        correlations=data["correlations"],
        images=found.images,
        dataset=found.source,
    )


def _mean(parts: Sequence[Alones]) -> dict[str, dict[str, float]]:
    """Return the measures by gradients, over images and draws."""
    if not parts:
        return {}
    images, draws = sum(part.base["images"] for part in parts), _gradients().DRAWS
    found: dict[str, dict[str, float]] = {}
    for part in parts:
        for name, each in part.layers.items():
            sums = found.setdefault(name, dict.fromkeys(each, 0.0))
            for metric, value in each.items():
                sums[metric] += value / (images * draws)
    return found


def _gradients() -> ModuleType:
    """Return what measures by gradients. Raises: OptionError without torch."""
    if importlib.util.find_spec("torch") is None:
        raise OptionError(
            "measures by gradients need torch",
            fix="pip install 'deploykit-vision[export]', or ask for --metric output",
        )
    return importlib.import_module("deploykit.training.gradients")
