"""Every system of the project along the whole road, and the table of what came of it.

    python benchmarks/systems.py --folder work             # what has no record yet
    python benchmarks/systems.py --only DETR --again
    python benchmarks/systems.py --table                   # of the records that there are

Each of `systems_nets.py` is made with random weights that are fitted to photographs, or is one of
the trained examples; exported; quantised on photographs; built for SM86 in INT8 and FP16 and for
SM75 in FP16, and both read back. INT8 is judged on photographs that it was not calibrated with: as
`eval --against` does, by the metric of the task with what the FP32 file finds as the truth, and by
the signal to noise of each output as `verify` has it. The FP32 file runs in ONNX Runtime in turns
with the graph that `torch.onnx.export` makes of the same network as it was trained (of the
R-CNNs torchvision has, its own network by the TorchScript exporter, with its own resize), one
thread, one image; the medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort
import systems_nets as nets
import torch
from systems_table import records, row, table

import deploykit
from deploykit.networks import loading
from deploykit.networks.detectors import two_stage_models
from deploykit.precision.quality import decibels
from deploykit.recipes.recipe import RECIPES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from systems_nets import System

RESULTS = Path(__file__).parent / "results" / "systems.jsonl"
ROUNDS, SHORTEST = 7, 0.1
"""Rounds of a comparison, and the seconds that a turn takes at least."""
THREADS = 1


def main() -> None:
    """Measure what the command line asks for, or print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(nets.SYSTEMS), help="default: all")
    parser.add_argument("--again", action="store_true", help="what has a record too")
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
    known = records(options.output)
    for name in options.only or nets.SYSTEMS:
        if name in known and not options.again:
            continue
        start = time.perf_counter()
        try:
            found = measured(nets.SYSTEMS[name], folder)
        except Exception as error:  # noqa: BLE001 - the other systems are measured all the same
            found = {"failed": f"{type(error).__name__}: {error}"[:600]}
        spent = round(time.perf_counter() - start, 1)
        found |= {"name": name, "commit": commit(), "seconds": spent}
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps(found, sort_keys=True) + "\n")
        print(row(name, found), flush=True)


def commit() -> str:
    """Return the commit that is measured, `+` where files differ from it."""
    git = ("git", "-C", Path(__file__).parent, "describe", "--always", "--dirty=+", "--exclude=*")
    done = subprocess.run(list(map(str, git)), capture_output=True, text=True, check=False)
    return done.stdout.strip()


def measured(system: System, folder: Path) -> dict[str, Any]:
    """Return what becomes of a system, from the checkpoint on."""
    stem = f"{system.recipe}-{system.variant}"
    names = ("pth", "onnx", "int8.onnx", "fp16.onnx")
    weights, float_, int8, half = (folder / f"{stem}.{ending}" for ending in names)
    recipe = RECIPES.load(system.recipe)
    fed = nets.feeds(system, recipe, nets.source(system, folder, "calibrated"), nets.FITTED)
    if system.example:
        weights = nets.ROOT / "examples" / system.example
    else:
        torch.save(nets.network(system, fed).state_dict(), weights)
    how = deploykit.ExportOptions(
        recipe=system.recipe,
        variant=system.variant,
        input_size=system.size,
        settings=system.settings,
    )
    exported = deploykit.export(weights, float_, how)
    source = nets.source(system, folder, "calibrated")
    quantized = deploykit.quantize(float_, int8, deploykit.QuantizeOptions(source))
    deploykit.cast(float_, half)
    one = {name: value[:1].numpy() for name, value in fed.items()}
    return {
        "input": list(system.size),
        "parameters": parameters(weights, how),
        "macs": sum(layer.macs for layer in exported.layers),
        "proof": exported.artifact.made_by["max_relative_error"],
        "notes": list(quantized.notes),
        "engines": {
            "86": built(int8, "86", one),
            "75": built(half, "75", one),
        },
        **agreement(system, int8, float_, folder),
        "cpu": compared(system, weights, float_, one),
    }


