"""The command that trains: qat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path  # noqa: TC003 - the parser reads it when it runs
from typing import TYPE_CHECKING, Annotated, Any

from deploykit.cli import options, printing, progress
from deploykit.cli.about import NOT_SAID, About
from deploykit.cli.calibrated import ON_NOTHING, Calibrated, quantized
from deploykit.cli.kinds import OF_TARGET, Kinds
from deploykit.cli.making import AsJson, FloatType, Model, Op, Output, Plan, Record, StripQdq
from deploykit.cli.parsing import Option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


@dataclass(frozen=True)
class Learning:
    """how it learns"""  # noqa: D415 - the heading of a help page

    source: Annotated[
        str | None,
        Option(help="SOURCE:LOCATION to learn from.  [default: what it is calibrated on]"),
    ] = None
    epochs: Annotated[int | None, Option(help="Times through the images.  [default: 10]")] = None
    batch_size: Annotated[
        int, Option(help="Images of a step, all processes together; fewer where there are fewer.")
    ] = 16
    learning_rate: Annotated[
        float | None, Option(help="Of the weights; falls by a cosine.  [default: 1e-5]")
    ] = None
    scale_rate: Annotated[
        float | None, Option(help="Of learned steps, of their size.  [default: 1e-3]")
    ] = None
    optimizer: Annotated[str | None, Option(help="adam (default) or sgd.")] = None
    average: Annotated[
        float | None, Option(help="Decay of averaged weights; 0: none.  [default: 0.998]")
    ] = None
    scales: Annotated[str, Option(help="learned, fixed as calibrated, or moving averages.")] = (
        "learned"
    )
    distill: Annotated[
        bool, Option(help="Learn from the FP32 self; without it from --loss alone.")
    ] = True
    features: Annotated[
        str | None, Option(help="Tensors compared by channel, comma-separated.")
    ] = None
    heads: Annotated[str | None, Option(help="Tensors compared number by number.")] = None
    feature_weight: Annotated[float | None, Option(help="[default: 10]")] = None
    head_weight: Annotated[float | None, Option(help="[default: 1]")] = None
    temperature: Annotated[float | None, Option(help="Of the features' softmax.  [default: 1]")] = (
        None
    )
    loss: Annotated[
        Path | None, Option(help="File of your own that defines `loss`, for images with truth.")
    ] = None
    seed: Annotated[int | None, Option(help="Of the order of images.  [default: 0]")] = None
    amp: Annotated[bool, Option(help="Compute in half precision.")] = False
    device: Annotated[str | None, Option(help="cpu (default) or cuda.")] = None

    def fields(self) -> dict[str, Any]:
        """Return the fields of `QatOptions` about learning. Raises: OptionError."""
        from deploykit.training.course import Course  # noqa: PLC0415 - slow

        own = ("epochs", "learning_rate", "scale_rate", "optimizer", "average", "seed", "device")
        weights = ("feature_weight", "head_weight", "temperature")
        given = {name: getattr(self, name) for name in (*own, *weights)}
        named = {name: options.names(getattr(self, name)) for name in ("features", "heads")}
        said = options.given(given | named)
        return {
            "images": self.source,
            "batch_size": self.batch_size,
            "scales": self.scales,
            "distill": self.distill,
            "loss": self.loss,
            "course": Course(**said, amp=self.amp),
        }


BY_DEFAULT = Learning()


def qat(
    model: Model,
    output: Output,
    *,
    calibrated: Calibrated = ON_NOTHING,
    learning: Learning = BY_DEFAULT,
    plan: Plan = None,
    float_type: FloatType = "fp16",
    state: Annotated[
        Path | None, Option(help="Write the weights as a PyTorch checkpoint too.")
    ] = None,
    strip_qdq: StripQdq = False,
    kinds: Kinds = OF_TARGET,
    about: About = NOT_SAID,
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """ONNX to ONNX with weights that suit INT8: quantisation-aware training by distillation.

    The result is a float model, and beside it the calibration table that `quantize --table` takes.
    A run that is ended goes on where it was when the same command is given again. Several GPUs:
    `torchrun --nproc-per-node 2 -m deploykit qat ...`.

    Examples:
        deploykit qat model.onnx --calib-dir photos -o model.qat.onnx
        deploykit qat model.onnx --table ranges.json --source coco:train -o model.qat.onnx
    """
    from deploykit import pipeline  # noqa: PLC0415 - `--help` must not pay for it
    from deploykit.training import processes  # noqa: PLC0415
    from deploykit.values import silent  # noqa: PLC0415

    wanted = pipeline.QatOptions(
        calibrated=quantized(
            calibrated,
            kinds,
            about,
            plan=plan,
            float_type=options.float_type(float_type),
            strip_qdq=strip_qdq,
        ),
        state=state,
        **learning.fields(),
    )
    with options.named(op), processes.joined():
        shown = progress.bar if processes.first() else silent
        made = pipeline.qat(model, output, wanted, record=record, progress=shown)
        if not processes.first():
            return
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


COMMANDS: Mapping[str, Callable[..., None]] = {"qat": qat}
