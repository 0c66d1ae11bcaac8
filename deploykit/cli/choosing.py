"""Commands that find out which layers to keep in float: sensitivity and plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the parser reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any, Literal

from deploykit.cli import layers, options, printing, progress
from deploykit.cli.about import NOT_SAID, About
from deploykit.cli.calibrated import ON_NOTHING, Calibrated, quantized
from deploykit.cli.kinds import OF_TARGET, Kinds
from deploykit.cli.making import AsJson, Model, Op, Plan, Record, StripQdq
from deploykit.cli.parsing import Option
from deploykit.errors import OptionError, ProofError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALONE: tuple[Literal["int8", "float"], ...] = ("int8", "float")


@dataclass(frozen=True)
class Measured:
    """what is measured, and by whom"""  # noqa: D415 - the heading of a help page

    metric: Annotated[
        list[str] | None,
        Option(help="mse, snr, cosine, channel, gradient, fisher, output, task; by commas."),
    ] = None
    images: Annotated[
        int | None, Option(help="Calibration images to compare on.  [default: 32]")
    ] = None
    source: Annotated[
        str | None, Option(help="SOURCE:LOCATION of images with truth, for --metric task.")
    ] = None
    limit: Annotated[int | None, Option(help="Images of --source to use. Default: all.")] = None
    alone: Annotated[
        str | None,
        Option(help="int8 (default) or float: one layer at a time, the others being the other."),
    ] = None
    workers: Annotated[
        int | None, Option(help="Processes; more than one needs Ray.  [default: 1]")
    ] = None
    ray: Annotated[str | None, Option(help="Address of a Ray cluster to spread over.")] = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of `SensitivityOptions` that were given. Raises: OptionError."""
        given = {
            **vars(self),
            "metrics": options.names(self.metric),
            "alone": self.alone and options.one_of("--alone", self.alone, ALONE),
        }
        del given["metric"]
        return options.given(given)


AS_USUAL = Measured()


def sensitivity(
    model: Model,
    output: Annotated[Path, Option("-o", "--output", help="The JSON file to write.")],
    *,
    measured: Measured = AS_USUAL,
    calibrated: Calibrated = ON_NOTHING,
    plan: Plan = None,
    strip_qdq: StripQdq = False,
    kinds: Kinds = OF_TARGET,
    about: About = NOT_SAID,
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """What INT8 costs in each layer: its own error, the outputs', the task's metric.

    measures:
      mse, snr, cosine  of the layer's result behind its activation, all else being float
      channel           noise over signal, mean over the channels: a weak channel counts in full
      gradient, fisher  the outputs' noise over signal to first order: few passes for all layers
      output            the same, measured layer by layer
      task              what the task's metric loses, on --source

    A run that was stopped goes on where it ended, and ends with the same file.

    Examples:
        deploykit sensitivity model.onnx --calib-dir photos -o layers.json
        deploykit sensitivity m.onnx --calib-dir photos --metric task --source coco:val -o l.json
    """
    from deploykit import pipeline  # noqa: PLC0415 - `--help` must not pay for it

    how = quantized(calibrated, kinds, about, plan=plan, strip_qdq=strip_qdq)
    wanted = pipeline.SensitivityOptions(calibrated=how, **measured.fields())
    with options.named(op):
        made = pipeline.sensitivity(model, output, wanted, record=record, progress=progress.bar)
    text = "\n".join([layers.sensitivities(made.found), *made.notes])
    printing.emit({**made.found.to_json(), "notes": list(made.notes)}, text, as_json=as_json)


@dataclass(frozen=True)
class Wanted:
    """what the plan shall hold, and on which GPU"""  # noqa: D415 - the heading of a help page

    max_drop: Annotated[
        float | None, Option(help="Of the task's metric, on --source.  [default: 0.005]")
    ] = None
    keep_float: Annotated[
        int | None, Option(help="Layers in float, at most, in place of --max-drop.")
    ] = None
    gpu: Annotated[str | None, Option(help="T4, V100, A10, A100, L4, H100 ...  [default: T4]")] = (
        None
    )
    batch: Annotated[int | None, Option(help="Images per run, for the times.  [default: 1]")] = None
    int8_profile: Annotated[
        Path | None,
        Option(help="What trtexec --exportProfile wrote of an INT8 engine of the model."),
    ] = None
    fp16_profile: Annotated[
        Path | None, Option(help="Likewise of an FP16 engine: both replace the GPU's peaks.")
    ] = None
    metric: Annotated[
        str | None,
        Option(help="Of the sensitivities.  [default: task, else the nearest to it]"),
    ] = None
    source: Annotated[
        str | None, Option(help="SOURCE:LOCATION of images that plans are measured on.")
    ] = None
    limit: Annotated[int | None, Option(help="Images of --source to use. Default: all.")] = None
    evaluations: Annotated[
        int | None, Option(help="Plans that are measured, at most.  [default: 8]")
    ] = None
    confidence: Annotated[
        float | None,
        Option(help="That the drop is held on other images too; 0.5: on these.  [default: 0.95]"),
    ] = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of `PlanOptions` that were given. Raises: OptionError."""
        given = options.given(vars(self))
        both = [given.pop(name, None) for name in ("int8_profile", "fp16_profile")]
        if both == [None, None]:
            return given
        if None in both:
            raise OptionError(
                "one layer profile", expected="both, --int8-profile and --fp16-profile"
            )
        return {**given, "profiles": tuple(both)}


AS_FAST = Wanted()


def plan(
    model: Model,
    output: Annotated[Path, Option("-o", "--output", help="The JSON file to write.")],
    *,
    sensitivities: Annotated[Path, Option(help="The file that `deploykit sensitivity` wrote.")],
    wanted: Wanted = AS_FAST,
    calibrated: Calibrated = ON_NOTHING,
    base: Annotated[Path | None, Option("--plan", help="JSON: what stays in float anyway.")] = None,
    strip_qdq: StripQdq = False,
    kinds: Kinds = OF_TARGET,
    about: About = NOT_SAID,
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """The layers to keep in float: least time on a GPU for the drop that is allowed.

    Times are predicted from the GPU's peaks; the drop is measured. Give the file to
    `quantize --plan`.

    Examples:
        deploykit plan m.onnx --sensitivities l.json --table t.json --source coco:val -o plan.json
        deploykit plan m.onnx --sensitivities l.json --keep-float 6 --gpu L4 -o plan.json
    """
    from deploykit import pipeline  # noqa: PLC0415

    measured = calibrated if wanted.keep_float is None else None
    how = quantized(measured, kinds, about, plan=base, strip_qdq=strip_qdq)
    asked = pipeline.PlanOptions(sensitivities, how, **wanted.fields())
    with options.named(op):
        made = pipeline.plan(model, output, asked, record=record, progress=progress.bar)
    text = "\n".join([layers.planned(made), *made.notes])
    data = {**made.to_json(), "notes": list(made.notes)}
    printing.emit(data, text, as_json=as_json)
    if not made.met and made.drop is not None:
        raise ProofError(
            f"none of {len(made.tried)} plans holds the drop: the best loses {made.drop.real:.4f}, "
            f"on other images at most {made.drop.most:.4f}",
            fix="allow more, measure on more images, or make INT8 better first: --repair, qat",
        )


COMMANDS: Mapping[str, Callable[..., None]] = {"sensitivity": sensitivity, "plan": plan}
