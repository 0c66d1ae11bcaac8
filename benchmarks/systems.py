"""Every system of the project along the whole road, and the table of what came of it.

    python benchmarks/systems.py --folder work             # what has no record yet
    python benchmarks/systems.py --only DETR --again
    python benchmarks/systems.py --only DETR --speed       # only the FPS of a record anew
    python benchmarks/systems.py --table                   # of the records that there are

Each of `systems_nets.py` is made with random weights that are fitted to photographs, or is one of
the trained examples; exported; quantised on photographs; built for SM86 in INT8 and FP16 and for
SM75 in FP16, and both read back. INT8 is judged on photographs that it was not calibrated with: as
`eval --against` does, by the metric of the task with what the FP32 file finds as the truth, and by
the signal to noise of each output as `verify` has it. The FP32 file runs in ONNX Runtime in turns
with the graphs that `torch.onnx.export` makes of the same network as it was trained, one for one
image and one for any number as ours is (of the R-CNNs torchvision has, its own network by the
TorchScript exporter, with its own resize), one thread, one image: see `systems_speed.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import systems_nets as nets
import torch
from systems_list import SYSTEMS
from systems_speed import THREADS, Paths, compared
from systems_table import records, row, table
from torch.utils.flop_counter import FlopCounterMode

import deploykit
from deploykit.networks import loading
from deploykit.precision.quality import decibels
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from systems_list import System

    from deploykit.pipeline.made import Made

RESULTS = Path(__file__).parent / "results" / "systems.jsonl"


def main() -> None:
    """Measure what the command line asks for, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(SYSTEMS), help="default: all")
    parser.add_argument("--again", action="store_true", help="what has a record too")
    parser.add_argument("--speed", action="store_true", help="only FPS, of what has a record")
    parser.add_argument("--folder", type=Path, help="keep files here")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--table", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.table:
        print("\n".join(table(records(options.output))))
        return
    torch.set_num_threads(THREADS)
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        sweep(options, folder.resolve())


def sweep(options: argparse.Namespace, folder: Path) -> None:
    """Measure system after system, a record at a time."""
    if not (folder / "regions.json").exists():
        nets.photographs(folder)
    known = {name: each for name, each in records(options.output).items() if "failed" not in each}
    for name in options.only or SYSTEMS:
        if options.speed != (name in known) and not options.again:
            continue
        start = time.perf_counter()
        try:
            found = again(name, known[name], folder) if options.speed else measured(name, folder)
        except Exception as error:  # noqa: BLE001 - the other systems are measured all the same
            found = {"failed": f"{type(error).__name__}: {error}"[:600]}
        spent = round(time.perf_counter() - start, 1)
        found = {"name": name, "commit": commit(), "seconds": spent} | found
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, sort_keys=True) + "\n")
        print(row(name, found), flush=True)


def commit() -> str:
    """Return the commit that is measured, `+` where files differ from it."""
    git = ("git", "-C", Path(__file__).parent, "describe", "--always", "--dirty=+", "--exclude=*")
    done = subprocess.run(list(map(str, git)), capture_output=True, text=True, check=False)
    return done.stdout.strip()


def measured(name: str, folder: Path) -> dict[str, Any]:
    """Return what becomes of a system, from the checkpoint on."""
    system = SYSTEMS[name]
    float_, int8, half = (
        named(system, folder, each) for each in ("onnx", "int8.onnx", "fp16.onnx")
    )
    made, fed = exported(system, folder)
    source = nets.source(system, folder, "calibrated")
    quantized = deploykit.quantize(float_, int8, deploykit.QuantizeOptions(source))
    deploykit.cast(float_, half)
    one = first(fed)
    files = paths(system, folder)
    return {
        "input": list(system.size),
        **trained(files.weights, options(system), one),
        "macs": sum(layer.macs for layer in made.layers),
        "proof": made.artifact.made_by["max_relative_error"],
        "branches": branches(float_),
        "notes": list(quantized.notes),
        "engines": {
            "86": built(int8, "86", one),
            "75": built(half, "75", one),
        },
        **agreement(system, int8, float_, folder),
        "cpu": compared(system, files, one),
    }


