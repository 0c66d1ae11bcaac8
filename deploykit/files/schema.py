"""What a JSON value must be, said once per kind of file, and checked before anything uses it.

A check is a function of a value that raises `MisfitError`. Checks of parts make checks of wholes:

    PLAN = record({"layers": mapping(one_of("fp16", "fp32"))}, {"schema_version": VERSION})
    jsonfile.read(path, PLAN, "a precision plan")
"""

from __future__ import annotations

import difflib
import json
from typing import TYPE_CHECKING, Any, TypeAlias

from deploykit.values import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

Check: TypeAlias = "Callable[[Any], None]"
"""A JSON value -> nothing. Raises: MisfitError."""

LARGEST = 1 << 63
"""Magnitude that no number of ours reaches; JSON knows no such limit."""
LONGEST = 1 << 16
"""Letters of a name, a reason or a note."""
MOST = 1 << 24
"""Entries of one list or object."""
DEEPEST = 24
"""Objects and lists in one another."""
_SHOWN = 60
"""Letters of a wrong value that a message shows."""


class MisfitError(ValueError):
    """A value that is not what it must be."""

    def __init__(self, found: str, expected: str, where: str = "") -> None:
        """Keep what it is, what it must be, and where it stands, such as `ranges.x.minimum`."""
        super().__init__(f"{where or 'it'} {found}")
        self.found, self.expected, self.where = found, expected, where

    def under(self, key: str | int) -> MisfitError:
        """Return the same finding as the value that holds this one under `key` sees it."""
        step = f"[{key}]" if isinstance(key, int) else _cut(key)
        joint = "." if self.where and not self.where.startswith("[") else ""
        return MisfitError(self.found, self.expected, step + joint + self.where)


def text(*, least: int = 0, most: int = LONGEST) -> Check:
    """Return the check for text that can be written down; a lone surrogate cannot."""

    def check(value: Any) -> None:
        if not isinstance(value, str):
            raise _misfit(value, "text")
        if not least <= len(value) <= most:
            raise MisfitError(f"is text of {len(value)} letters", f"{least} to {most}")
        if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
            raise MisfitError(f"holds half a character: {shown(value)}", "Unicode text")

    return check


def number(low: float = -LARGEST, high: float = LARGEST) -> Check:
    """Return the check for a finite number from `low` to `high`."""
    expected = f"a number {_within(low, high)}"

    def check(value: Any) -> None:
        if type(value) not in (int, float) or not low <= value <= high:  # no NaN is in between
            raise _misfit(value, expected)

    return check


def numbers(low: float, high: float, *, least: int = 0, multiple: int = 1) -> Check:
    """Return the check for a list of `least` or more numbers, by `multiple`, all within limits."""
    count = f"{least} or more" + (f", a multiple of {multiple}" if multiple > 1 else "")
    expected = f"a list of numbers {_within(low, high)}: {count}"

    def check(value: Any) -> None:
        if (
            not isinstance(value, list)
            or len(value) < least
            or len(value) % multiple
            or not all(type(v) in (int, float) and low <= v <= high for v in value)
        ):
            raise _misfit(value, expected)

    return check


def whole(low: int = -LARGEST, high: int = LARGEST) -> Check:
    """Return the check for an integer from `low` to `high`."""
    expected = f"an integer {_within(low, high)}"

    def check(value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            raise _misfit(value, expected)

    return check


def flag(value: Any) -> None:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise _misfit(value, "true or false")


def one_of(*values: str | int) -> Check:
    """Return the check for one of `values`, of its own type."""

    def check(value: Any) -> None:
        if not any(type(value) is type(known) and value == known for known in values):
            near = _near(value, values) if isinstance(value, str) else ""
            raise _misfit(value, "one of " + ", ".join(map(str, values)) + near)

    return check


def nothing_or(part: Check) -> Check:
    """Return the check for null, or what `part` wants."""

    def check(value: Any) -> None:
        if value is not None:
            part(value)

    return check


def many(part: Check, *, least: int = 0, most: int = MOST) -> Check:
    """Return the check for a list of `least` to `most` entries, each as `part` wants it."""

    def check(value: Any) -> None:
        if not isinstance(value, list):
            raise _misfit(value, "a list")
        if not least <= len(value) <= most:
            raise MisfitError(f"is a list of {len(value)}", f"{least} to {most} entries")
        i = 0
        try:
            for i, entry in enumerate(value):  # noqa: B007 - named where it fails
                part(entry)
        except MisfitError as misfit:
            raise misfit.under(i) from None

    return check


def row(*parts: Check) -> Check:
    """Return the check for a list with one entry for each of `parts`."""

    def check(value: Any) -> None:
        if not isinstance(value, list) or len(value) != len(parts):
            raise _misfit(value, f"a list of {len(parts)}")
        i = 0
        try:
            for i, part in enumerate(parts):
                part(value[i])
        except MisfitError as misfit:
            raise misfit.under(i) from None

    return check


def mapping(part: Check) -> Check:
    """Return the check for an object of any names, each value as `part` wants it."""
    name = text()

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise _misfit(value, "an object")
        key = ""
        try:
            for key, entry in value.items():
                name(key)
                part(entry)
        except MisfitError as misfit:
            raise misfit.under(key) from None

    return check


def record(
    required: Mapping[str, Check],
    optional: Mapping[str, Check] | None = None,
    *,
    others: bool = False,
) -> Check:
    """Return the check for an object with all of `required` and any of `optional`.

    others: further keys are none of our business; without it they are refused.
    """
    known = {**required, **(optional or {})}

    def check(value: Any) -> None:
        if not isinstance(value, dict):
            raise _misfit(value, "an object")
        unknown = value.keys() - known
        if unknown and not others:
            key = min(unknown)
            raise MisfitError(f"has the unknown key {shown(key)}", _keys(known) + _near(key, known))
        if not value.keys() >= required.keys():
            absent = next(key for key in required if key not in value)
            near = _near(absent, unknown).replace("did you mean", "is it meant by")
            raise MisfitError(f"has no {absent!r}", _keys(required) + near)
        key = ""
        try:
            for key, part in known.items():
                if key in value:
                    part(value[key])
        except MisfitError as misfit:
            raise misfit.under(key) from None

    return check


def anything(value: Any) -> None:
    """Check for JSON that can be kept and printed: bounded numbers, whole text, not too deep."""
    name, real = text(most=MOST), number()
    level = [value]
    for _ in range(DEEPEST):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                name(item)
            elif isinstance(item, dict):
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
            elif item is not None and not isinstance(item, bool):
                real(item)
        level = below
    if level:
        raise MisfitError(f"is nested more than {DEEPEST} deep", "flatter content")


VERSION = one_of(SCHEMA_VERSION)


def shown(value: object) -> str:
    """Return a short text for any JSON value; an integer of 400 digits has no other."""
    if isinstance(value, (list, dict)):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str):
        return repr(_cut(value))
    return json.dumps(value)


def _within(low: float, high: float) -> str:
    if high < LARGEST:
        return f"from {low:g} to {high:g}"
    return f"from {low:g} on" if low > -LARGEST else "that is finite"


def _misfit(value: object, expected: str) -> MisfitError:
    return MisfitError(f"is {shown(value)}", expected)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _keys(known: Iterable[str]) -> str:
    return "the keys " + ", ".join(sorted(known))


def _near(key: str, known: Iterable[object]) -> str:
    near = difflib.get_close_matches(key[:_SHOWN], [str(name) for name in known], n=1, cutoff=0.5)
    return f"; did you mean {shown(near[0])}?" if near else ""
