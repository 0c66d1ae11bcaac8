"""One check for every JSON file: keys, values, numbers, nesting."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.errors import InputError
from deploykit.files import jsonfile, patterns, schema
from deploykit.files.schema import many, mapping, nothing_or, number, one_of, record, text, whole

if TYPE_CHECKING:
    from pathlib import Path

TOY = record(
    {"name": text(least=1), "ranges": mapping(record({"scale": number(1e-9, 1e9)}))},
    {"kind": one_of("a", "b"), "count": nothing_or(whole(0, 9)), "notes": schema.anything},
)
SOUND: dict[str, Any] = {"name": "x", "ranges": {"t": {"scale": 1}}}


def fitted(data: object) -> object:
    return jsonfile.fitted(data, TOY, "a toy", "t.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"naem": "y"}, r"unknown key 'naem'(.|\n)*did you mean 'name'"),
        ({"name": 3}, "name is 3"),
        ({"name": "\ud800"}, "name holds half a character"),
        ({"name": "x" * 100_000}, "name is text of 100000 letters"),
        ({"ranges": {"t": {"scale": 0}}}, r"ranges\.t\.scale is 0"),
        ({"ranges": {"t": {"scale": float("nan")}}}, r"ranges\.t\.scale is NaN"),
        ({"ranges": {"t": {"scale": float("inf")}}}, r"ranges\.t\.scale is Infinity"),
        ({"ranges": {"t": {"scale": True}}}, r"ranges\.t\.scale is true"),
        ({"ranges": {"t": {}}}, r"ranges\.t has no 'scale'"),
        ({"ranges": [1]}, "ranges is a list of 1"),
        ({"kind": "c"}, "kind is 'c'"),
        ({"count": 10**400}, "count is an integer of 1329 bits"),
        ({"notes": {"a": [1e999]}}, "notes is Infinity"),
        ({"notes": json.loads("[" * 40 + "]" * 40)}, "notes is nested more than"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    assert fitted(SOUND) == SOUND
    with pytest.raises(InputError, match=message):
        fitted({**SOUND, **change})


def test_a_missing_key_points_to_the_one_that_may_be_meant() -> None:
    loose = record({"annotations": many(schema.anything)}, others=True)
    with pytest.raises(InputError, match=r"is it meant by 'anotations'\?") as caught:
        jsonfile.fitted({"anotations": []}, loose, "a toy", "t.json")
    assert "has no 'annotations'" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "is not JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": 1, "a": 2}', "the key 'a' stands twice"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is not JSON"),
        (b'{"name": "\xff"}', "is not JSON"),
        (b"[]", "it is a list of 0"),
        (b'{"ranges": {}, "observer": "mse"}', "is a calibration table"),
        (b'{"name": "' + b"x" * 200_000 + b'"}', "more than 200000 bytes"),
    ],
)
def test_text_that_is_no_json_of_ours_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        jsonfile.read(path, TOY, "a toy", limit=200_000)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_any_json_either_fits_or_is_an_input_error(data: object) -> None:
    for check in (TOY, mapping(schema.anything), many(number())):
        with contextlib.suppress(InputError):  # no other error passes
            jsonfile.fitted({"x": data} if check is not TOY else data, check, "a toy", "t.json")


EXPRESSIONS = st.text("ab.|*+?()[]^$\\{},12wdsbB-_", max_size=12)


@pytest.mark.filterwarnings("ignore:Possible .*:FutureWarning")
@settings(max_examples=300)
@given(EXPRESSIONS, st.lists(st.text("ab12. _-\n", min_size=1, max_size=8), max_size=4))
def test_patterns_find_what_pythons_engine_finds(expression: str, names: list[str]) -> None:
    try:
        theirs = re.compile(expression)
        ours = patterns.compiled(expression)
    except (re.error, patterns.PatternError, OverflowError):
        return
    assert [ours.search(n) for n in names] == [bool(theirs.search(n)) for n in names]


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        (r"^head\.\w+_head\.module_list\.\d+(\.1)?\.", "head.box_head.module_list.3.1.conv"),
        (r"detect\.(cls|reg)_preds\.", "detect.reg_preds.0"),
        (r"detect\.boxes\b", "detect.boxes/Mul"),
        (r"(?i)^(?!backbone).*\bCLS\b", "head.cls.0"),
        (r"a{2,3}b{1,}[^\W\d]?$", "aabb_"),
    ],
)
def test_expressions_of_recipes_are_carried(expression: str, found: str) -> None:
    assert re.search(expression, found)
    assert patterns.compiled(expression).search(found)
    assert not patterns.compiled(expression).search("backbone.stem")


@pytest.mark.parametrize(
    "expression",
    [
        "(",
        ")",
        "[",
        "*",
        "a**",
        "(?P=a)",
        r"\1",
        "(?<=a)b",
        "a{9999}" * 9,
        "(" * 99,
        "x" * 2000,
        "\\",
    ],
)
def test_expressions_that_are_not_carried_say_so(expression: str) -> None:
    with pytest.raises(patterns.PatternError):
        patterns.compiled(expression)
