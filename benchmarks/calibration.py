"""Seconds and peak memory of calibration: ours beside ONNX Runtime's own and NVIDIA ModelOpt's.

    python benchmarks/calibration.py                       # 128 images, every method
    python benchmarks/calibration.py --images 64 --images 512 --method bare --method entropy
    python benchmarks/calibration.py --modelopt-venv DIR   # a venv with nvidia-modelopt[onnx]

Every method gets the same torchvision ResNet-50 (random weights, batch norms folded) and the same
JPEG files, cut from photographs that come with scikit-image, and runs in a process of its own,
one after another. Loading the model, decoding, preprocessing, running and choosing the ranges are
timed; starting Python and importing are not. `bare` is the yardstick: the float model run over
the images, nothing observed. ModelOpt takes arrays only, so its images are decoded beforehand.
The results file gets one line per method; only lines with the same `run` may be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any, TypeAlias

Found: TypeAlias = "dict[str, Any]"

SCHEMA_VERSION = 1
METHODS = (
    "bare",
    "minmax",
    "percentile",
    "mse",
    "entropy",
    "ort-MinMax",
    "ort-Entropy",
    "modelopt-max",
    "modelopt-entropy",
)
JOB = Path(__file__).with_name("calibration_job.py")
RESULTS = Path(__file__).parent / "results" / "calibration.jsonl"


def processor() -> str:
    """Return the CPU's name."""
    with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
        names = [line.split(":")[1].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.machine()


def measure(method: str, folder: Path, images: int, options: argparse.Namespace) -> Found:
    """Return what a process of its own measured, or why it failed."""
    venv = options.modelopt_venv
    python = venv.absolute() / "bin" / "python" if needs_venv(method) else sys.executable
    command = [python, JOB, method, folder, str(images), str(options.batch_size)]
    load = os.getloadavg()[0]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()[-1:]
    if done.returncode:
        return {"failed": last[0] if last else f"exit {done.returncode}", "load_before": load}
    return {**json.loads(last[0]), "load_before": load}


def main() -> None:
    """Measure what the command line asks for, print a table and append the records."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, action="append", help="default: 128")
    parser.add_argument("--method", action="append", choices=METHODS, help="default: all possible")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--modelopt-venv", type=Path, help="where nvidia-modelopt[onnx] is")
    parser.add_argument("--folder", type=Path, help="keep the model and the images here")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.method is None:
        options.method = [m for m in METHODS if options.modelopt_venv or not needs_venv(m)]
    if options.modelopt_venv is None and any(map(needs_venv, options.method)):
        parser.error("ModelOpt needs --modelopt-venv")
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for images in options.images or [128]:
            side_by_side(options, folder.resolve(), images)


def side_by_side(options: argparse.Namespace, folder: Path, images: int) -> None:
    """Measure every method on the same images; print and record one line for each."""
    for name in ["prepare"] + ["decode"] * any(map(needs_venv, options.method)):
        if reason := measure(name, folder, images, options).get("failed"):
            sys.exit(f"{name}: {reason}")
    shared = circumstances(images, options.batch_size)
    print(f"\n{images} images, batches of {options.batch_size}, on", end=" ")
    print(f"{shared['cores']} cores of {shared['cpu']}")
    print(f"{'method':18}{'seconds':>9}{'x bare':>8}{'ranges s':>10}{'peak MB':>9}")
    yardstick: float | None = None
    for name in options.method:
        found = measure(name, folder, images, options)
        if name == "bare":
            yardstick = found.get("seconds")
        print(row(name, found, yardstick), flush=True)
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**shared, "method": name, **found}, sort_keys=True) + "\n")


def needs_venv(method: str) -> bool:
    """Return whether the method is ModelOpt's."""
    return method.startswith("modelopt")


def circumstances(images: int, batch_size: int) -> Found:
    """Return what the records of one run have in common."""
    return {
        "schema_version": SCHEMA_VERSION,
        "run": uuid.uuid4().hex,
        "model": "torchvision resnet50",
        "images": images,
        "batch_size": batch_size,
        "cpu": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "system": f"{platform.system()} {platform.release()}",
    }


def row(name: str, found: Found, yardstick: float | None) -> str:
    """Return one line of the table."""
    if "failed" in found:
        return f"{name:18}failed: {found['failed']}"
    seconds, part = found["seconds"], found["calibration_seconds"]
    ratio = f"{seconds / yardstick:.2f}" if yardstick else "-"
    ranges = f"{part:.1f}" if part else "-"
    return f"{name:18}{seconds:9.1f}{ratio:>8}{ranges:>10}{found['peak_rss_bytes'] / 1e6:9.0f}"


if __name__ == "__main__":
    main()