def again(name: str, known: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return a record whose FPS are measured anew, with the plain graphs that lie there."""
    system = SYSTEMS[name]
    made, fed = exported(system, folder, known=True)
    cpu = compared(system, paths(system, folder), first(fed), known["cpu"])
    work = {"macs": sum(layer.macs for layer in made.layers), "commit": commit()}
    return known | {"cpu": {**cpu, **work}, "branches": branches(named(system, folder, "onnx"))}


def branches(path: Path) -> list[str]:
    """Return what a file's graph has of ops whose result's shape or course its values decide."""
    ops = {node.op_type for node in onnx.load(path, load_external_data=False).graph.node}
    return sorted(ops & {"If", "Loop", "Scan", "NonZero"})


def images(system: System, folder: Path) -> dict[str, Any]:
    """Return the images that a system's weights are fitted to, as it takes them."""
    text = nets.source(system, folder, "calibrated")
    return nets.feeds(system, RECIPES.load(system.recipe), text, nets.FITTED)


def first(fed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the first image of a batch, and what belongs to it."""
    return {name: value[:1].numpy() for name, value in fed.items()}


def paths(system: System, folder: Path) -> Paths:
    """Return the files whose speeds are compared; one of another system is made if it lacks."""
    beside = None
    if system.beside:
        other = SYSTEMS[system.beside]
        beside = named(other, folder, "onnx"), first(images(other, folder))
        if not beside[0].exists():
            exported(other, folder)
    return Paths(weights_of(system, folder), named(system, folder, "onnx"), beside)


def named(system: System, folder: Path, ending: str) -> Path:
    """Return where a file of a system lies."""
    stem = Path(system.example).stem or f"{system.recipe}-{system.variant}"
    return folder / f"{stem}.{ending}"


def weights_of(system: System, folder: Path) -> Path:
    """Return where the checkpoint of a system lies."""
    if system.example:
        return nets.ROOT / "examples" / system.example
    return named(system, folder, "pth")


def options(system: System) -> deploykit.ExportOptions:
    """Return how a system is exported."""
    return deploykit.ExportOptions(
        recipe=system.recipe,
        variant=system.variant,
        input_size=system.size,
        settings=system.settings,
    )


def exported(system: System, folder: Path, *, known: bool = False) -> tuple[Made, dict[str, Any]]:
    """Write a system's checkpoint and its FP32 file; return what `export` says, and images.

    known: a checkpoint that lies there is taken.
    """
    fed = images(system, folder)
    weights = weights_of(system, folder)
    if not (system.example or (known and weights.exists())):
        torch.save(nets.network(system, fed).state_dict(), weights)
    return deploykit.export(weights, named(system, folder, "onnx"), options(system)), fed


def trained(
    weights: Path, how: deploykit.ExportOptions, feeds: Mapping[str, Any]
) -> dict[str, Any]:
    """Return how many weights and multiply-accumulates the network has as it was trained."""
    made = loading.load_network(weights, how).module.eval()
    made.requires_grad_(False)  # the counter asks for the gradient of whatever has one
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        made(*map(torch.from_numpy, feeds.values()))
    count = sum(each.numel() for each in made.parameters())
    return {"parameters": count, "work": counter.get_total_flops() // 2}


def built(model: Path, sm: str, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return seconds, shares read back and bytes of an engine for one image, or why none."""
    engine = model.with_suffix(f".sm{sm}.engine")
    shapes = {name: (array.shape,) * 3 for name, array in feeds.items()}
    options = deploykit.BuildOptions(sms=(sm,), shapes=shapes, plugins="none")
    try:
        made = deploykit.build(model, engine, "tensorrt_rtx", options)
    except deploykit.DeployError as error:
        return {"failed": str(error)[:600]}
    by = made.artifact.made_by
    size = engine.stat().st_size
    engine.unlink()
    return {"seconds": by["seconds"], "shares": by["precision"], "bytes": size}


def agreement(system: System, int8: Path, float_: Path, folder: Path) -> dict[str, Any]:
    """Return how INT8 agrees with FP32 on photographs that it was not calibrated with."""
    source = nets.source(system, folder, "compared")
    how = deploykit.EvalOptions(source, against=float_, limit=system.compared, threads=THREADS)
    scored = deploykit.evaluate(int8, how)
    few = deploykit.VerifyOptions(source=source, count=min(system.compared, 4))
    noise = {
        each.output: round(decibels(each.noise), 1)
        for each in deploykit.verify(int8, float_, few)
        if each.noise and "[" not in each.output
    }
    metrics = {name: value for name, value in scored.metrics.items() if value is not None}
    return {
        "agreement": metrics,
        "primary": scored.primary,
        "images": scored.images,
        "snr": noise,
    }


if __name__ == "__main__":
    main()
