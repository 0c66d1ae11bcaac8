"""What the card of a model may say: every key, and the values that make sense."""

from __future__ import annotations

from typing import Any, get_args

from deploykit.data.preprocess import Centre, Channels, Mapping, Resize
from deploykit.data.resizing import Interpolation, Resampler
from deploykit.data.sides import Rounding
from deploykit.files import schema
from deploykit.files.schema import (
    anything,
    flag,
    many,
    mapping,
    nothing_or,
    number,
    one_of,
    record,
    row,
    text,
    whole,
)
from deploykit.recipes.identity import Origin
from deploykit.tasks.outputs import OutputKind
from deploykit.values import Precision

_SIDE, _PIXELS = 1 << 15, 1 << 26
"""Of a model's input, at most."""
_LEVELS = 255.0
"""Of the pixels of an image: means and deviations are of that order, or of 1."""
_LEAST = 1e-6
"""Of what is divided by."""
_CLASSES, _PATTERNS = 1 << 17, 256
"""Entries at most."""


def _size(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for [height, width] of an input that memory can hold."""
    row(whole(1, _SIDE), whole(1, _SIDE))(value)
    if value[0] * value[1] > _PIXELS:
        raise schema.MisfitError(f"has {value[0] * value[1]} pixels", f"at most {_PIXELS}")


_LEVEL = number(-_LEVELS * 10, _LEVELS * 10)
_DEVIATION = number(_LEAST, _LEVELS * 10)
PREPROCESS = record(
    {"size": _size},
    {
        "resize": one_of(*get_args(Resize)),
        "channels": one_of(*get_args(Channels)),
        "scale": number(_LEAST, 1 / _LEAST),
        "mean": row(_LEVEL, _LEVEL, _LEVEL),
        "std": row(_DEVIATION, _DEVIATION, _DEVIATION),
        "pad_value": nothing_or(whole(0, int(_LEVELS))),
        "crop_fraction": number(0.01, 1.0),
        "interpolation": one_of(*get_args(Interpolation)),
        "antialias": flag,
        "resampler": one_of(*get_args(Resampler)),
        "canvases": many(_size, most=64),
        "limits": nothing_or(row(whole(1, _SIDE), whole(1, _SIDE))),
        "rounding": nothing_or(one_of(*get_args(Rounding))),
        "margin": whole(0, _SIDE),
        "centre": one_of(*get_args(Centre)),
        "mapping": one_of(*get_args(Mapping)),
    },
)
"""`antialias` is what `resampler` was called when it had two values."""
CARD = record(
    {
        "schema_version": schema.VERSION,
        "recipe": text(most=4096),
        "variant": text(most=4096),
        "task": text(least=1, most=64),
        "preprocess": PREPROCESS,
        "class_names": many(text(most=4096), most=_CLASSES),
        "checkpoint_sha256": text(most=64),
        "keep_float": many(
            row(text(most=4096), text(most=4096), one_of(*(p.value for p in Precision))),
            most=_PATTERNS,
        ),
    },
    {
        "settings": mapping(row(anything, one_of(*get_args(Origin)))),
        "outputs": many(row(text(most=4096), one_of(*get_args(OutputKind))), most=_PATTERNS),
    },
)
