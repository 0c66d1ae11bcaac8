"""What the fields of a record must be in JSON, by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_LARGEST = 2**63
_SHORTEST = 1e-9
"""Seconds: no clock resolves less, so a mean below it was not measured."""


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and -_LARGEST < value < _LARGEST  # neither NaN nor an infinity is
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _are_times(value: object) -> bool:
    return (
        isinstance(value, list)
        and all(_is_number(item) and item >= 0 for item in value)
        and sum(value) >= _SHORTEST * len(value)
    )


def _is_object(value: object) -> bool:
    return isinstance(value, dict)


def _are_scores(value: object) -> bool:
    return isinstance(value, dict) and all(
        item is None or _is_number(item) for item in value.values()
    )


def _are_shares(value: object) -> bool:
    return isinstance(value, dict) and all(
        _is_number(item) and 0 <= item <= 1 for item in value.values()
    )


def _are_displays(value: object) -> bool:
    """Tell whether `value` is how metrics are shown, by name."""
    checks: Mapping[str, Callable[[Any], bool]] = {
        **dict.fromkeys(("title", "unit"), _is_text),
        **dict.fromkeys(
            ("higher_is_better", "summary", "drop"), lambda item: isinstance(item, bool)
        ),
        "digits": lambda item: _is_count(item) and item <= _MOST_DIGITS,
        "scale": _is_number,
    }
    return isinstance(value, dict) and all(
        isinstance(shown, dict)
        and "title" in shown
        and all(name in checks and checks[name](item) for name, item in shown.items())
        for shown in value.values()
    )


_MOST_DIGITS = 17
"""A double has no more."""
CHECKS: Mapping[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("model", "model_sha256", "backend", "scope", "dataset"), _is_text),
    **dict.fromkeys(("task", "primary"), _is_text),
    "display": _are_displays,
    **dict.fromkeys(("dataset_sha256", "path", "sha256", "target"), _is_text),
    **dict.fromkeys(("protocol", "environment"), _is_object),
    **dict.fromkeys(("warnings", "notes"), _are_texts),
    **dict.fromkeys(("bytes", "images"), _is_count),
    "batch_size": lambda value: _is_count(value) and value > 0,
    "seconds": lambda value: _are_times(value) and bool(value),
    "device_seconds": _are_times,
    **dict.fromkeys(("metrics", "per_class"), _are_scores),
    "precision": _are_shares,
    "parents": lambda value: _is_object(value) and all(map(_is_text, value.values())),
}
"""Name of a record's field -> what its JSON value must be."""
