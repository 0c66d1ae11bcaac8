"""Hostile cards: what an ONNX file says about itself."""

from __future__ import annotations

import copy
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from . import mutants, sound
from .case import Case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVIL = """
import pathlib
pathlib.Path("canary").touch()
from deploykit import *
recipe = None
"""
_KEY = "deploykit"
_PATTERNS = (
    "^(a+)+$",
    "(a|aa)+$",
    "(.*)*x",
    "((a*)*)*b",
    "(x+x+)+y",
    "(?:.*,){50}P",
    "(",
    "[",
    "a{1000000000}",
    "(a{1000}){1000}",
    "(?P<a>a)(?P=a)",
    "\\1",
    "(" * 500 + ")" * 500,
    "a" * 100_000,
    "(?=" * 20 + ")" * 20,
    "\ud800",
    "",
)


def cases(base: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case, made from the sound model in `base`."""
    card = _card(base)
    verbs = (_eval, _quantize, _bench, _inspect, _cast)
    number = 0
    for path in ("evil.py", "./evil.py", "{folder}/evil.py", "evil", "../evil.py", "~/evil.py"):
        for verb in (_eval, _bench, _verify):
            yield _case(f"recipe is {path}, {verb.__name__}", {**card, "recipe": path}, verb)
    for pattern in _PATTERNS:
        hostile = {**card, "keep_float": [[pattern, "why", "fp16"]]}
        yield _case(f"pattern {pattern[:20]!r}", hostile, _quantize)
    yield _case("5,000 patterns", {**card, "keep_float": [["(a|b)*c", "x", "fp16"]] * 5000}, _cast)
    for what, content in mutants.texts(json.dumps(card).encode()):
        number += 1
        yield _case(what, content, verbs[number % len(verbs)])
    for what, content in mutants.values(card, seed=seed, count=60):
        number += 1
        yield _case(f"{number} {what}", content, verbs[number % len(verbs)])
    for key, value in (
        ("mean", [1e308, 0, 0]),
        ("std", [0, 0, 0]),
        ("std", [-1, 1, 1]),
        ("scale", 0),
        ("scale", -1),
        ("size", [0, 0]),
        ("size", [1 << 20, 1 << 20]),
        ("size", [64, 64, 64]),
        ("size", [96, 96]),
        ("resize", "../../x"),
        ("pad_value", 300),
        ("crop_fraction", 0),
        ("crop_fraction", 1e-300),
        ("interpolation", "lanczos9"),
    ):
        hostile = copy.deepcopy(card)
        hostile["preprocess"][key] = value
        yield _case(f"{key} {value}", hostile, _eval)


def _case(what: str, card: Any, verb: Any) -> Case:
    return Case(f"card: {what}", partial(_made, card=card, verb=verb))


def _made(folder: Path, base: Path, *, card: Any, verb: Any) -> list[str]:
    import onnx

    (folder / "evil.py").write_text(EVIL)
    model = onnx.load(base / sound.MODEL)
    text = card if isinstance(card, bytes) else json.dumps(card).encode()
    text = text.replace(b"{folder}", str(folder).encode())
    for entry in model.metadata_props:
        if entry.key == _KEY:
            entry.value = text.decode("utf-8", "replace")
    onnx.save(model, folder / "card.onnx")
    return list(verb(base))


def _card(base: Path) -> Any:
    import onnx

    properties = onnx.load(base / sound.MODEL).metadata_props
    return next(json.loads(entry.value) for entry in properties if entry.key == _KEY)


_SOURCE = f"shapes:count={sound.COUNT},size=96"


def _eval(_: Path) -> list[str]:
    return ["eval", "card.onnx", "--source", _SOURCE]


def _bench(_: Path) -> list[str]:
    times = ["--duration", "0.05", "--warmup", "0", "--iterations", "2"]
    return ["bench", "card.onnx", "--end-to-end", _SOURCE, *times]


def _quantize(_: Path) -> list[str]:
    return ["quantize", "card.onnx", "--calib-source", _SOURCE, "-o", "out.onnx"]


def _inspect(_: Path) -> list[str]:
    return ["inspect", "card.onnx"]


def _cast(_: Path) -> list[str]:
    return ["cast", "card.onnx", "-o", "out.onnx"]


def _verify(base: Path) -> list[str]:
    source = ["--source", _SOURCE, "--count", "1"]
    return ["verify", "card.onnx", "--against", str(base / sound.MODEL), *source]
