from __future__ import annotations

import json
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploykit.files import elements

if TYPE_CHECKING:
    from pathlib import Path

LEAVES = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False)
VALUES = st.recursive(
    LEAVES | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=12,
)


def lists(path: Path) -> dict[str, list[Any]]:
    """Every list of the object in a file, each element read again from its bytes."""
    found: dict[str, list[Any]] = {}
    for key, start, end, _ in elements.elements(path):
        entries = found.setdefault(key, [])
        if end > start:
            entries += elements.parse(path, [(start, end)])
    return found


@settings(deadline=None, max_examples=150)
@given(
    value=st.dictionaries(st.text("abcdef", min_size=1, max_size=3), VALUES, max_size=5),
    chunk=st.integers(1, 40),
    indent=st.sampled_from([None, 0, 3]),
    ascii_only=st.booleans(),
    mark=st.booleans(),
)
def test_every_list_is_read_wherever_the_window_cuts(  # noqa: PLR0913, PLR0917 - drawn values
    tmp_path_factory: pytest.TempPathFactory,
    value: dict[str, Any],
    chunk: int,
    indent: int | None,
    ascii_only: bool,  # noqa: FBT001 - drawn
    mark: bool,  # noqa: FBT001 - drawn
) -> None:
    path = tmp_path_factory.getbasetemp() / "elements.json"
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elements, "_CHUNK", chunk)
        found = lists(path)
    assert found == {key: item for key, item in value.items() if isinstance(item, list)}


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[1, 2]", "{1:2}", "nul", '{"a', '{"a":[1', '{"a":[1,}', '{"a":[1 2]}'),
        *('{"a":1,"a":2}', '{"a":[1]} x', '{"a":[1],}', '{"a":[{"b":1]}', '{"a":[,1]}'),
    ],
)
def test_what_is_no_json_object_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"at byte|twice|follows|limit"):
        lists(path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    entry = {"image_id": 1, "segmentation": [[0.25 * i for i in range(200)]]}
    path = tmp_path / "large.json"
    path.write_text(json.dumps({"annotations": [entry] * 20_000}))
    assert path.stat().st_size > 20e6
    tracemalloc.start()
    try:
        count = sum(end > start for _, start, end, _ in elements.elements(path))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 20_000
    assert peak < 8e6
