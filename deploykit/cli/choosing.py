"""Commands that find out which layers to keep in float: sensitivity."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the parser reads the annotations when it runs
from typing import TYPE_CHECKING, Annotated, Any, Literal

from deploykit.cli import options, printing, progress
from deploykit.cli.about import NOT_SAID, About
from deploykit.cli.calibrated import ON_NOTHING, Calibrated
from deploykit.cli.kinds import OF_TARGET, Kinds
from deploykit.cli.making import AsJson, Model, Op, Plan, StripQdq
from deploykit.cli.parsing import Option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ALONE: tuple[Literal["int8", "float"], ...] = ("int8", "float")
_SHOWN = 10
"""Layers that are printed; the file has all."""


@dataclass(frozen=True)
class Measured:
    """what is measured, and by whom"""  # noqa: D415 - the heading of a help page

    metric: Annotated[
        list[str] | None,
        Option(help="mse, snr, cosine, channel, output, task; repeat for more."),
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
            "metrics": self.metric and tuple(self.metric),
            "alone": self.alone and options.one_of("--alone", self.alone, ALONE),
        }
        del given["metric"]
        return {name: value for name, value in given.items() if value is not None}


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
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """What INT8 costs in each layer: its own error, the outputs', the task's metric.

    measures:
      mse, snr, cosine  of the layer's result behind its activation, all else being float
      channel           noise over signal, mean over the channels: a weak channel counts in full
      output            noise over signal of the model's outputs
      task              what the task's metric loses, on --source

    A run that was stopped goes on where it ended, and ends with the same file.

    Examples:
        deploykit sensitivity model.onnx --calib-dir photos -o layers.json
        deploykit sensitivity m.onnx --calib-dir photos --metric task --source coco:val -o l.json
    """
    from deploykit import pipeline  # noqa: PLC0415 - `--help` must not pay for it

    how = pipeline.QuantizeOptions(
        **calibrated.fields(),
        plan=plan,
        about=about.description(),
        strip_qdq=strip_qdq,
        **kinds.fields(),
    )
    wanted = pipeline.SensitivityOptions(calibrated=how, **measured.fields())
    with options.named(op):
        made = pipeline.sensitivity(model, output, wanted, progress=progress.bar)
    text = "\n".join([printing.sensitivities(made.found, _SHOWN), *made.notes])
    printing.emit({**made.found.to_json(), "notes": list(made.notes)}, text, as_json=as_json)


COMMANDS: Mapping[str, Callable[..., None]] = {"sensitivity": sensitivity}
