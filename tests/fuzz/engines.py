"""Hostile engines and their sidecars: what they hold is looked at before anything is loaded."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from typing import TYPE_CHECKING, Any

from . import mutants, sound
from .cards import EVIL
from .case import Case

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SOURCE = f"shapes:count={sound.COUNT},size=96"
_VERBS = {
    "inspect": ["inspect", "e.engine"],
    "bench": ["bench", "e.engine", "--duration", "0.05", "--warmup", "0"],
    "eval": ["eval", "e.engine", "--source", _SOURCE],
}
_HEADER = b"header {\n  version = 5\n"
_ENGINES = {
    "nothing behind its mark": b"vtrt",
    "zeros": b"vtrt" + bytes(100_000),
    "headers without end": b"vtrt" + _HEADER * 30_000,
    "one long line": b"vtrt" + _HEADER + b"\ndescriptors {" + b'tensor={ name="' * 60_000
    + b"\nmain {\n" + b'  a={ layers="' + b'" input={"' * 60_000 + b"\n}\n",
    "of TensorRT": b"ftrt" + bytes(1000),
    "no engine at all": b"hello",
}  # fmt: skip
_PLUGINS: dict[str, Any] = {
    "a library": {"how": "library", "ops": {"DKBatchedNms": 1}, "library": "evil.so"},
    "an absolute library": {"how": "library", "ops": {}, "library": "{folder}/evil.so"},
    "an unknown way": {"how": "run", "ops": {}, "library": "evil.py"},
    "an unknown op": {"how": "python", "ops": {"../../evil": 10**9}},
    "a list": [1, 2],
    "no mapping": {"how": "python", "ops": 3, "versions": None},
}


def cases(base: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case."""
    said = json.loads((base / (sound.ENGINE + ".json")).read_text())
    for verb in _VERBS:
        for what, content in _ENGINES.items():
            for backend in ("tensorrt_rtx", "tensorrt"):
                name = f"{what}, by {backend}, {verb}"
                yield _case(name, content, _told(said, backend=backend), verb)
        for what, plugins in _PLUGINS.items():
            for how, content in (("vtrt", b"vtrt"), ("ftrt", b"ftrt")):
                told = _told(said, backend="tensorrt_rtx", plugins=plugins)
                yield _case(f"{how} with {what} as plugins, {verb}", content, told, verb)
        yield _case(f"an unknown backend, {verb}", b"vtrt", _told(said, backend="os"), verb)
    told = _told(said, backend="tensorrt_rtx", plugins=_PLUGINS["a library"])
    for number, (what, content) in enumerate(mutants.values(told, seed=seed, count=20)):
        verb = list(_VERBS)[number % len(_VERBS)]
        yield _case(f"{number} {what}, {verb}", b"vtrt" + bytes(99), content, verb)


def _told(said: Any, **made_by: Any) -> Any:
    return {**said, "made_by": {**said["made_by"], **made_by}}


def _case(what: str, content: bytes, told: Any, verb: str) -> Case:
    return Case(f"engine: {what}", partial(_made, content=content, told=told, verb=verb))


def _made(folder: Path, _: Path, *, content: bytes, told: Any, verb: str) -> list[str]:
    (folder / "e.engine").write_bytes(content)
    (folder / "evil.py").write_text(EVIL)
    (folder / "evil.so").write_bytes(b"\x7fELF" + bytes(200))
    if not isinstance(told, bytes):
        told = {**told, "sha256": hashlib.sha256(content).hexdigest()}
        told = json.dumps(told).replace("{folder}", str(folder)).encode()
    (folder / "e.engine.json").write_bytes(told)
    return list(_VERBS[verb])
