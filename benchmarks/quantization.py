"""What INT8 costs, and what brings it back: one table over nets, methods and bits.

    python benchmarks/quantization.py --folder work --venv PEERS      # goes on where it ended
    python benchmarks/quantization.py --table                         # print what is recorded
    python benchmarks/quantization.py --summary                       # at 8 bits, a row for a net
    python benchmarks/quantization.py --folder work --device cuda --learn --methods qat,qat_cwd

The last makes the files that training makes and no row: a run without a GPU goes on with them.

PEERS: an environment with onnxruntime and nvidia-modelopt[onnx], for the methods `ort` and
`modelopt`; without it they are left out. Every method calibrates on the same images of the
generated shapes and is judged on the same held-out ones (--images, in 20 folds): the interval is
Student's, of the mean over the folds of the difference to the float model on the same fold.

Nets are the trained examples; two detectors that are of equal form once folded, trained alike with
QARepVGG blocks and with RepOptimizer (`examples/shapes/train.py`); and forms of the detector whose
weights are skewed while the function stays: one channel of each layer times 100 (3 layers of a
stage) or times 30 (all 34 that allow it), and what reads it divided. They show what repairs and a
plan bring; channel scaling is undone by equalisation, so it says nothing about RepOptimizer or
QARepVGG. Fewer than 8 bits (steps as coarse as those of so many bits, computed in float) are an
amplifier that no engine can run.

Methods: `naive` is minmax with one step for all weights of a layer (computed in float), `minmax`
and `mse` are calibration alone, `equalise`, `observer`, `bias` and `round` are `mse` with that
repair alone, `default` is `quantize` as it comes with `--repair auto`, and `torch` the same
computed by the fake quantisation of training; with fewer bits it is the observer of four that
scores best on 300 other images. `plan` leaves the layers in float that `plan --max-drop 0.005`
chooses for a T4 at batch 32, `qat` and `qat_cwd` train from `default`'s ranges without and with
channel-wise distillation of the neck: with fewer bits at several rates, of which that is
taken which scores best on 300 other images; with `_labels` those of the images are learnt too, for
longer; `ort` and `modelopt` are quantize_static (MinMax, per
channel, float biases) and modelopt.onnx (max) on the same images, `modelopt_qat` is
`modelopt_qat.py`, whose scales `quantize --amax` takes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantization_cells import DETECTORS, HELD_OUT, NETS, ROOT, Cell, judged, network
from quantization_methods import (
    PEERS,
    coarse,
    default_by_torch,
    floats,
    peer,
    planned,
    ptq,
    repaired,
)
from quantization_training import modelopt_qat, trained

import deploykit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

RECORDS = ROOT / "benchmarks" / "results" / "quantization.jsonl"
STUDENT = 2.093
"""97.5th percentile of Student's distribution with 19 degrees of freedom."""
REPAIRS = ("equalise", "observer", "bias", "round")
METHODS = (
    *("float", "naive", "minmax", "mse", "default", "torch", "plan", "ort", "modelopt"),
    *("modelopt_qat", "qat", "qat_cwd", "qat_labels", "qat_cwd_labels"),
    *REPAIRS,
)


