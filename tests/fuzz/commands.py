"""Hostile command lines: paths, options, and the streams a command gets."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from . import sound
from .case import Case

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_SOURCE = f"shapes:count={sound.COUNT},size=96"
_QUICK = ["--duration", "0.05", "--warmup", "0", "--iterations", "2"]


def cases(base: Path, seed: int = 0) -> Iterator[Case]:
    """Yield every case."""
    del base, seed
    for verb, words in _VERBS.items():
        for what, path in _PATHS.items():
            yield Case(f"command: {verb} {what}", partial(_made, words=words, path=path))
    for what, options in _OPTIONS.items():
        yield Case(f"command: {what}", partial(_made, words=options, path=""))
    for stdout in ("closed", "full", "broken"):
        for words in (["doctor"], ["inspect", "{model}"], ["inspect", "none", "--json"]):
            name = f"command: {words[0]} {' '.join(words[1:])} with standard output {stdout}"
            yield Case(name, partial(_made, words=words, path=""), stdout=stdout)


def _made(
    folder: Path, base: Path, *, words: list[str], path: str | Callable[[Path], str]
) -> list[str]:
    (folder / "data").mkdir()
    (folder / "data" / "d").mkdir()
    (folder / "data" / "f").write_bytes(b"x")
    (folder / "data" / "a").symlink_to("b")
    (folder / "data" / "b").symlink_to("a")
    (folder / "data" / "null").symlink_to("/dev/null")
    (folder / "data" / "model.onnx").write_bytes((base / sound.MODEL).read_bytes())
    os.mkfifo(folder / "data" / "pipe")
    names = {
        "model": str(base / sound.MODEL),
        "records": str(base / sound.RECORDS),
        "copy": "data/model.onnx",
        "layers": str(base / sound.LAYERS),
        "path": path if isinstance(path, str) else path(folder),
    }
    return [word.format(**names) for word in words]


_PATHS: dict[str, str] = {
    "too long": "n" * 300,
    "far too long": "x/" * 5000,
    "a circle": "data/a",
    "a folder": "data/d",
    "a pipe": "data/pipe",
    "a device": "data/null",
    "a file as a folder": "data/f/x",
    "an absent folder": "absent/x",
    "empty": "",
    "a point": ".",
    "the root": "/",
    "of the process": "/proc/self/mem",
    "of surrogates": "\udcff\udcfe.onnx",
    "of escapes": "\x1b[31mred\n\u202egnp",
    "a NUL": "a\0b",
    "a minus": "-",
    "a home that is not": "~nobody-at-all/x",
}
_QUANTIZE = ["quantize", "{copy}", "-o", "o.onnx", "--calib-source", _SOURCE]
_QAT = ["qat", "{copy}", "-o", "o.onnx", "--calib-source", _SOURCE]
_VERBS: dict[str, list[str]] = {
    "export from": ["export", "{path}", "-o", "out.onnx"],
    "fuse from": ["fuse", "{path}", "-o", "out.onnx"],
    "fuse to": ["fuse", "{copy}", "-o", "{path}"],
    "cast record": ["cast", "{copy}", "-o", "out.onnx", "--record", "{path}"],
    "quantize table": [*_QUANTIZE, "--table", "{path}"],
    "quantize plan": [*_QUANTIZE, "--plan", "{path}"],
    "quantize amax": ["quantize", "{copy}", "-o", "o.onnx", "--amax", "{path}"],
    "qat table": [*_QAT, "--table", "{path}"],
    "qat loss": [*_QAT, "--no-distill", "--loss", "{path}.py"],
    "qat state": [*_QAT, "--epochs", "1", "--state", "{path}"],
    "quantize images": ["quantize", "{copy}", "-o", "o.onnx", "--calib-dir", "{path}"],
    "sensitivity to": ["sensitivity", "{copy}", "-o", "{path}", "--calib-source", _SOURCE],
    "plan profiles": [
        *("plan", "{copy}", "--sensitivities", "{layers}", "--keep-float", "1", "-o", "o.json"),
        *("--int8-profile", "{path}", "--fp16-profile", "{path}"),
    ],
    "build from": ["build", "{path}", "-o", "out.engine"],
    "inspect": ["inspect", "{path}"],
    "verify against": ["verify", "{copy}", "--against", "{path}", "--count", "1"],
    "eval recipe": ["eval", "{copy}", "--source", _SOURCE, "--recipe", "{path}.py"],
    "eval images": ["eval", "{copy}", "--source", "coco:{path}"],
    "bench": ["bench", "{path}", *_QUICK],
    "report from": ["report", "{path}", "-o", "r.html"],
    "report pictures": ["report", "{records}", "-o", "r.html", "--pictures", "{path}"],
    "predict images": ["predict", "{copy}", "{path}", "-o", "out"],
    "predict to": ["predict", "{copy}", "shapes:count=1,size=64", "-o", "{path}"],
    "eval folders": ["eval", "{copy}", "--source", "imagefolder:{path}"],
    "eval maps": ["eval", "{copy}", "--source", "voc:{path}"],
    "report to": ["report", "{records}", "-o", "{path}.html"],
    "build library": ["build", "{copy}", "-o", "o", "--plugins", "{path}", "--sm", "86"],
}
_OPTIONS: dict[str, list[str]] = {
    "output is input": ["fuse", "{copy}", "-o", "{copy}"],
    "record is model": ["cast", "{copy}", "-o", "out.onnx", "--record", "{copy}"],
    "record is output": ["cast", "{copy}", "-o", "out.onnx", "--record", "out.onnx"],
    "record is sidecar": ["cast", "{copy}", "-o", "out.onnx", "--record", "out.onnx.json"],
    "record of another kind": ["cast", "{copy}", "-o", "out.onnx", "--record", "data/f"],
    "table is output": ["quantize", "{copy}", "-o", "o", "--table", "o", "--calib-source", _SOURCE],
    "table is model": ["quantize", "{copy}", "-o", "o", "--table", "{copy}"],
    "plan is sidecar": ["quantize", "{copy}", "-o", "o", "--plan", "o.json"],
    "report over its records": ["report", "data/f.md", "-o", "data/f.html"],
    "no verb": [],
    "unknown verb": ["explode"],
    "unknown option": ["fuse", "--explode"],
    "huge count": ["eval", "{copy}", "--source", "shapes:count=999999999999"],
    "huge size": ["eval", "{copy}", "--source", "shapes:size=999999999999"],
    "negative limit": ["eval", "{copy}", "--source", _SOURCE, "--limit", "-5"],
    "huge limit": ["eval", "{copy}", "--source", _SOURCE, "--limit", "9" * 400],
    "huge batch": ["eval", "{copy}", "--source", _SOURCE, "--batch-size", "999999999"],
    "batch 0": ["eval", "{copy}", "--source", _SOURCE, "--batch-size", "0"],
    "huge batches": ["bench", "{copy}", "--batch-sizes", "999999", *_QUICK],
    "negative threads": ["bench", "{copy}", "--threads", "-1", *_QUICK],
    "huge threads": ["bench", "{copy}", "--threads", "1000000", *_QUICK],
    "NaN seconds": ["bench", "{copy}", "--duration", "nan", "--iterations", "2"],
    "negative seconds": [
        "bench",
        "{copy}",
        "--duration",
        "-1",
        "--warmup",
        "-1",
        "--iterations",
        "-1",
    ],
    "NaN tolerance": ["verify", "{copy}", "--against", "{copy}", "--atol", "nan", "--count", "1"],
    "negative count": ["verify", "{copy}", "--against", "{copy}", "--count", "-1"],
    "zero count": ["verify", "{copy}", "--against", "{copy}", "--count", "0"],
    "epochs 0": [*_QAT, "--epochs", "0"],
    "learning rate NaN": [*_QAT, "--learning-rate", "nan"],
    "learning rate infinite": [*_QAT, "--epochs", "1", "--learning-rate", "1e39"],
    "batch of no images": [*_QAT, "--batch-size", "0"],
    "heads of nothing": [*_QAT, "--heads", ",,"],
    "unknown scales": [*_QAT, "--scales", "evil"],
    "unknown device": [*_QAT, "--device", "evil"],
    "no teacher and no loss": [*_QAT, "--no-distill"],
    "percentile 200": [*_QUANTIZE, "--calib-method", "percentile", "--percentile", "200"],
    "percentile NaN": [*_QUANTIZE, "--calib-method", "percentile", "--percentile", "nan"],
    "source of evil": ["eval", "{copy}", "--source", "evil.py:x"],
    "source without colon": ["eval", "{copy}", "--source", "shapes"],
    "source twice": [*_QUANTIZE, "--calib-dir", "data"],
    "odd shapes": [
        "build",
        "{copy}",
        "-o",
        "o",
        "--min-shapes",
        "images:0x0x0x0",
        "--opt-shapes",
        "x:1",
        "--max-shapes",
        ":",
    ],
    "huge workspace": ["build", "{copy}", "-o", "o", "--workspace", "999999G"],
    "odd sm": ["build", "{copy}", "-o", "o", "--sm", "\x1b[31m"],
    "odd input size": ["export", "{model}", "-o", "o", "--input-size", "99999x99999"],
    "title of escapes": [
        "report",
        "{records}",
        "-o",
        "r.html",
        "--title",
        "<script>\x1b[31m\udcff",
    ],
    "class names": ["export", "{model}", "-o", "o", "--class-names", ",,,"],
}
