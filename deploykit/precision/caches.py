"""TensorRT's calibration caches: the step of each tensor, for builders of TensorRT 10 and before.

A cache is text: `TRT-<version>-<algorithm>` in the first line, then `name: hex` for each tensor,
the float32 step (threshold / 127) in eight big-endian digits. Names hold colons. Source: caches
of NVIDIA/TensorRT issue 2958 and of ultralytics issue 14121.
"""

from __future__ import annotations

import math
import re
import struct
from typing import TYPE_CHECKING

from deploykit.errors import InputError, StaleTableError
from deploykit.files import artifacts
from deploykit.values import INT8_LEVELS, CalibrationTable, Range

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from deploykit.precision.placement import Placement
    from deploykit.recipes.opened import Opened

VERSION = "8XXX"
"""As tools write it that do not know the builder's; trtexec takes it."""
_HEAD = re.compile(
    r"TRT-([0-9]{4,6}|8XXX)-(EntropyCalibration2|EntropyCalibration|MinMaxCalibration)"
)
_DIGITS = re.compile(r"[0-9a-fA-F]{1,8}")
_MARK = b"TRT-"
_LARGEST = 1 << 26
"""Bytes of a cache."""
_SHOWN = 3
_SMALLEST = 2.0**-126
"""The least normal float32: the step of a tensor that is always 0."""


def is_cache(path: Path) -> bool:
    """Return whether a file begins as a cache does. Raises: InputError."""
    try:
        with path.open("rb") as file:
            return file.read(len(_MARK)) == _MARK
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def steps(placed: Placement, table: CalibrationTable) -> dict[str, float]:
    """Return tensor -> step, of every tensor that is INT8: the largest of those of its readers."""
    found: dict[str, float] = {}
    for each in placed.activations:
        step = max(table.ranges[name].scale for name in each.ranges)
        found[each.tensor] = max(step, found.get(each.tensor, _SMALLEST))
    return found


def write(path: Path, steps: Mapping[str, float]) -> None:
    """Write a cache, atomically. Raises: OutputError; InputError for a step that is no number."""
    lines = [f"TRT-{VERSION}-EntropyCalibration2"]
    for name, step in sorted(steps.items()):
        _check(name, step)
        lines.append(f"{name}: {struct.pack('>f', step).hex()}")
    artifacts.write_text(path, "\n".join(lines) + "\n")


def parse(text: str) -> dict[str, float]:
    """Return tensor -> step, of the text of a cache.

    Raises: InputError for another form, with the line; for steps that are no positive numbers.
    """
    head, *lines = text.splitlines() or [""]
    if not _HEAD.fullmatch(head.strip()):
        raise InputError(
            f"the first line of the cache is {head[:80]!r}",
            expected="TRT-<version>-EntropyCalibration2 or -MinMaxCalibration",
        )
    found: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        name, colon, digits = line.rpartition(": ")
        if not colon or not name or not _DIGITS.fullmatch(digits.strip()) or name in found:
            raise InputError(
                f"line {number} of the cache is {line[:80]!r}",
                expected="name: step as eight hexadecimal digits, each name once",
            )
        # leading zeros are left out by some writers
        (found[name],) = struct.unpack(">f", bytes.fromhex(digits.strip().zfill(8)))
        _check(name, found[name])
    return found


def _check(name: str, step: float) -> None:
    if not math.isfinite(step) or step < 0:
        raise InputError(
            f"the step of tensor {name} is {step}",
            expected="a positive number",
            fix="calibrate anew: a tensor was infinite, or no number, on the images",
        )


def read(path: Path, model: Opened, tensors: Sequence[str]) -> CalibrationTable:
    """Return the ranges that a cache has of `tensors`, as a table of the model.

    Raises: InputError; StaleTableError where the cache lacks some, as one of another model does.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST)
        known = parse(content.decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text", expected="a calibration cache") from error
    missing = [name for name in tensors if name not in known]
    if missing:
        raise StaleTableError(
            f"the cache {path} lacks {len(missing)} of {len(tensors)} tensors of {model.path}: "
            + ", ".join(missing[:_SHOWN]),
            expected="a cache of this model, with the names of its tensors",
            fix="calibrate this model, or name the model that the cache was made for",
        )
    observer = _HEAD.findall(content.decode()[:_LARGEST])[0][1]
    thresholds = {name: known[name] * INT8_LEVELS for name in tensors}
    return tabled(model, thresholds, observer, path.name)


def tabled(
    model: Opened, thresholds: Mapping[str, float], observer: str, source: str
) -> CalibrationTable:
    """Return the table of tensors of which nothing but the thresholds are known."""
    return CalibrationTable(
        model_sha256=model.sha256,
        observer=observer,
        samples=(),
        samples_sha256="",
        ranges={name: Range(each, -each, each) for name, each in thresholds.items()},
        source=source,
    )
