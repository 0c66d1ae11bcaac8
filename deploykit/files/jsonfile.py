"""Read JSON that anybody may have written, bounded and checked before anything uses it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from deploykit.errors import InputError
from deploykit.files import contents, schema

if TYPE_CHECKING:
    from pathlib import Path

    from deploykit.files.schema import Check
    from deploykit.values import Json

LARGEST = 1 << 26
"""Bytes of a file of ours: ten times the largest that is written."""
_KINDS: tuple[tuple[str, frozenset[str]], ...] = (
    ("a calibration table", frozenset({"ranges", "observer"})),
    ("a file of sensitivities", frozenset({"layers", "table_sha256"})),
    ("a precision plan", frozenset({"layers"})),
    ("the sidecar of a file", frozenset({"made_by", "parents"})),
    ("a COCO instances file", frozenset({"images", "annotations"})),
    ("a record of a measurement", frozenset({"kind", "schema_version"})),
    ("a model's card", frozenset({"recipe", "preprocess"})),
)
"""Kind of JSON -> keys that mark it: a file given for another is called by its name."""


def read(
    path: Path,
    check: Check,
    what: str,
    *,
    error: type[InputError] = InputError,
    limit: int = LARGEST,
) -> Json:
    """Return the JSON object in `path`, which should hold `what`, e.g. "a precision plan".

    Raises: `error` where it is not JSON, has more than `limit` bytes, or is not as `check` wants.
    """

    def bounded(size: int) -> None:
        if size > limit:
            raise error(f"{path} has more than {limit} bytes", expected=f"{what} of fewer")

    data = contents.read(path, error, what, check=bounded)
    return fitted(parse(data, str(path), error=error), check, what, str(path), error=error)


def parse(data: bytes | str, where: str, *, error: type[InputError] = InputError) -> Any:  # noqa: ANN401 - any JSON
    """Return the JSON value in `data`. `where`: its name in a message. Raises: `error`."""
    try:
        text = data if isinstance(data, str) else data.decode("utf-8")
        return json.loads(text, parse_constant=_no_number, object_pairs_hook=_once)
    except RecursionError as reason:
        raise error(f"{where} is JSON nested too deep") from reason
    except ValueError as reason:
        raise error(f"{where} is not JSON: {reason}") from reason


def fitted(
    data: object, check: Check, what: str, where: str, *, error: type[InputError] = InputError
) -> Json:
    """Return `data`, which is `what` as `check` wants it. Raises: `error` naming key and value."""
    try:
        check(data)
    except schema.MisfitError as misfit:
        other = _kind(data)
        if other and other != what:
            raise error(f"{where} is {other}", expected=what) from misfit
        raise error(f"{where} is not {what}: {misfit}", expected=misfit.expected) from misfit
    assert isinstance(data, dict)  # every kind of ours is an object
    return data


def _kind(data: object) -> str:
    """Return which kind of ours an object is by its keys, empty where it is none."""
    if not isinstance(data, dict):
        return ""
    return next((name for name, keys in _KINDS if keys <= data.keys()), "")


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object whose every key stands once: of two values one would be dropped."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {schema.shown(twice)} stands twice in one object")
    return found
