"""The command that says what an ONNX file of anybody's is for."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - the parser reads it when it runs
from typing import TYPE_CHECKING, Annotated

from deploykit.cli import options, printing
from deploykit.cli.about import NOT_SAID, About
from deploykit.cli.making import AsJson, Model, Op, Output, Record
from deploykit.cli.parsing import Option

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def describe(
    model: Model,
    output: Output,
    *,
    about: About = NOT_SAID,
    image: Annotated[
        Path | None, Option(help="Image for the trial run. Default: one of coloured patches.")
    ] = None,
    record: Record = None,
    op: Op = None,
    as_json: AsJson = False,
) -> None:
    """Any ONNX file to a copy that says what it is for and how it is fed, tried on an image.

    What the file shows itself need not be said: size, layout and channels of its input, and the
    metadata that Ultralytics writes. What was guessed is printed.

    Examples:
        deploykit describe net.onnx --task detection --preprocess yolo -o described.onnx
        deploykit describe net.onnx --preprocess imagenet --resize stretch -o described.onnx
        deploykit describe net.onnx --preprocess raw --mean 127 --std 128 -o described.onnx
        deploykit describe net.onnx --input-size 480x640 --class-names names.txt -o described.onnx
    """
    from deploykit import pipeline  # noqa: PLC0415

    with options.named(op):
        made = pipeline.describe(model, output, about.description(), image=image, record=record)
    printing.artifact(made.artifact, as_json=as_json, notes=made.notes, extra=made.to_json())


COMMANDS: Mapping[str, Callable[..., None]] = {"describe": describe}