def parameters(weights: Path, how: deploykit.ExportOptions) -> int:
    """Return how many weights the network has as it was trained."""
    made = loading.load_network(weights, how).module
    return sum(each.numel() for each in made.parameters())


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


# --- speed ---------------------------------------------------------------------------------------


def compared(system: System, weights: Path, ours: Path, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the seconds per image of ours and of the plain exporter's graph, in turns."""
    plain = ours.with_suffix(".plain.onnx")
    names, why = plainly(system, weights, plain, feeds)
    sessions = {"ours": (opened(ours), dict(feeds))}
    if not why:
        other = opened(plain)
        given = [each.name for each in other.get_inputs()]
        sessions["plain"] = (other, dict(zip(given, names, strict=True)))
    found = {name: [] for name in sessions}  # type: dict[str, list[float]]
    for turn in range(ROUNDS + 1):
        for name, (session, fed) in sessions.items():
            spent = taken(session, fed)
            if turn:
                found[name].append(spent)
    said = {name: [round(each, 5) for each in values] for name, values in found.items()}
    return {"seconds": said, **({"none": why} if why else {})}


def taken(session: ort.InferenceSession, feeds: Mapping[str, Any]) -> float:
    """Return the median seconds of runs that take `SHORTEST` together."""
    spent: list[float] = []
    while sum(spent) < SHORTEST:
        start = time.perf_counter()
        session.run(None, feeds)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def opened(path: Path) -> ort.InferenceSession:
    """Return a session on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = THREADS
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def plainly(
    system: System, weights: Path, path: Path, feeds: Mapping[str, Any]
) -> tuple[Sequence[Any], str]:
    """Return what the plain exporter's graph takes, and why there is none."""
    how = loading.NetworkOptions(
        recipe=system.recipe,
        variant=system.variant,
        input_size=system.size,
        settings=system.settings,
    )
    made = loading.load_network(weights, how).module
    given = [torch.from_numpy(value) for value in feeds.values()]
    module, arguments, dynamo = made, tuple(given), True
    if system.recipe in HEADS:
        module, dynamo = torchvisions(system, made), False
        arguments = ([given[0][0]],)  # type: ignore[assignment]  # a list of images
        given = [given[0][0]]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                *(module.eval(), arguments, path), dynamo=dynamo, external_data=False, verbose=False
            )
    except Exception as error:  # noqa: BLE001 - whatever it cannot follow is a result
        return (), f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:200]
    return [value.numpy() for value in given], ""


HEADS = {"mask_rcnn": "masks", "faster_rcnn": "boxes"}
"""Recipes whose networks torchvision has -> what they find."""


def torchvisions(system: System, made: Any) -> Any:  # noqa: ANN401 - torchvision ships no types
    """Return torchvision's own network with these weights, for images of the input's size."""
    sizes = two_stage_models.Sizes(system.classes if not system.example else CLASSES_OF_SHAPES)
    own = two_stage_models.model(system.variant, sizes, HEADS[system.recipe])  # type: ignore[arg-type]  # one of its heads
    own.load_state_dict(made.state_dict(), strict=False)
    for name, place in SET.items():
        if name in system.settings:
            target = own.get_submodule(place[0])
            value: Any = int(system.settings[name])
            setattr(target, place[1], {"training": value, "testing": value} if place[2] else value)
    own.transform.min_size = (min(system.size),)
    own.transform.max_size = max(system.size)
    own.transform.image_mean, own.transform.image_std = [0.0] * 3, [1.0] * 3  # done already
    return own


CLASSES_OF_SHAPES = 6
SET = {
    "detections": ("roi_heads", "detections_per_img", False),
    "candidates": ("rpn", "_pre_nms_top_n", True),
    "proposals": ("rpn", "_post_nms_top_n", True),
}
"""Setting -> where torchvision has it, and whether it has one for training too."""

if __name__ == "__main__":
    main()
