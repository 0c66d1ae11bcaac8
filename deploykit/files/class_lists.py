"""The names of a model's classes, in the order of training, in the forms that people keep them.

A text file has a name in each line. JSON is a list, numbers with their names (or the reverse), an
object that holds one of these under a usual name, or a file of COCO's. Of YAML only the `names:` of
a data set is read, as YOLO's training scripts take it; it is no parser of YAML.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from deploykit.errors import InputError
from deploykit.files import contents, jsonfile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

KEYS = (
    *("names", "class_names", "classes", "CLASSES", "thing_classes", "id2label"),
    *("label_names", "labels", "class_to_idx", "idx_to_class", "label_map", "categories"),
)
"""What the names are called in what holds more than them."""
_WHAT = "names of classes: one in each line, or JSON, or a data set's YAML"
_LARGEST = jsonfile.LARGEST
"""Bytes of a file, which may be one of COCO's."""
_DIGITS = 9
"""Of a number of a class that is written as a name."""
_HEAD = re.compile(r"(?:names|classes)\s*:\s*(?:#.*)?")
_FLOW = re.compile(r"(?:names|classes)\s*:\s*[\[{]")
_QUOTED = r"""'(?:[^'\n]|'')*'|"(?:[^"\\\n]|\\.)*\""""
_ITEM = re.compile(
    rf"(?:\s|#[^\n]*\n)*(?:['\"]?(\d{{1,{_DIGITS}}})['\"]?\s*:\s*)?({_QUOTED}|[^\s,\[\]{{}}#'\"][^,\[\]{{}}#\n]*)"
    r"(?:\s|#[^\n]*\n)*(,|\]|\})"
)
_CLOSED = re.compile(r"(?:\s|#[^\n]*\n)*[\]}]")
_BLOCK = re.compile(
    rf"\s*(?:-\s+|['\"]?(\d{{1,{_DIGITS}}})['\"]?\s*:\s+)({_QUOTED}|[^\s'\"].*?)\s*(?:\s#.*)?"
)
_NUMBERED = re.compile(rf"(\d{{1,{_DIGITS}}})\s*:\s*(\S.*)")


def read(path: Path) -> tuple[str, ...]:
    """Return the names in a file, in the order of their classes. Raises: InputError."""

    def check(size: int) -> None:
        if size > _LARGEST:
            raise InputError(f"{path} has {size} bytes", expected=_WHAT)

    data = contents.read(path, InputError, _WHAT, check=check)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is no text in UTF-8", expected=_WHAT, fix="save it as text in UTF-8"
        ) from error
    if text.lstrip().startswith(("{", "[")):
        found = in_file(jsonfile.parse(text, str(path)))
    else:
        found = _listed(text)
    if not found or "" in found or "\0" in text:
        raise InputError(f"{path} holds no names that could be told", expected=_WHAT)
    return found


def _listed(text: str) -> tuple[str, ...]:
    """Return the names in lines, or in the YAML of a data set; empty where neither is plain."""
    lines = [line.rstrip() for line in text.splitlines()]
    filled = [line.strip() for line in lines if line.strip()]
    for number, line in enumerate(lines):
        if _HEAD.fullmatch(line):
            return _block(lines[number + 1 :])
        if _FLOW.match(line):
            return _flow("\n".join(lines[number:]))
        if re.match(r"(?:names|classes)\s*:", line):
            return ()
    if filled and all(line.startswith("- ") for line in filled):
        return _block(filled)
    pairs = [_NUMBERED.fullmatch(line) for line in filled]
    if filled and all(pairs):
        return _in_turn([(int(pair[1]), pair[2]) for pair in pairs if pair])
    return tuple(filled)


def _block(lines: Sequence[str]) -> tuple[str, ...]:
    """Return the entries of a block of YAML: `- name`, or `0: name`."""
    found: list[tuple[int, str]] = []
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line.startswith((" ", "\t", "-")) and not _NUMBERED.fullmatch(line):
            break  # the next key of the data set
        item = _BLOCK.fullmatch(line)
        if item is None:
            return ()
        found.append((len(found) if item[1] is None else int(item[1]), _bare(item[2])))
    return _in_turn(found)


def _flow(text: str) -> tuple[str, ...]:
    """Return the entries of `names: [a, 'b']` or `names: {0: a, 1: "b"}`."""
    place, found = re.search(r"[\[{]", text), list[tuple[int, str]]()
    at = place.end() if place else len(text)
    while item := _ITEM.match(text, at):
        found.append((len(found) if item[1] is None else int(item[1]), _bare(item[2].strip())))
        at = item.end()
        if item[3] != "," or _CLOSED.match(text, at):
            return _in_turn(found)
    return ()


def _bare(item: str) -> str:
    """Return what is between quotes."""
    if item.startswith("'"):
        return item[1:-1].replace("''", "'")
    return re.sub(r"\\(.)", r"\1", item[1:-1]) if item.startswith('"') else item


def _in_turn(pairs: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """Return the names whose numbers are 0 to n - 1, or 1 to n; empty where they are not."""
    found = dict(pairs)
    numbers = sorted(found)
    turns = list(range(len(pairs))), list(range(1, len(pairs) + 1))
    return tuple(found[n] for n in numbers) if numbers in turns else ()


def in_file(value: object) -> tuple[str, ...]:
    """Return the names in a JSON value, empty where it does not hold them plainly."""
    if isinstance(value, dict):
        for key in KEYS:
            if isinstance(value.get(key), (list, dict)):
                return in_file(value[key])
        if value and all(_number(key) is not None for key in value):
            entries = [(_number(key) or 0, _last(name)) for key, name in value.items()]
            texts = [(number, name) for number, name in entries if isinstance(name, str)]
            return _in_turn(texts) if len(texts) == len(entries) else ()
    found = in_order(value) or ()
    return tuple(name.strip() for name in found)


def _last(name: object) -> object:
    """Return the name of a pair: ImageNet's classes have the number of a synset before it."""
    return name[1] if isinstance(name, list) and len(name) == 2 else name


def in_order(value: object) -> tuple[str, ...] | None:
    """Return the names in a list, a dictionary from or to their numbers, or COCO's categories."""
    if numbered := _numbered(value):
        value = [numbered[index] for index in sorted(numbered)]
    if isinstance(value, (list, tuple)) and value and all(type(name) is str for name in value):
        return tuple(value)
    return None


def _numbered(value: object) -> Mapping[int, object]:
    """Return number of a class -> its name, nothing where `value` does not say it so."""
    if isinstance(value, list):
        entries = [entry for entry in value if isinstance(entry, dict)]
        pairs = [(entry.get("id"), entry.get("name")) for entry in entries]
    elif isinstance(value, dict):
        pairs = [(_number(key), name) for key, name in value.items()]
        if any(number is None for number, _ in pairs):
            pairs = [(number, name) for name, number in value.items()]
            numbers = sorted(number for number, _ in pairs if type(number) is int)
            if numbers not in (list(range(len(value))), list(range(1, len(value) + 1))):
                return {}  # as counts are, of images or of objects
    else:
        return {}
    found = {number: name for number, name in pairs if type(number) is int}
    return found if len(found) == len(value) else {}


def _number(key: object) -> int | None:
    if type(key) is int:
        return key
    written = isinstance(key, str) and key.isdecimal() and key.isascii() and len(key) <= _DIGITS
    return int(key) if written and isinstance(key, str) else None
