"""What needs no PyTorch works without it; what does says which packages to install."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deploykit import backends

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = """
import json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "torchvision", "safetensors", "timm"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from deploykit import cli

for words in json.loads(sys.argv[1]):
    print("->", *words, file=sys.stderr)
    try:
        cli.main(words)
    except SystemExit as ended:
        print("<-", ended.code, file=sys.stderr)
"""
ROAD = """
doctor
inspect {model}
fuse {model} -o {out}/fused.onnx
verify {out}/fused.onnx --against {model} --count 1
cast {model} -o {out}/half.onnx
quantize {model} --calib-dir {photos} -o {out}/int8.onnx
inspect {out}/int8.onnx
build {model} --backend onnxruntime -o {out}/ort.engine
inspect {out}/ort.engine
bench {out}/ort.engine --duration 0.1 --warmup 0 --record {out}/records.jsonl
eval {out}/int8.onnx --source shapes:count=2,size=96 --record {out}/records.jsonl
report {out}/records.jsonl -o {out}/report.html
"""
RTX = """
build {out}/int8.onnx --backend tensorrt_rtx --sm A10 -o {out}/rtx.engine
inspect {out}/rtx.engine
"""


def without_torch(commands: list[list[str]]) -> tuple[list[int], str]:
    """Return the exit status of every command, and what they said on stderr."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(commands)],
        capture_output=True,
        text=True,
        check=True,
    )
    statuses = [line for line in done.stderr.splitlines() if line.startswith("<- ")]
    return [int(line[3:]) for line in statuses], done.stderr


def test_verbs_on_onnx_files_and_engines_work_without_torch(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    road = ROAD + (RTX if backends.load("tensorrt_rtx").availability().builds else "")
    lines = [line.split() for line in road.splitlines() if line]
    places = {"model": model, "photos": photos, "out": tmp_path}
    statuses, said = without_torch([[w.format(**places) for w in line] for line in lines])
    assert statuses == [0] * len(lines), said


@pytest.mark.parametrize(
    "line",
    [
        "export {checkpoint} -o {out}/x.onnx",
        "verify {model} --against {checkpoint}",
        "eval {checkpoint} --source shapes:count=2",
    ],
)
def test_what_needs_torch_names_the_packages(
    model: Path, checkpoint: Path, tmp_path: Path, line: str
) -> None:
    places = {"model": model, "checkpoint": checkpoint, "out": tmp_path}
    statuses, said = without_torch([[word.format(**places) for word in line.split()]])
    assert statuses == [2]
    assert "needs the Python module 'torch', which is not installed" in said
    assert "pip install torch torchvision" in said
    assert "foreseen" not in said
