"""Parsers of the option values that several commands share."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from deploykit.errors import OptionError, unknown_name
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from enum import Enum

    from deploykit.backends import Shapes
    from deploykit.values import Progress

E = TypeVar("E", bound="Enum")
T = TypeVar("T")
_OF_FILES = re.compile(r"\.(txt|names|json|ya?ml|csv)\s*$", re.IGNORECASE)
"""What tells the path of a file from the name of a class."""
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@contextlib.contextmanager
def named(op: Sequence[Path] | None, library: Path | None = None) -> Iterator[None]:
    """Let the ops in the files that the user named be known, and the plugin library be loaded."""
    if not op and library is None:
        yield
        return
    from deploykit import ops  # noqa: PLC0415 - slow, and seldom needed

    with ops.known(*(op or ()), library=library):
        yield


def image_sizes(text: str | None) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of each of `800x1344,1344x800`; none for None. Raises: OptionError."""
    return () if text is None else tuple(map(image_size, text.split(",")))


def shapes(
    source: str | None, progress: Progress, *, input_size: str | None
) -> tuple[tuple[int, int], ...]:
    """Return (height, width) of a source's images; none for None. Raises: DeployError."""
    if source is None:
        return ()
    if input_size is not None:
        raise OptionError("--fit and --input-size", expected="one of them")
    from deploykit.data import fitting, sources  # noqa: PLC0415 - seldom needed

    return fitting.shapes(sources.dataset(source), progress=progress)


def image_size(text: str) -> tuple[int, int]:
    """Return (height, width) of `640x480` or `640`. Raises: OptionError."""
    match = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if match is None:
        raise OptionError(f"--input-size {text!r}", expected="HxW in pixels, such as 640x640")
    return int(match[1]), int(match[2] or match[1])


def names(given: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the comma-separated names, of an option that may be repeated too; None for None.

    Raises: OptionError for an empty one.
    """
    if given is None or given == []:
        return None
    text = given if isinstance(given, str) else ",".join(given)
    found = tuple(part.strip() for part in text.split(","))
    if "" in found:
        raise OptionError(f"an empty name in {text!r}", expected="names separated by commas")
    return found


def class_names(text: str | None) -> tuple[str, ...] | None:
    """Return the names of classes: comma-separated, or those in a file; None for None.

    Raises: OptionError for an empty name, or the name of a file that there is not; InputError.
    """
    if text is None or not _is_file(text):
        found = names(text)
        if text is not None and found == (text.strip(),) and _OF_FILES.search(text):
            raise OptionError(
                f"--class-names {text}, and there is no such file",
                expected="names separated by commas, or a file with one in each line",
            )
        return found
    from deploykit.files import class_lists  # noqa: PLC0415 - seldom needed

    return class_lists.read(Path(text))


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # too long, or with a NUL in it
        return False


def settings(texts: Sequence[str] | None) -> dict[str, str]:
    """Return name -> value of texts such as `detections=300`. Raises: OptionError."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value) or name in found:
            twice = "twice" if name in found else ""
            raise OptionError(
                f"--set {text} {twice}".strip(),
                expected="NAME=VALUE, each name once, such as --set detections=300",
            )
        found[name] = value
    return found


def choice(kind: str, text: str, values: type[E]) -> E:
    """Return the member of `values` called `text`. Raises: OptionError."""
    members = {str(member.value): member for member in values}
    if text not in members:
        raise unknown_name(kind, text, members)
    return members[text]


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the user gave: those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def one_of(option: str, text: str, values: Sequence[T]) -> T:
    """Return the one of `values` that `text` is. Raises: OptionError."""
    found = next((value for value in values if value == text), None)
    if found is None:
        raise unknown_name(option, text, [str(value) for value in values])
    return found


def integers(option: str, text: str) -> tuple[int, ...]:
    """Return comma-separated positive integers. Raises: OptionError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,5}", part) for part in parts):
        raise OptionError(f"{option} {text!r}", expected="positive integers, such as 1,8,32")
    return tuple(map(int, parts))


def byte_count(text: str | None) -> int | None:
    """Return the bytes of `4G`, `512M` or `64K`; None for None. Raises: OptionError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,6})([KMG])i?B?", text)
    if match is None:
        raise OptionError(f"--workspace {text!r}", expected="a number with its unit, such as 4G")
    return int(match[1]) * _UNITS[match[2]]


def profiles(
    smallest: Sequence[str], typical: Sequence[str], largest: Sequence[str]
) -> dict[str, Shapes]:
    """Return input name -> (min, opt, max) shapes from `name:1x3x640x640` options.

    Raises: OptionError where a shape is malformed or one of the three is missing.
    """
    low, middle, high = map(_shapes, (smallest, typical, largest))
    if not low.keys() == middle.keys() == high.keys():
        different = sorted(set(low) ^ set(middle) | set(middle) ^ set(high))
        raise OptionError(
            f"incomplete shapes for {', '.join(different)}",
            expected="--min-shapes, --opt-shapes and --max-shapes for each input named",
        )
    return {name: (low[name], middle[name], high[name]) for name in low}


def _shapes(texts: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    found = {}
    for text in texts:
        name, colon, dims = text.rpartition(":")
        if not colon or not re.fullmatch(r"\d{1,6}(x\d{1,6})*", dims):
            raise OptionError(f"not a shape: {text!r}", expected="name:1x3x640x640")
        found[name] = tuple(map(int, dims.split("x")))
    return found


def float_type(text: str) -> Precision:
    """Return FP16 or FP32. Raises: OptionError."""
    found = choice("float type", text, Precision)
    if found is Precision.INT8:
        raise OptionError("--float-type int8", expected="fp16 or fp32: what is not quantised")
    return found


def calibration(
    folder: Path | None, source: str | None, data: Path | None, *, needed: bool
) -> str | None:
    """Return the data set to calibrate on, None where a table or arrays make one unnecessary.

    Raises: OptionError where there is none, or several.
    """
    options = {"--calib-dir": folder, "--calib-source": source, "--calib-data": data}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise OptionError(f"{' and '.join(given)} together", fix="give one of them")
    if folder is not None:
        return f"folder:{folder}"
    if source is None and data is None and needed:
        raise OptionError(
            "no images to calibrate on",
            fix="add --calib-dir with a few hundred typical images, --calib-data with arrays, or a "
            "--table made earlier",
        )
    return source
