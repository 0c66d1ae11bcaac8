"""The whole road on the example detector: checkpoint -> INT8 engine -> AP and FPS -> report.

    make quickstart
    make quickstart QAT=1    # with quantisation-aware training: some minutes more

Runs the commands that you would type for a model of your own, and prints each before it runs.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = Path(__file__).with_name("yolov6_pico.pth")
CALIBRATION = "shapes:split=train,seed=11,count=256"
HELD_OUT = "shapes:split=val,seed=1,count={count}"


def steps(folder: Path, images: int, *, learns: bool = False) -> dict[str, list[str]]:
    """Return title -> command of every step; the results go to `folder`.

    learns: Whether a network that learnt for INT8 is among them.
    """
    checkpoint = _short(CHECKPOINT)
    kinds = ("", ".int8", ".planned", ".fp16")
    float_, int8, planned, half = (folder / f"pico{kind}.onnx" for kind in kinds)
    table = ["--table", str(folder / "pico.calibration.json")]
    calibrated = ["--calib-source", CALIBRATION, *table]
    record = ["--record", str(folder / "records.jsonl")]
    held_out = ["--source", HELD_OUT.format(count=images)]
    build = ["build", "--backend", "tensorrt_rtx", *record]
    return {
        "What is on this machine": ["doctor"],
        "Checkpoint to ONNX": ["export", checkpoint, "-o", str(float_), *record],
        "ONNX to INT8": ["quantize", str(float_), *calibrated, "-o", str(int8), *record],
        "What INT8 costs in each layer": [
            *("sensitivity", str(float_), *calibrated, "--metric", "gradient"),
            *("--metric", "output", "-o", str(folder / "pico.layers.json"), *record),
        ],
        "The layers to keep in float on a T4, at batch 32": [
            *("plan", str(float_), *calibrated, "--source", HELD_OUT.format(count=200)),
            *("--sensitivities", str(folder / "pico.layers.json"), "--gpu", "T4", "--batch", "32"),
            *("-o", str(folder / "pico.plan.json"), *record),
        ],
        "ONNX to INT8 by that plan": [
            *("quantize", str(float_), *calibrated, "--plan", str(folder / "pico.plan.json")),
            *("-o", str(planned), *record),
        ],
        **(_learning(folder, record) if learns else {}),
        "ONNX to FP16": ["cast", str(float_), "-o", str(half), *record],
        "INT8 engine for SM86 (A10, RTX 30)": [
            *(*build, str(int8), "--sm", "86", "-o", str(folder / "pico.int8.sm86.engine"))
        ],
        "FP16 engine for SM75 (T4)": [
            *(*build, str(half), "--sm", "75", "-o", str(folder / "pico.fp16.sm75.engine"))
        ],
        "AP of the FP32 model": ["eval", str(float_), *held_out, *record],
        "AP of the INT8 model": ["eval", str(int8), *held_out, *record],
        "AP of the INT8 model by the plan": ["eval", str(planned), *held_out, *record],
        "AP of the FP16 model": ["eval", str(half), *held_out, *record],
        **(_learnt(folder, [*held_out, *record]) if learns else {}),
        "FPS on this machine": ["bench", str(float_), str(int8), str(half), *record],
        "What INT8 finds beside FP32": [
            *("predict", str(int8), "shapes:split=val,seed=2,count=4"),
            *("--against", str(float_), "-o", str(folder / "predictions")),
        ],
        "Report": [
            *("report", str(folder / "records.jsonl"), "-o", str(folder / "report.html")),
            *("--pictures", str(folder / "predictions")),
        ],
    }


def _learning(folder: Path, record: list[str]) -> dict[str, list[str]]:
    """Return the steps from the float model to one whose weights suit INT8."""
    learnt, table = folder / "pico.qat.onnx", folder / "pico.qat.calibration.json"
    return {
        "Weights that suit INT8: distillation from the FP32 self": [
            *("qat", str(folder / "pico.onnx"), "--calib-source", CALIBRATION, "--epochs", "2"),
            *("--table", str(folder / "pico.calibration.json"), "-o", str(learnt), *record),
        ],
        "These to INT8": [
            *("quantize", str(learnt), "--table", str(table), "--repair", "none"),
            *("-o", str(folder / "pico.qat.int8.onnx"), *record),
        ],
    }


def _learnt(folder: Path, options: list[str]) -> dict[str, list[str]]:
    """Return the step that scores what came of it."""
    return {
        "AP of the INT8 model that learnt": ["eval", str(folder / "pico.qat.int8.onnx"), *options]
    }


def _short(path: Path) -> str:
    """Return the path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def main() -> int:
    """Run every step; return the status of the first that fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "quickstart")
    parser.add_argument("--images", type=int, default=500, help="held-out images for the AP")
    parser.add_argument("--qat", action="store_true", help="train for INT8 too")
    options = parser.parse_args()
    shutil.rmtree(options.output, ignore_errors=True)
    options.output.mkdir(parents=True)
    folder = Path(_short(options.output))
    started = time.perf_counter()
    todo = steps(folder, options.images, learns=options.qat)
    for number, (title, command) in enumerate(todo.items(), start=1):
        print(f"\n[{number}/{len(todo)}] {title}\n$ deploykit {' '.join(command)}", flush=True)
        status = subprocess.run(  # noqa: S603 - the commands stand above
            [sys.executable, "-m", "deploykit", *command], check=False
        ).returncode
        if status:
            return status
    print(f"\nDone in {time.perf_counter() - started:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
