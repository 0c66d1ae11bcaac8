"""Files that say which class of a model a folder, or a name in a data set, is.

Read are: a list of names in the model's order, as timm's class maps are; lines of a name and its
index, or a name and what the model calls it, apart by a tab, a comma or a space; a JSON list; a
JSON object, name -> index or class name, as torchvision's `class_to_idx`; and index -> [name, ...],
as Keras has it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deploykit.errors import DataError
from deploykit.files import contents, jsonfile

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

_WHAT = "a class map: one name per line, or names with the indices of the model's classes"
_LARGEST = 1 << 24
"""Bytes."""


@dataclass(frozen=True)
class ClassMap:
    """Which class of a model each name in a data set is."""

    places: dict[str, int | str]
    """Name -> index of the model's class, or what the model calls it; one or the other for all."""
    is_list: bool
    """Whether the file lists all classes in the model's order."""


def read(path: Path, names: Collection[str] = ()) -> ClassMap:
    """Return what a class map says.

    names: Those that the data set has: where most lines are one as a whole, the file is a list.
    Raises: DataError naming file and line.
    """
    found = text(path, _WHAT)
    if found.lstrip()[:1] in ("{", "["):
        data = jsonfile.parse(found, str(path), error=DataError)
        made = ClassMap(_json(path, data), isinstance(data, list))
    else:
        made = _lines(path, found.splitlines(), names)
    if not made.places:
        raise DataError(f"{path} is empty", expected=_WHAT)
    if len({type(value) for value in made.places.values()}) > 1:
        raise DataError(f"{path} gives indices and names", expected="the same for each entry")
    return made


def text(path: Path, what: str) -> str:
    """Return the text in a file that should hold `what`. Raises: DataError."""

    def bounded(size: int) -> None:
        if size > _LARGEST:
            raise DataError(f"{path} has more than {_LARGEST} bytes", expected=what)

    try:
        return contents.read(path, DataError, what, check=bounded).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no text: {error.reason}", expected=what) from error


def _lines(path: Path, lines: list[str], names: Collection[str]) -> ClassMap:
    whole = [line.strip() for line in lines if line.strip()]
    listed = sum(line in names for line in whole)
    paired = sum(any(p in names for p in re.split(r"[\t, ]+", line)) for line in whole) - listed
    bare = not any(re.search(r"[\t, ]", line) for line in whole)
    is_list = bare or listed > paired
    found: dict[str, int | str] = {}
    for number, line in enumerate(whole):
        name, value = (line, str(number)) if is_list else _pair(path, line, names)
        _add(path, found, name, value)
    return ClassMap(found, is_list)


def _pair(path: Path, line: str, names: Collection[str]) -> tuple[str, str]:
    """Return name and value of a line: the name is one that the data set has, as far as it can."""
    cuts = [line.partition(mark) for mark in ("\t", ",", " ") if mark in line]
    cuts += [line.rpartition(mark) for mark in (",", " ") if mark in line]
    pairs = [(left.strip(" ,\t"), right.strip(" ,\t")) for left, _, right in cuts]
    pairs += [(right, left) for left, right in pairs if left.isdecimal()]
    usable = [pair for pair in pairs if all(pair)]
    if not usable:
        raise DataError(f"{path}: {line[:80]!r} has no second part", expected=_WHAT)
    known = [pair for pair in usable if pair[0] in names]
    counted = [pair for pair in usable if pair[1].isdecimal()]
    return (known or counted or usable)[0]


def _json(path: Path, data: Any) -> dict[str, int | str]:  # noqa: ANN401 - any JSON
    if isinstance(data, list):
        data = {str(name): number for number, name in enumerate(data)}
    found: dict[str, int | str] = {}
    for key, value in data.items():
        if isinstance(value, list) and value and isinstance(value[0], str) and key.isdecimal():
            _add(path, found, value[0], key)
        elif isinstance(value, (int, str)) and not isinstance(value, bool):
            _add(path, found, key, str(value))
        else:
            raise DataError(f"{path}: {key[:80]!r} leads to {str(value)[:80]}", expected=_WHAT)
    return found


def _add(path: Path, found: dict[str, int | str], name: str, value: str) -> None:
    if name in found:
        raise DataError(f"{path} has {name[:80]!r} twice", expected="each name once")
    found[name] = int(value) if re.fullmatch(r"[0-9]{1,9}", value) else value
