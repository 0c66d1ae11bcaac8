"""Commands that write a model file: export, fuse, quantize, cast, build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from deploykit.cli import options, printing, progress
from deploykit.cli.about import NOT_SAID, About
from deploykit.cli.calibrated import ON_NOTHING, Calibrated, quantized
from deploykit.cli.kinds import OF_TARGET, Kinds
from deploykit.cli.parsing import Argument, Option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Checkpoint = Annotated[Path, Argument(help="A .pth, .pt or .safetensors file.")]
Model = Annotated[Path, Argument(help="An ONNX file.")]
Output = Annotated[Path, Option("-o", "--output", help="The file to write.")]
AsJson = Annotated[bool, Option("--json", help="Print one JSON object.")]
Recipe = Annotated[
    str | None,
    Option(help="Model family, or a recipe file of your own. Default: found out."),
]
BatchSize = Annotated[
    int | None,
    Option(help="Images per forward pass.  [default: 8, fewer where they are large]"),
]
Record = Annotated[
    Path | None,
    Option(help="JSON-lines file to append the result to, for `deploykit report`."),
]
FloatType = Annotated[str, Option(help="fp16 or fp32: what is not INT8 runs in.")]


Plan = Annotated[Path | None, Option(help="JSON: which layers stay in float, and why.")]
WriteCache = Annotated[
    Path | None,
    Option(help="Also write a calibration cache for TensorRT 10 and before; repairs nothing."),
]
Amax = Annotated[
    Path | None,
    Option(help="Checkpoint of pytorch-quantization or ModelOpt: its scales, in place of images."),
]
StripQdq = Annotated[bool, Option(help="Take Q/DQ that the file has off, and place it anew.")]


InputSize = Annotated[
    str | None,
    Option(help="HxW in pixels, or several: an image takes what fits. Default: the recipe's."),
]
Fit = Annotated[
    str | None,
    Option(help="Choose the sizes for these images, such as folder:DIR: each padded as alone."),
]
Protocol = Annotated[
    str | None, Option(help="How images are prepared, see below.  [default: the recipe's]")
]
ClassNames = Annotated[
    str | None,
    Option(help="Comma-separated, or a file with one in each line; or coco, voc, cityscapes."),
]
Settings = Annotated[
    list[str] | None,
    Option("--set", help="NAME=VALUE that the file does not say, such as detections=300."),
]
Op = Annotated[
    list[Path] | None, Option("--op", help="File of an op of your own; repeat for more.")
]


def export(
    checkpoint: Checkpoint,
    output: Output,
    *,
    recipe: Recipe = None,
    variant: Annotated[str | None, Option(help="Default: found out from the weights.")] = None,
    input_size: InputSize = None,
    fit: Fit = None,
    protocol: Protocol = None,
    class_names: ClassNames = None,
    settings: Settings = None,
    opset: Annotated[int, Option(help="17 for TensorRT 8.6; FP16 scales need 19.")] = 19,
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """Checkpoint to ONNX: fold the branches and prove the result against PyTorch.

    protocols of yolov6, for 640x640:
      evaluation       letterbox, shrunk by area (eval.py without rectangles); the default
      evaluation-640   the same, the image 2 to 12 pixels smaller (eval.py --reproduce_640_eval)
      evaluation-rect  up to 672x672, half a stride beside the image (eval.py by its default)
      inference        letterbox, resized linearly (infer.py, and deployed engines)
    protocols of swin, and protocols of mpvit (timm alone), beside the official one:
      timm             the centre of 90 % of the short side (all of it for some at 384)
      torchvision      the centre of an image whose short side is 232 (or as published)
    protocols of detr, and protocols of detr_panoptic, beside images stretched to one size:
      padded           at their aspect ratio, with the mask of what is beside them
    Examples:
        deploykit export yolov6s.pt --protocol evaluation-640 -o yolov6s.onnx
        deploykit export weights.pth --recipe my_model.py --input-size 480x640 -o my_model.onnx
        deploykit export maskrcnn.pth --input-size 480x640,640x480 -o small.onnx
        deploykit export maskrcnn.pth --fit folder:photos/ -o photos.onnx
    """
    from deploykit import pipeline  # noqa: PLC0415 - `--help` must not pay for it
    from deploykit.pipeline.exporting import ExportOptions  # noqa: PLC0415

    sizes = options.image_sizes(input_size)
    wanted = ExportOptions(
        recipe=recipe,
        variant=variant,
        input_size=sizes[0] if sizes else None,
        canvases=sizes[1:],
        images=options.shapes(fit, progress.bar, input_size=input_size),
        protocol=protocol,
        class_names=options.class_names(class_names),
        settings=options.settings(settings),
        opset=opset,
    )
    with options.named(op):
        made = pipeline.export(checkpoint, output, wanted, record=record, progress=progress.bar)
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


def fuse(
    model: Model,
    output: Output,
    *,
    about: About = NOT_SAID,
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """ONNX to ONNX: fold batch norms and constants, remove what does nothing.

    Examples:
        deploykit fuse model.onnx -o model.fused.onnx
        deploykit fuse open.onnx --input-size 640x640 -o model.fused.onnx
    """
    _rewrite("fuse", (model, output, record), op, about, as_json=as_json)


def quantize(
    model: Model,
    output: Output,
    *,
    calibrated: Calibrated = ON_NOTHING,
    plan: Plan = None,
    float_type: FloatType = "fp16",
    strip_qdq: StripQdq = False,
    amax: Amax = None,
    write_cache: WriteCache = None,
    kinds: Kinds = OF_TARGET,
    about: About = NOT_SAID,
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """ONNX to INT8 ONNX: calibrate, place Q/DQ by TensorRT's rules, lint the result.

    Examples:
        deploykit quantize model.onnx --calib-dir photos -o model.int8.onnx
        deploykit quantize model.onnx --calib-source coco:val --calib-size 256 -o model.int8.onnx
        deploykit quantize model.onnx --calib-dir photos --plan plan.json -o t4.onnx --sm T4
        deploykit quantize foreign.onnx --preprocess imagenet --calib-dir photos -o int8.onnx
    """
    from deploykit import pipeline  # noqa: PLC0415

    wanted = quantized(
        calibrated,
        kinds,
        about,
        amax=amax,
        plan=plan,
        float_type=options.float_type(float_type),
        strip_qdq=strip_qdq,
        cache=write_cache,
    )
    with options.named(op):
        made = pipeline.quantize(model, output, wanted, record=record, progress=progress.bar)
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


def cast(
    model: Model,
    output: Output,
    *,
    about: About = NOT_SAID,
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """ONNX to FP16 ONNX, for engines without INT8: precision lives in the graph.

    Examples:
        deploykit cast model.onnx -o model.fp16.onnx
        deploykit cast open.onnx --input-size 640x640 -o model.fp16.onnx
    """
    _rewrite("cast", (model, output, record), op, about, as_json=as_json)


def _rewrite(
    verb: Literal["fuse", "cast"],
    files: tuple[Path, Path, Path | None],
    op: list[Path] | None,
    about: About,
    *,
    as_json: bool,
) -> None:
    """Make one ONNX file from another; files: the model, -o and --record."""
    from deploykit import pipeline  # noqa: PLC0415

    model, output, record = files
    with options.named(op):
        made = getattr(pipeline, verb)(model, output, about=about.description(), record=record)
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


def build(
    model: Model,
    output: Output,
    *,
    backend: Annotated[str, Option(help="tensorrt_rtx, tensorrt or onnxruntime.")] = "tensorrt_rtx",
    sm: Annotated[list[str] | None, Option(help="Target GPUs: T4,A10 or 75,8.6 ...")] = None,
    min_shapes: Annotated[list[str] | None, Option(help="name:1x3x640x640")] = None,
    opt_shapes: Annotated[list[str] | None, Option(help="name:8x3x640x640")] = None,
    max_shapes: Annotated[list[str] | None, Option(help="name:32x3x640x640")] = None,
    workspace: Annotated[str | None, Option(help="Scratch memory, such as 4G.")] = None,
    timing_cache: Annotated[Path | None, Option(help="For full TensorRT.")] = None,
    plugins: Annotated[
        str,
        Option(
            help="RoIAlign and NMS: auto (plugins from Python), none (standard ops), or the path "
            "of libdeploykit_plugins.so."
        ),
    ] = "auto",
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """ONNX to engine, and read back the precision that each layer really got.

    Examples:
        deploykit build model.int8.onnx --sm A10 --sm L4 -o model.engine
        deploykit build model.fp16.onnx --sm T4 -o model.engine
        deploykit build model.int8.onnx --backend tensorrt -o model.engine
    """
    from deploykit import backends  # noqa: PLC0415
    from deploykit.backends import BuildOptions, targets  # noqa: PLC0415

    wanted = BuildOptions(
        sms=tuple(targets.target(text).sm for text in options.names(sm) or ()),
        shapes=options.profiles(min_shapes or (), opt_shapes or (), max_shapes or ()),
        workspace=options.byte_count(workspace),
        timing_cache=timing_cache,
        plugins=plugins,
    )
    with backends.ahead(backend), options.named(op):
        from deploykit import pipeline  # noqa: PLC0415 - while the builder starts

        made = pipeline.build(
            model, output, backend, wanted, record=record, progress=progress.bar, say=printing.note
        )
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


COMMANDS: Mapping[str, Callable[..., None]] = {
    "export": export,
    "fuse": fuse,
    "quantize": quantize,
    "cast": cast,
    "build": build,
}
