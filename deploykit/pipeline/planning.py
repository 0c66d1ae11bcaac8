"""The verb plan: which layers to keep in float, for a drop that is allowed and a GPU."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.errors import OptionError
from deploykit.files import artifacts
from deploykit.measuring import records
from deploykit.measuring.layer_records import PlanRecord
from deploykit.pipeline import places, quantizing
from deploykit.pipeline.made import path_or_none
from deploykit.pipeline.quantizing import QuantizeOptions
from deploykit.pipeline.trying import Trials
from deploykit.precision import placement
from deploykit.precision.placement import plans
from deploykit.precision.planning import choosing, confirming, costs, gpus, profiles
from deploykit.precision.sensitivity import scores
from deploykit.values import Precision, PrecisionPlan, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from deploykit.pipeline.made import StrPath
    from deploykit.precision.placement import Placement
    from deploykit.precision.planning.choosing import Choice
    from deploykit.precision.planning.confirming import Drop, Tried
    from deploykit.precision.planning.costs import Costs
    from deploykit.precision.sensitivity.scores import Sensitivities
    from deploykit.recipes.opened import Opened
    from deploykit.values import Json, Progress

MAX_DROP = 0.005


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is made from, and what it shall hold."""

    sensitivities: StrPath
    """File that `sensitivity` wrote for the same model."""
    calibrated: QuantizeOptions = field(default_factory=QuantizeOptions)
    """Ranges, base plan and description of the model, as `quantize` takes them."""
    max_drop: float | None = None
    """What the task's metric may lose; None: MAX_DROP, unless `keep_float` says how many."""
    keep_float: int | None = None
    """Layers in float, at most: those that INT8 hurts most. Nothing is measured then."""
    gpu: str = "T4"
    """One of `gpus.GPUS`, by whose peaks layers are timed."""
    batch: int = 1
    """Images per run, for the times."""
    profiles: tuple[StrPath, StrPath] | None = None
    """Layer profiles of an INT8 and an FP16 engine of the model, see `profiles.read`, in place of
    the GPU's peaks."""
    metric: str | None = None
    """Measure of sensitivity; None: the task's, else the one that agrees best with it."""
    source: str | None = None
    """Images that choices are measured on; without truth, what the float model finds is it."""
    limit: int | None = None
    evaluations: int = confirming.EVALUATIONS
    """Choices that are measured, at most."""
    confidence: float = confirming.CONFIDENCE
    """That the drop is held on other images too; 0.5: on those of `source` alone."""

    def __post_init__(self) -> None:
        """Check what can be checked without the model. Raises: OptionError."""
        if self.max_drop is not None and self.keep_float is not None:
            raise OptionError("--max-drop and --keep-float", expected="one of them")
        if self.max_drop is not None and not (self.max_drop >= 0 and math.isfinite(self.max_drop)):
            raise OptionError(f"a drop of {self.max_drop}", expected="0 or more, such as 0.005")
        if self.keep_float is not None and self.keep_float < 0:
            raise OptionError(f"{self.keep_float} layers in float", expected="0 or more")
        if self.keep_float is None and self.source is None:
            raise OptionError(
                "a drop is measured on images",
                fix="add --source, such as coco:DIR, or choose how many layers: --keep-float 6",
            )
        confirming.check_confidence(self.confidence)
        if self.evaluations < 1 or self.batch < 1:
            raise OptionError("evaluations and batch", expected="at least 1")


@dataclass(frozen=True)
class Planned:
    """A plan, and how it was found."""

    path: Path
    plan: PrecisionPlan
    choice: Choice
    """Times and drop by the model."""
    costs: Costs
    metric: str
    """Of sensitivity, by which the layers were weighed."""
    tried: tuple[Tried, ...] = ()
    frontier: tuple[Choice, ...] = ()
    drop: Drop | None = None
    """What the task loses, measured; None: it was not."""
    reference: float | None = None
    """The float model's number."""
    named: str = ""
    """What the task calls it."""
    met: bool = True
    """Whether it holds what was allowed, on other images too."""
    notes: tuple[str, ...] = ()

    def to_json(self) -> Json:
        """Return how it was found as plain JSON values."""
        return {
            "metric": self.metric,
            **_plain(self.choice),
            "seconds_int8": self.costs.seconds(()),
            "seconds_fp16": self.costs.seconds(self.costs.layers),
            **_lost(self.drop),
            "reference": self.reference,
            "met": self.met,
            "tried": [{**_plain(each.choice), **_lost(each.drop)} for each in self.tried],
            "frontier": [_plain(each) for each in self.frontier],
        }


def _plain(choice: Choice) -> Json:
    return {
        "kept": list(choice.kept),
        "seconds": choice.seconds,
        "predicted_drop": choice.drop if math.isfinite(choice.drop) else None,
    }


def _lost(drop: Drop | None) -> Json:
    real, most = drop or (None, None)
    return {"real_drop": real, "most_drop": most}


