"""What `sensitivity` over all layers costs beside a calibration pass, both in one run.

    python benchmarks/sensitivity.py            # YOLOv6-S, 32 images, 640x640

Network and images are those of overhead.py: YOLOv6-S with random weights, generated photographs.
Each line is a process of its own; `cpu` is the computing of the process, which other work on the
machine changes little, and `memory` its peak. `pass` is the calibration (mse) alone, `local` all of
a layer's own measures (mse, snr, cosine, channel), reading and preparing of the graph included,
`gradient` those by gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import overhead

from deploykit.pipeline import sensing
from deploykit.pipeline.quantizing import QuantizeOptions

if TYPE_CHECKING:
    from collections.abc import Callable

LIMITS = {"cpu": 2.0, "memory": 3e9}
TABLE = Path("table.json")


def sensed(*metrics: str) -> None:
    """Run `sensitivity` with a table that is there."""
    how = QuantizeOptions(source="folder:photos", table=TABLE)
    images = len(list(Path("photos").iterdir()))
    wanted = sensing.SensitivityOptions(calibrated=how, metrics=metrics, images=images)
    sensing.sensitivity("model.onnx", "layers.json", wanted)


JOBS: dict[str, Callable[[], object]] = {
    "pass": overhead.observed,
    "local": lambda: sensed("mse", "snr", "cosine", "channel"),
    "gradient": lambda: sensed("gradient", "fisher"),
}


def main() -> int:
    """Print the lines; return 1 where `local` is beyond a limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        with overhead.timing() as took:
            JOBS[given.job]()
            found = took()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print("\n" + json.dumps({**vars(found), "memory": peak}))
        return 0
    with tempfile.TemporaryDirectory(prefix="sensitivity-") as name:
        os.chdir(name)
        overhead.prepare("quantize", given.images)
        words = ("quantize", "model.onnx", "--calib-dir", "photos", "--table", str(TABLE))
        overhead.run((*words, "-o", "int8.onnx"))
        return table([{job: _timed(job) for job in JOBS} for _ in range(given.rounds)])


def table(rounds: list[dict[str, dict[str, float]]]) -> int:
    """Print the medians; return 1 where a limit is passed."""
    print(f"medians of {len(rounds)} rounds; load {os.getloadavg()[0]:.1f}")
    print(f"{'':10}{'wall s':>8}{'cpu s':>8}{'cpu x':>8}{'memory GB':>11}")
    worst = 0
    for job in JOBS:
        wall, cpu, memory = (
            statistics.median(each[job][key] for each in rounds)
            for key in ("wall", "cpu", "memory")
        )
        ratio = statistics.median(each[job]["cpu"] / each["pass"]["cpu"] for each in rounds)
        print(f"{job:10}{wall:8.2f}{cpu:8.2f}{ratio:8.2f}{memory / 1e9:11.2f}")
        if job == "local":
            worst = int(ratio > LIMITS["cpu"] or memory > LIMITS["memory"])
    print(
        f"limits of local: {LIMITS['cpu']:g} x the computing of pass, {LIMITS['memory'] / 1e9:g} GB"
    )
    return worst


def _timed(job: str) -> dict[str, float]:
    """Return what a job took in a process of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--job", job]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    sys.exit(main())