def main() -> int:
    """Fill the table, cell by cell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--venv", type=Path)
    parser.add_argument("--images", type=int, default=HELD_OUT)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--bits", default="8")
    parser.add_argument("--threads", type=int, default=Cell.threads)
    parser.add_argument("--device", default=Cell.device, help="to train on")
    parser.add_argument("--learn", action="store_true", help="train only, and keep the files")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--summary", action="store_true")
    given = parser.parse_args()
    Cell.threads, Cell.device, Cell.learn = given.threads, given.device, given.learn
    if given.table:
        print(table(_recorded()))
        return 0
    if given.summary:
        print(summary(_recorded()))
        return 0
    given.folder.mkdir(exist_ok=True, parents=True)
    for net in given.nets.split(","):
        for bits in map(int, given.bits.split(",")):
            for method in given.methods.split(","):
                cell(Cell(given.folder, net, method, bits, given.images), given.venv)
    print(table(_recorded()))
    return 0


def cell(given: Cell, venv: Path | None) -> None:
    """Record one number, where it is not yet."""
    known = {(r["net"], r["method"], r["bits"], r["images"]) for r in _recorded()}
    if (given.net, given.method, given.bits, given.images) in known or not _asked(given, venv):
        return
    if not given.model.exists():
        network(given)
    try:
        run, notes = MADE[given.method](given, venv)
    except (deploykit.DeployError, subprocess.CalledProcessError) as error:
        print(f"{given.net} {given.method}: {error}", flush=True)
        return
    if given.learn:
        return
    found = judged(run, given)
    keys = {"net": given.net, "method": given.method, "bits": given.bits, "images": given.images}
    line = {**keys, **found, "notes": [note.replace(f"{given.folder}/", "") for note in notes]}
    with RECORDS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line, sort_keys=True) + "\n")
    print(
        f"{given.net} {given.method} W{given.bits}A{given.bits}: {found['value']:.4f}", flush=True
    )


def _asked(given: Cell, venv: Path | None) -> bool:
    """Return whether the table has such a number."""
    if given.method in {*PEERS, "modelopt_qat"} and (venv is None or given.bits != 8):
        return False
    detectors_alone = {"naive", "modelopt_qat", "qat_labels", "qat_cwd_labels"}
    if given.method in detectors_alone or given.bits != 8:
        return given.net in DETECTORS and (given.method != "float" or given.bits == 8)
    return True


def _recorded() -> list[dict[str, Any]]:
    if not RECORDS.exists():
        return []
    lines = RECORDS.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def table(rows: list[dict[str, Any]]) -> str:
    """Return what is recorded as Markdown: the number, and its difference to the float model's."""
    base = {r["net"]: r for r in rows if r["method"] == "float"}
    lines = ["| net | bits | method | score | difference (95 %) |", "|---|---|---|---|---|"]
    order = {name: i for i, name in enumerate((*NETS, *METHODS))}
    for row in sorted(
        rows, key=lambda r: (order.get(r["net"], 99), -r["bits"], order[r["method"]])
    ):
        said = ""
        if row["net"] in base and row["method"] != "float":
            pairs = zip(row["folds"], base[row["net"]]["folds"], strict=True)
            apart = [a - b for a, b in pairs]
            error = STUDENT * statistics.stdev(apart) / math.sqrt(len(apart))
            said = f"{statistics.fmean(apart):+.4f} \u00b1 {error:.4f}"
        name = f"{row['net']} ({row['primary']})"
        lines.append(f"| {name} | {row['bits']} | {row['method']} | {row['value']:.4f} | {said} |")
    return "\n".join(lines)


SHOWN = {
    "float": "FP32",
    "naive": "naive",
    "default": "`quantize`",
    "plan": "`plan`",
    "qat": "`qat`",
    "qat_cwd": "`qat`, neck too",
    "ort": "ONNX Runtime",
    "modelopt": "ModelOpt",
}
TITLES = {
    "repvgg": "RepVGG detector, AP",
    "repopt": "RepOptimizer detector, AP",
    "qarepvgg": "QARepVGG detector, AP",
    "x100": "RepVGG, weights skewed x100",
    "x30": "RepVGG, weights skewed x30",
    "masks": "Mask R-CNN, mask AP",
    "classes": "RepVGG classifier, top-1",
    "maps": "FCN, mIoU",
}


def summary(rows: list[dict[str, Any]]) -> str:
    """Return the numbers at 8 bits as Markdown, a row for each net."""
    known = {(r["net"], r["method"]): r["value"] for r in rows if r["bits"] == 8}
    lines = [f"| | {' | '.join(SHOWN.values())} |", "|---|" + "---|" * len(SHOWN)]
    for net, title in TITLES.items():
        told = [known.get((net, method)) for method in SHOWN]
        cells = ["" if value is None else f"{value:.4f}" for value in told]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


MADE: Mapping[str, Callable[[Cell, Path | None], tuple[Any, list[str]]]] = {
    "float": floats,
    "naive": lambda given, _: coarse(given, "minmax", by_tensor=True),
    "modelopt_qat": modelopt_qat,
    "minmax": lambda given, _: ptq(given, "minmax", "none"),
    "mse": lambda given, _: ptq(given, "mse", "none"),
    "torch": default_by_torch,
    "default": lambda given, _: ptq(given, "mse", "auto"),
    "plan": planned,
    "ort": peer,
    "modelopt": peer,
    "qat": lambda given, _: trained(given, features=False),
    "qat_cwd": lambda given, _: trained(given, features=True),
    "qat_labels": lambda given, _: trained(given, features=False, labels=True),
    "qat_cwd_labels": lambda given, _: trained(given, features=True, labels=True),
    **{repair: partial(repaired, repair) for repair in REPAIRS},
}


if __name__ == "__main__":
    sys.exit(main())