def plan(
    model: StrPath,
    output: StrPath,
    options: PlanOptions,
    *,
    record: StrPath | None = None,
    progress: Progress = silent,
) -> Planned:
    """Choose the layers to keep in float, and write them to `output` for `quantize --plan`.

    Raises: InputError, OutputError, OptionError, BackendError.
    """
    model, output, measured = Path(model), Path(output), Path(options.sensitivities)
    record = path_or_none(record)
    how = options.calibrated
    reads = {"the model": model, "--plan": how.plan, "the sensitivities": measured}
    for kind, path in zip(("INT8", "FP16"), options.profiles or (), strict=False):
        reads[f"the {kind} profile"] = Path(path)
    places.check(reads, output=output, record=record, beside={"--table": how.table})
    subject = quantizing.taken_in(model, how, Precision.FP16)
    base = quantizing.plan_for(subject, how)
    found = scores.read(measured)
    scores.check_fresh(found, subject)
    metric = options.metric or best(found)
    losses = found.losses(metric)
    placed = placement.place(subject.graph, base)
    times = _times(subject, list(found.layers), options)
    if options.keep_float is not None:
        choice = choosing.keeping(times, losses, options.keep_float)
        made = Planned(output, _with(base, choice, losses, metric), choice, times, metric)
    else:
        subject, table, _ = quantizing.calibrated(subject, base, placed, how, progress)
        images = str(options.source), options.limit
        trials = Trials(subject, base, table, *images, options.confidence, progress)
        made = _measured(output, trials, times, losses, metric, options)
    made = replace(made, notes=(*made.notes, *_unknown(subject, placed, found)))
    data = plans.to_json(made.plan, model_sha256=subject.sha256)
    made_by = {"verb": "plan", "gpu": options.gpu, "batch": options.batch, **made.to_json()}
    artifacts.write_json(output, {**data, "made_by": made_by})
    if record is not None:
        records.append(record, _record(subject, made, options))
    return made


def _unknown(subject: Opened, placed: Placement, found: Sensitivities) -> Iterator[str]:
    """Yield what is to say of layers in INT8 that nothing is known of."""
    int8 = [str(node.name) for node in placement.layers(subject.graph.graph, placed)]
    names = [name for name in int8 if name not in found.layers]
    if names:
        shown = ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
        yield (
            f"the sensitivities lack {len(names)} of the layers in INT8, which stay so: {shown}; "
            "measure again with the options of this command to weigh them"
        )


_SHOWN = 3


def _times(model: Opened, layers: Sequence[str], options: PlanOptions) -> Costs:
    """Return how long layers take: as profiled, or by the GPU's peaks."""
    times = costs.roofline(model.graph, layers, gpus.gpu(options.gpu), batch=options.batch)
    if options.profiles is None:
        return times
    int8, half = (profiles.read(Path(path)) for path in options.profiles)
    return replace(times, layers=profiles.measured(layers, int8, half))


def best(found: Sensitivities) -> str:
    """Return the measure to plan by: the task's own, else the one that agrees best with it."""
    known = found.measured()
    if "task" in known:
        return "task"
    rho = {name: value for name, value in found.correlations().items() if value is not None}
    if rho and max(rho.values()) > _TRUSTED:
        return max(rho, key=rho.__getitem__)
    return next(name for name in _NEAREST if name in known)


_NEAREST = ("output", "gradient", "fisher", "channel", "snr", "cosine", "mse")
"""Measures, the best guess of what the task loses first."""
_TRUSTED = 0.99
"""Correlation with the noise of the outputs from which a cheaper measure is as good."""


def _record(model: Opened, made: Planned, options: PlanOptions) -> PlanRecord:
    """Return what a report says of it."""

    def counted(choice: Choice, drop: Drop | None = None) -> Json:
        found = {**_plain(choice), **_lost(drop), "layers": len(choice.kept)}
        del found["kept"]
        return found

    return PlanRecord(
        model=model.path.name,
        model_sha256=model.sha256,
        gpu=options.gpu,
        batch_size=options.batch,
        measure=made.metric,
        primary=made.named,
        tried=tuple(counted(each.choice, each.drop) for each in made.tried),
        frontier=tuple(map(counted, made.frontier)),
        chosen=counted(made.choice, made.drop),
        seconds_int8=made.costs.seconds(()),
        seconds_fp16=made.costs.seconds(made.costs.layers),
    )


def _with(
    base: PrecisionPlan, choice: Choice, losses: Mapping[str, float], metric: str
) -> PrecisionPlan:
    """Return a plan with the layers of a choice in float, each with its reason."""
    whole = sum(losses.values()) or 1.0
    layers = {**base.layers, **dict.fromkeys(choice.kept, Precision.FP16)}
    reasons = {
        name: f"planned: {losses[name] / whole:.1%} of what INT8 loses by {metric}"
        for name in choice.kept
    }
    return replace(base, layers=layers, reasons={**base.reasons, **reasons})


def _measured(  # noqa: PLR0913, PLR0917 - what one search is about
    output: Path,
    trials: Trials,
    times: Costs,
    losses: Mapping[str, float],
    metric: str,
    options: PlanOptions,
) -> Planned:
    """Return the fastest plan that holds the drop, by what it really loses."""
    allowed = MAX_DROP if options.max_drop is None else options.max_drop
    found = confirming.confirmed(
        times, losses, allowed, trials.drop, most=options.evaluations, scaled=metric == "task"
    )
    best, notes = found.nearest, []
    if trials.single:
        notes.append("a single image says nothing of what others lose")
    if trials.told:
        notes.append("what the float model finds was taken for the truth")
    if len(best.choice.kept) == len(times.layers):
        notes.append("every layer stays in float: `deploykit cast` makes the FP16 model")
    slow = [name for name, each in times.layers.items() if each.int8 >= each.half]
    if slow:
        notes.append(f"{len(slow)} of {len(times.layers)} layers gain no time by INT8 on this GPU")
    return Planned(
        output,
        _with(trials.plan, best.choice, found.drops, metric),
        best.choice,
        times,
        metric,
        found.tried,
        choosing.frontier(times, found.drops),
        best.drop,
        trials.reference,
        trials.named,
        found.best is not None,
        tuple(notes),
    )
