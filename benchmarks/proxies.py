"""How well each measure of sensitivity ranks the layers of the trained examples.

    python benchmarks/proxies.py --folder work              # goes on where it ended
    python benchmarks/proxies.py --table                    # print what is recorded

Nets, images and ranges are those of `quantization.py`. The number is Spearman's rank correlation,
over all layers, with what the task's metric loses with one layer alone in INT8 (`task`, on --images
held out), and with the noise of the outputs then (`output`). Where no layer loses more than chance
moves the metric, the ranks by `task` say nothing; `spread` is the most that a layer loses.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantization_cells import NETS, Cell, network, source

import deploykit
from deploykit.precision.sensitivity import scores
from deploykit.precision.sensitivity.scores import METRICS

RECORDS = Path(__file__).parent / "results" / "proxies.jsonl"
LOOKED_AT = 32
"""Images that outputs and layers are compared on."""
WITHOUT = {"masks": ("gradient", "fisher")}
"""Net -> measures that it lacks: a two-stage detector has no gradient throughout."""
PROXIES = tuple(name for name in METRICS if name not in {"task", "output"})


def main() -> int:
    """Measure what has no record, print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    known = {row["net"] for row in _recorded()}
    for net in [] if given.table else given.nets.split(","):
        if net not in known:
            row = measured(given.folder, net, given.images)
            with RECORDS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, sort_keys=True) + "\n")
    print(table(_recorded()))
    return 0


def measured(folder: Path, net: str, images: int) -> dict[str, Any]:
    """Return the rank correlations of a net."""
    given = Cell(folder, net, "proxies", 8, images)
    if not given.model.exists():
        network(given)
    layers, begun = folder / f"{net}.proxies.json", time.perf_counter()
    deploykit.sensitivity(
        given.model,
        layers,
        deploykit.SensitivityOptions(
            calibrated=given.how(repair=("none",)),
            metrics=tuple(name for name in METRICS if name not in WITHOUT.get(net, ())),
            images=LOOKED_AT,
            source=source(net, "val", images, 11),
        ),
    )
    found = scores.read(layers)
    untold = {
        name: {k: v for k, v in each.items() if k != "task"} for name, each in found.layers.items()
    }
    return {
        "net": net,
        "images": images,
        "layers": len(found.layers),
        "spread": max(each["task"] for each in found.layers.values()),
        "seconds": round(time.perf_counter() - begun),
        "task": found.correlations(),
        "output": replace(found, layers=untold).correlations(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return what is recorded as Markdown."""
    names = (*PROXIES, "output")
    lines = [f"| net | with | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for row in sorted(rows, key=lambda each: list(NETS).index(each["net"])):
        for truth in ("task", "output"):
            said = [row[truth].get(name) for name in names]
            cells = " | ".join("" if rho is None else f"{rho:.2f}" for rho in said)
            most = f" (at most {row['spread']:.4f})" if truth == "task" else ""
            lines.append(f"| {row['net']} | {truth}{most} | {cells} |")
    return "\n".join(lines)


def _recorded() -> list[dict[str, Any]]:
    if not RECORDS.exists():
        return []
    return [json.loads(line) for line in RECORDS.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    sys.exit(main())
