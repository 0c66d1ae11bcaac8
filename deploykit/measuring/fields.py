"""What the fields of a record must be in JSON, by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.files import schema
from deploykit.files.schema import flag, mapping, number, record, text, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deploykit.files.schema import Check

_SHORTEST = 1e-9
"""Seconds: no clock resolves less, so a mean below it was not measured."""
_MOST_DIGITS = 17
"""A double has no more."""


def _times(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for seconds that a clock can have measured."""
    schema.numbers(0, schema.LARGEST)(value)
    if sum(value) < _SHORTEST * len(value):
        raise schema.MisfitError("are shorter than any clock measures", f"{_SHORTEST:g} s or more")


def _measured(value: Any) -> None:  # noqa: ANN401 - as every check, of any JSON value
    """Check for the seconds of at least one iteration."""
    _times(value)
    if not value:
        raise schema.MisfitError("is a list of 0", "the seconds of each iteration")


_OBJECT = mapping(schema.anything)
_SCORES = mapping(schema.nothing_or(number()))
_DISPLAY = record(
    {"title": text()},
    {
        "unit": text(),
        **dict.fromkeys(("higher_is_better", "summary", "drop"), flag),
        "digits": whole(0, _MOST_DIGITS),
        "scale": number(),
    },
)
_LAYER = record(
    {"name": text(), "op": text(), "precision": text()}, {"macs": whole(0), "note": text()}
)
_CHOICE = record(
    {"layers": whole(0), "seconds": number(0)},
    dict.fromkeys(("predicted_drop", "real_drop", "most_drop"), schema.nothing_or(number())),
)
CHECKS: Mapping[str, Check] = {
    **dict.fromkeys(("measure", "gpu"), text()),
    "layers": mapping(_SCORES),
    "losses": mapping(number(0)),
    "curve": schema.many(mapping(number())),
    "steps": whole(1),
    "correlations": _SCORES,
    **dict.fromkeys(("tried", "frontier"), schema.many(_CHOICE)),
    "chosen": _CHOICE,
    **dict.fromkeys(("seconds_int8", "seconds_fp16"), number(0)),
    **dict.fromkeys(("model", "model_sha256", "backend", "scope", "dataset"), text()),
    **dict.fromkeys(("task", "primary"), text()),
    "display": mapping(_DISPLAY),
    **dict.fromkeys(("dataset_sha256", "path", "sha256", "target"), text()),
    **dict.fromkeys(("protocol", "environment"), _OBJECT),
    **dict.fromkeys(("warnings", "notes"), schema.many(text())),
    **dict.fromkeys(("bytes", "images"), whole(0)),
    "batch_size": whole(1),
    "seconds": _measured,
    "device_seconds": _times,
    **dict.fromkeys(("metrics", "per_class"), _SCORES),
    "precision": mapping(number(0, 1)),
    "parents": mapping(text()),
    "read_back": schema.many(_LAYER),
    "time": schema.text(most=40),
}
"""Name of a record's field -> what its JSON value must be."""
