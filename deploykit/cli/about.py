"""What a file does not say itself: one group of options for every command that needs it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from deploykit.cli import options
from deploykit.cli.parsing import Option
from deploykit.errors import OptionError

if TYPE_CHECKING:
    from deploykit.recipes.describing import Description

_WORDS = ("task", "preprocess", "resize", "interpolation", "layout", "decode")
_NUMBER = r"-?\d{1,9}(?:\.\d{0,12})?(?:[eE][-+]?\d{1,2})?"


@dataclass(frozen=True)
class About:
    """what the file does not say itself"""  # noqa: D415 - the heading of a help page

    task: Annotated[
        str | None, Option(help="What the model is for, such as detection. Default: its file says.")
    ] = None
    preprocess: Annotated[
        str | None, Option(help="How images are prepared: imagenet, yolo, coco, unit or raw.")
    ] = None
    mean: Annotated[
        str | None, Option(help="Of scaled pixels, one number or three: 0.485,0.456,0.406.")
    ] = None
    std: Annotated[str | None, Option(help="Likewise.")] = None
    scale: Annotated[
        str | None, Option(help="Factor of pixels of 0 to 255, such as 1/255 or 1.")
    ] = None
    resize: Annotated[str | None, Option(help="letterbox, corner, stretch or crop.")] = None
    interpolation: Annotated[str | None, Option(help="bilinear or bicubic.")] = None
    channels: Annotated[str | None, Option(help="rgb, bgr or grey.")] = None
    layout: Annotated[str | None, Option(help="nchw or nhwc, where no size tells.")] = None
    input_size: Annotated[
        str | None, Option(help="HxW in pixels, where the file leaves them open.")
    ] = None
    class_names: Annotated[
        str | None, Option(help="Comma-separated, or a file: a name in each line, JSON, YAML.")
    ] = None
    decode: Annotated[
        str | None,
        Option(
            help="Head of a detector: yolov5, yolov8, yolox, end2end, torchvision or none. "
            "Segmenter of one class: logit or probability."
        ),
    ] = None
    input: Annotated[
        list[str] | None,
        Option(help="NAME=NUMBER or NAME=FILE.npy: an input beside the images becomes a constant."),
    ] = None

    def description(self) -> Description:
        """Return what the words say. Raises: OptionError, InputError."""
        from deploykit.recipes.describing import NOTHING, Description  # noqa: PLC0415 - slow

        given: dict[str, Any] = {name: getattr(self, name) for name in _WORDS}
        given["channels"] = None if self.channels is None else self.channels.upper()
        given["scale"] = None if self.scale is None else _number("--scale", self.scale)
        given["mean"], given["std"] = _three("--mean", self.mean), _three("--std", self.std)
        if self.input_size is not None:
            given["input_size"] = options.image_size(self.input_size)
        given["class_names"] = options.class_names(self.class_names)
        given = options.given(given)
        if self.input:
            given["inputs"] = dict(map(_input, self.input))
        return Description(**given) if given else NOTHING


NOT_SAID = About()


def _number(option: str, text: str) -> float:
    """Return a number, or one over another. Raises: OptionError."""
    match = re.fullmatch(rf"({_NUMBER})(?:/({_NUMBER}))?", text.strip())
    if match is None or (match[2] and float(match[2]) == 0):
        raise OptionError(f"{option} {text!r}", expected="numbers, such as 0.5 or 1/255")
    return float(match[1]) / float(match[2] or 1)


def _three(option: str, text: str | None) -> tuple[float, float, float] | None:
    """Return three numbers, one of them thrice. Raises: OptionError."""
    if text is None:
        return None
    found = [_number(option, part) for part in text.split(",")]
    found = found * 3 if len(found) == 1 else found
    if len(found) != 3:
        raise OptionError(f"{option} {text!r}", expected="one number, or three")
    return found[0], found[1], found[2]


def _input(text: str) -> tuple[str, Path | float]:
    """Return the name and the value of an input. Raises: OptionError."""
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise OptionError(f"--input {text!r}", expected="NAME=NUMBER or NAME=FILE.npy")
    return name, Path(value) if value.endswith(".npy") else _number(f"--input {name}", value)
