"""Commands that write a model file: export, fuse, quantize, cast, build."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.cli import options, printing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Checkpoint = Annotated[Path, typer.Argument(help="A .pth, .pt or .safetensors file.")]
Model = Annotated[Path, typer.Argument(help="An ONNX file.")]
Output = Annotated[Path, typer.Option("-o", "--output", help="The file to write.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Recipe = Annotated[
    str | None,
    typer.Option(help="Model family, or a recipe file of your own. Default: found out."),
]
BatchSize = Annotated[
    int | None,
    typer.Option(help="Images per forward pass.  [default: 8, fewer where they are large]"),
]
Record = Annotated[
    Path | None,
    typer.Option(help="JSON-lines file to append the result to, for `deploykit report`."),
]
FloatType = Annotated[str, typer.Option(help="fp16 or fp32: what is not INT8 runs in.")]


def export(
    checkpoint: Checkpoint,
    output: Output,
    *,
    recipe: Recipe = None,
    variant: Annotated[
        str | None, typer.Option(help="Default: found out from the weights.")
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(help="HxW in pixels. Default: the recipe's.")
    ] = None,
    class_names: Annotated[
        str | None, typer.Option(help="Comma-separated, in the order of training.")
    ] = None,
    opset: Annotated[int, typer.Option(help="17 for TensorRT 8.6; FP16 scales need 19.")] = 19,
    record: Record = None,
    as_json: AsJson = False,
) -> None:
    """Checkpoint to ONNX: fold the branches and prove the result against PyTorch."""
    from deploykit import pipeline  # noqa: PLC0415 - `--help` must not pay for it
    from deploykit.pipeline.exporting import ExportOptions  # noqa: PLC0415

    wanted = ExportOptions(
        recipe=recipe,
        variant=variant,
        input_size=options.image_size(input_size),
        class_names=options.names(class_names),
        opset=opset,
    )
    made = pipeline.export(checkpoint, output, wanted, record=record, progress=printing.bar)
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


def fuse(model: Model, output: Output, *, as_json: AsJson = False) -> None:
    """ONNX to ONNX: fold batch norms and constants, remove what does nothing."""
    from deploykit.pipeline import fusing  # noqa: PLC0415

    printing.artifact(fusing.fuse(model, output), as_json=as_json)


def quantize(
    model: Model,
    output: Output,
    *,
    calib_dir: Annotated[Path | None, typer.Option(help="Folder of images, nested.")] = None,
    calib_source: Annotated[
        str | None, typer.Option(help="SOURCE:LOCATION, such as coco:DIR, in place of --calib-dir.")
    ] = None,
    calib_method: Annotated[str, typer.Option(help="mse, minmax, percentile or entropy.")] = "mse",
    calib_size: Annotated[int, typer.Option(help="Images to use, evenly spread.")] = 512,
    calib_batch_size: BatchSize = None,
    percentile: Annotated[
        float, typer.Option(help="Of |x|, for --calib-method percentile.")
    ] = 99.99,
    table: Annotated[
        Path | None,
        typer.Option(help="Calibration table to read if it exists, else to write."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="JSON: which layers stay in float, and why.")
    ] = None,
    float_type: FloatType = "fp16",
    skip_unreadable: Annotated[
        bool, typer.Option(help="Count unreadable images instead of stopping.")
    ] = False,
    record: Record = None,
    as_json: AsJson = False,
) -> None:
    """ONNX to INT8 ONNX: calibrate, place Q/DQ by TensorRT's rules, lint the result."""
    from deploykit import pipeline  # noqa: PLC0415
    from deploykit.precision.calibration import CalibrationOptions  # noqa: PLC0415

    wanted = pipeline.QuantizeOptions(
        source=options.calibration(calib_dir, calib_source, needed=not _exists(table)),
        calibration=CalibrationOptions(
            observer=calib_method,
            size=calib_size,
            batch_size=calib_batch_size,
            percentile=percentile,
            skip_unreadable=skip_unreadable,
        ),
        table=table,
        plan=plan,
        float_type=options.float_type(float_type),
    )
    made = pipeline.quantize(model, output, wanted, record=record, progress=printing.bar)
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


def _exists(path: Path | None) -> bool:
    return path is not None and path.exists()


def cast(
    model: Model,
    output: Output,
    *,
    record: Record = None,
    as_json: AsJson = False,
) -> None:
    """ONNX to FP16 ONNX, for engines without INT8: precision lives in the graph."""
    from deploykit import pipeline  # noqa: PLC0415

    made = pipeline.cast(model, output, record=record)
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


def build(
    model: Model,
    output: Output,
    *,
    backend: Annotated[
        str, typer.Option(help="tensorrt_rtx, tensorrt or onnxruntime.")
    ] = "tensorrt_rtx",
    sm: Annotated[
        list[str] | None, typer.Option(help="Target, such as 75 (T4) or 86; repeat for more.")
    ] = None,
    min_shapes: Annotated[list[str] | None, typer.Option(help="name:1x3x640x640")] = None,
    opt_shapes: Annotated[list[str] | None, typer.Option(help="name:8x3x640x640")] = None,
    max_shapes: Annotated[list[str] | None, typer.Option(help="name:32x3x640x640")] = None,
    workspace: Annotated[str | None, typer.Option(help="Scratch memory, such as 4G.")] = None,
    timing_cache: Annotated[Path | None, typer.Option(help="For full TensorRT.")] = None,
    plugins: Annotated[
        str,
        typer.Option(
            help="RoIAlign and NMS: auto (plugins from Python), none (standard ops), or the path "
            "of libdeploykit_plugins.so."
        ),
    ] = "auto",
    record: Record = None,
    as_json: AsJson = False,
) -> None:
    """ONNX to engine, and read back the precision that each layer really got."""
    from deploykit import pipeline  # noqa: PLC0415
    from deploykit.backends import BuildOptions  # noqa: PLC0415

    wanted = BuildOptions(
        sms=tuple(text.lower().removeprefix("sm") for text in sm or ()),
        shapes=options.profiles(min_shapes or (), opt_shapes or (), max_shapes or ()),
        workspace=options.byte_count(workspace),
        timing_cache=timing_cache,
        plugins=plugins,
    )
    made = pipeline.build(model, output, backend, wanted, record=record)
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


COMMANDS: Mapping[str, Callable[..., None]] = {
    "export": export,
    "fuse": fuse,
    "quantize": quantize,
    "cast": cast,
    "build": build,
}
