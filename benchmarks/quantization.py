"""What INT8 costs, and what brings it back: one table over nets, methods and bits.

    python benchmarks/quantization.py --folder work --venv PEERS      # goes on where it ended
    python benchmarks/quantization.py --table                         # print what is recorded
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
taken which scores best on 300 other images; `ort` and `modelopt` are quantize_static (MinMax, per
channel, float biases) and modelopt.onnx (max) on the same images, `modelopt_qat` is
`modelopt_qat.py`, whose scales `quantize --amax` takes.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
from PIL import Image

import deploykit
from deploykit.data import feeding, samples, sources
from deploykit.pipeline.opening import open_model
from deploykit.pipeline.retraining import QatOptions, qat
from deploykit.precision import calibration, placement, repairs, tables
from deploykit.recipes import opened
from deploykit.tasks import evaluation
from deploykit.tasks.evaluation import Judge
from deploykit.training.course import Course
from deploykit.training.fake_quant import FakeQuantized, Grid
from deploykit.values import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from deploykit.backends import Arrays
    from deploykit.tasks.evaluation import Contract

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "results" / "quantization.jsonl"
EXAMPLES = ROOT / "examples"
FOLDS = 20
STUDENT = 2.093
"""97.5th percentile of Student's distribution with 19 degrees of freedom."""
CALIBRATION, HELD_OUT = 256, 2000
DETECTORS = ("repvgg", "repopt", "qarepvgg")
"""Those that are quantised with fewer bits too, and trained by ModelOpt."""
NETS = {
    "repvgg": "shapes/yolov6_pico.pth",
    "repopt": "shapes/yolov6_pico_repopt.pth",
    "qarepvgg": "shapes/yolov6_pico_qa.pth",
    "x100": "shapes/yolov6_pico.pth",
    "x30": "shapes/yolov6_pico.pth",
    "masks": "shapes_masks/mask_rcnn_light.pth",
    "classes": "shapes_classes/repvgg_pico.pth",
    "maps": "shapes_maps/fcn_light.pth",
}
SKEWED = {"x100": (100.0, "ERBlock_4"), "x30": (30.0, "")}
"""Factor, and what the names of the layers hold."""
PEERS = {"ort": "ort-MinMax", "modelopt": "modelopt-max"}
REPAIRS = ("equalise", "observer", "bias", "round")
METHODS = (
    *("float", "naive", "minmax", "mse", "default", "torch", "plan", "ort", "modelopt"),
    *("modelopt_qat", "qat", "qat_cwd"),
    *REPAIRS,
)
OBSERVERS = ("minmax", "percentile", "mse", "entropy")
COURSES = {
    8: (Course(epochs=3, learning_rate=1e-5),),
    6: (Course(epochs=4, learning_rate=3e-4, scale_rate=3e-2),),
    5: tuple(
        Course(epochs=8, learning_rate=rate, scale_rate=3e-2, feature_weight=weight)
        for rate, weight in ((3e-4, 10.0), (1e-3, 10.0), (1e-3, 1.0))
    ),
}
"""Bits -> how a net learns: the coarser the steps are, the further weights and ranges must move."""
TRAINING = {8: (1024, 8), 6: (4096, 16), 5: (4096, 16)}
"""Bits -> images that a net learns from, and those of a step."""
WEIGHED, WATCHED = 32, 500
"""Images that the layers are weighed on for a plan, and that its choices are judged on."""


def source(net: str, split: str, count: int, seed: int) -> str:
    """Return the images of a net: those that its example was trained on, or held out."""
    truth = {"classes": "class,size=64", "maps": "map"}.get(net)
    kind = f",truth={truth}" if truth else ""
    return f"shapes:split={split},seed={seed},count={count}{kind}"


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
    given = parser.parse_args()
    Cell.threads, Cell.device, Cell.learn = given.threads, given.device, given.learn
    if given.table:
        print(table(_recorded()))
        return 0
    given.folder.mkdir(exist_ok=True, parents=True)
    for net in given.nets.split(","):
        for bits in map(int, given.bits.split(",")):
            for method in given.methods.split(","):
                cell(Cell(given.folder, net, method, bits, given.images), given.venv)
    print(table(_recorded()))
    return 0


class Cell:
    """One number of the table, and the files that lead to it."""

    threads = 2
    device = "cpu"
    learn = False
    """Train, and judge nothing but what training chooses by."""

    def __init__(self, folder: Path, net: str, method: str, bits: int, images: int) -> None:
        """Name the files."""
        self.net, self.method, self.bits, self.images = net, method, bits, images
        self.model = folder / f"{net}.onnx"
        self.ranges = folder / f"{net}.table.json"
        self.made = folder / f"{net}.{method}.onnx"
        self.folder = folder

    @property
    def calibration(self) -> str:
        """Return the images to calibrate on."""
        return source(self.net, "train", CALIBRATION, 0)

    def how(self, **given: Any) -> deploykit.QuantizeOptions:  # noqa: ANN401 - its fields
        """Return how the net is quantised."""
        options = deploykit.CalibrationOptions(given.pop("observer", "mse"))
        return deploykit.QuantizeOptions(source=self.calibration, calibration=options, **given)


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
    if given.method in {"naive", "modelopt_qat"} or given.bits != 8:
        return given.net in DETECTORS and (given.method != "float" or given.bits == 8)
    return True


def network(given: Cell) -> None:
    """Export a net, skewed where its name says so."""
    plain = given.folder / f"{NETS[given.net].replace('/', '.')}.onnx"
    if not plain.exists():
        variant = "pico_qa" if given.net == "qarepvgg" else None
        how = deploykit.ExportOptions(variant=variant)
        deploykit.export(EXAMPLES / NETS[given.net], plain, how)
    model = onnx.load(plain)
    if given.net in SKEWED:
        spec = importlib.util.spec_from_file_location("skewing", ROOT / "tests" / "skewing.py")
        assert spec is not None
        assert spec.loader is not None
        skewing = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(skewing)
        factor, within = SKEWED[given.net]
        skewing.skewed(model, skewing.one(factor), within=within)
    onnx.save(model, given.model)


def _float(given: Cell, _: Path | None) -> tuple[Any, list[str]]:
    return open_model(given.model, threads=given.threads).session.run, []


def _ptq(given: Cell, observer: str, repair: str, **more: Any) -> tuple[Any, list[str]]:  # noqa: ANN401
    if given.bits != 8 and repair == "auto":
        return _coarse_best(given)
    if given.bits != 8:
        return _coarse(given, observer)
    made = deploykit.quantize(
        given.model, given.made, given.how(observer=observer, repair=(repair,), **more)
    )
    return open_model(given.made, threads=given.threads).session.run, list(made.notes)


def _repaired(repair: str, given: Cell, _: Path | None) -> tuple[Any, list[str]]:
    """Return the net with one repair alone, which 8 bits have."""
    return _ptq(given, "mse", repair)


def _coarse_best(given: Cell) -> tuple[Any, list[str]]:
    """Return the net with the observer that scores best on images of their own."""
    best, found = _best(given)
    said = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
    return _coarse(given, best)[0], [f"{best}, of {said}"]


def _best(given: Cell) -> tuple[str, dict[str, float]]:
    """Return the observer that scores best on images of their own, and what each scores."""
    kept = given.folder / f"{given.net}.{given.bits}.observers.json"
    if not kept.exists():
        few = Cell(given.folder, given.net, given.method, given.bits, 300)
        scored = {name: judged(_coarse(given, name)[0], few, seed=7)["value"] for name in OBSERVERS}
        kept.write_text(json.dumps(scored), encoding="utf-8")
    found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return max(found, key=found.__getitem__), found


def _ranges(given: Cell, observer: str) -> Path:
    """Return where the ranges of an observer lie."""
    return given.folder / f"{given.model.stem}.{observer}.table.json"


def _coarse(given: Cell, observer: str, *, by_tensor: bool = False) -> tuple[Any, list[str]]:
    """Return a net with the steps of fewer bits, computed by torch.

    by_tensor: One step for all weights of a layer.
    """
    subject = opened.read(given.model)
    assert subject.card is not None
    plan = placement.default_plan(subject.graph, subject.card)
    placed = placement.place(subject.graph, plan)
    path = _ranges(given, observer)
    if not path.exists():
        found = calibration.calibrate(
            subject,
            sources.dataset(given.calibration),
            subject.card.preprocess,
            placement.activations(placed),
            options=calibration.CalibrationOptions(observer),
        )
        tables.write(path, found)
    if by_tensor:
        weights = tuple(replace(weight, axis=None) for weight in placed.weights)
        placed = replace(placed, weights=weights)
    grid = Grid(bits=given.bits)
    network = FakeQuantized(subject.graph, placed, tables.read(path), grid=grid).eval()
    return _by_torch(network), []


def _default_by_torch(given: Cell, _: Path | None) -> tuple[Any, list[str]]:
    """Return what `default` makes as training sees it: its fake quantisation, computed by torch."""
    path = given.folder / f"{given.net}.torch.table.json"
    deploykit.quantize(given.model, given.made, given.how(table=path))
    table = tables.read(path)
    subject = repairs.restored(opened.read(given.model), table)
    assert subject.card is not None
    placed = placement.place(subject.graph, placement.default_plan(subject.graph, subject.card))
    return _by_torch(FakeQuantized(subject.graph, placed, table, grid=Grid()).eval()), []


def _by_torch(network: Any, device: str = "cpu") -> Any:  # noqa: ANN401 - a module
    import torch  # noqa: PLC0415

    network.to(device)

    def run(feeds: Arrays) -> Mapping[str, Any]:
        with torch.inference_mode():
            fed = {name: torch.from_numpy(value).to(device) for name, value in feeds.items()}
            found = network(fed)
        return {name: value.cpu().numpy() for name, value in found.items()}

    return run


def _plan(given: Cell, _: Path | None) -> tuple[Any, list[str]]:
    if given.bits != 8:
        return _coarse_plan(given)
    layers, chosen = (given.folder / f"{given.net}.{x}.json" for x in ("layers", "plan"))
    how = given.how(table=given.ranges, repair=("none",))  # what a plan brings alone
    if not layers.exists():
        wanted = deploykit.SensitivityOptions(calibrated=how, metrics=("gradient", "output"))
        deploykit.sensitivity(given.model, layers, wanted)
    asked = deploykit.PlanOptions(
        layers, how, source=source(given.net, "val", WATCHED, 7), batch=32, max_drop=0.005
    )
    made = deploykit.plan(given.model, chosen, asked)
    run = _ptq(given, "mse", "none", plan=chosen)[0]
    said = f"{len(made.choice.kept)} of {len(made.costs.layers)} layers in float; "
    return run, [said + f"drop {made.real} on the images of the plan"]


def _coarse_plan(given: Cell) -> tuple[Any, list[str]]:
    """Return a net of fewer bits with the layers in float that a plan for them chooses."""
    from deploykit.precision.planning import confirming, costs, gpus  # noqa: PLC0415
    from deploykit.precision.sensitivity.alone import Subject  # noqa: PLC0415
    from deploykit.training import gradients  # noqa: PLC0415

    _coarse(given, "mse")  # makes the table
    model = opened.read(given.model)
    assert model.card is not None
    ranges = tables.read(_ranges(given, "mse"))
    plan = placement.default_plan(model.graph, model.card)
    subject = Subject(model, plan, ranges)
    twins, parts = gradients.twins(subject, given.bits), []
    data = sources.dataset(source(given.net, "train", WEIGHED, 0))
    for i, batch in enumerate(samples.batches(data, model.card.preprocess, 4)):
        parts.append(gradients.scores(twins, {"images": batch.images}, seed=i))
    losses = {name: sum(part[name].outputs for part in parts) for name in twins.layers}
    times = costs.roofline(model.graph, list(losses), gpus.gpu("T4"), batch=32)

    def network(kept: Sequence[str]) -> Any:  # noqa: ANN401 - a runner
        layers = {**plan.layers, **dict.fromkeys(kept, Precision.FP32)}
        placed = placement.place(model.graph, replace(plan, layers=layers))
        grid = Grid(bits=given.bits)
        return _by_torch(FakeQuantized(model.graph, placed, ranges, grid=grid).eval())

    few = Cell(given.folder, given.net, given.method, given.bits, WATCHED)
    whole = judged(_float(given, None)[0], few, seed=7)["value"]
    found = confirming.confirmed(
        times,
        losses,
        0.005,
        lambda kept: whole - judged(network(kept), few, seed=7)["value"],
        scaled=False,
    )
    best = found.best or min(found.tried, key=lambda each: each.real)
    tried = ", ".join(f"{len(t.choice.kept)} {t.choice.drop:.4f} {t.real:.4f}" for t in found.tried)
    said = [f"{len(best.choice.kept)} of {len(losses)} layers in float; drop {best.real:.4f}"]
    return network(best.choice.kept), [*said, f"in float, predicted, measured: {tried}"]


def _peer(given: Cell, venv: Path | None) -> tuple[Any, list[str]]:
    assert venv is not None  # the cell is left out without
    images = given.folder / f"{given.net}.npy"
    model = open_model(given.model)
    if not images.exists():
        data = sources.dataset(given.calibration)
        batches = samples.batches(data, model.contract().preprocess, 1)
        np.save(images, np.concatenate([batch.images for batch in batches]))
    method = PEERS[given.method]
    job, plain = ROOT / "benchmarks" / "foreign_job.py", given.model.with_suffix(".plain.onnx")
    onnx.save(onnx.inliner.inline_local_functions(onnx.load(given.model)), plain)
    words = (venv / "bin" / "python", job, plain, images, method)
    subprocess.run([*map(str, words)], check=True)
    made = plain.with_suffix(f".{method}.onnx")
    return open_model(made, threads=given.threads, like=model.card).session.run, []


def _modelopt_qat(given: Cell, venv: Path | None) -> tuple[Any, list[str]]:
    assert venv is not None  # the cell is left out without
    learnt = given.folder / f"{given.net}.modelopt.pth"
    job, course = ROOT / "benchmarks" / "modelopt_qat.py", Course(epochs=4)
    count, _size = TRAINING[8]
    words = (
        *(venv / "bin" / "python", job, EXAMPLES / NETS[given.net], given.calibration),
        *(source(given.net, "train", count, 0), learnt, course.epochs, course.learning_rate),
        given.device,
    )
    if not learnt.exists():
        place = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([*map(str, words)], check=True, env=place)
    plain = given.made.with_suffix(".float.onnx")
    deploykit.export(learnt, plain, deploykit.ExportOptions())
    deploykit.quantize(plain, given.made, deploykit.QuantizeOptions(amax=learnt))
    return open_model(given.made, threads=given.threads).session.run, []


def _qat(given: Cell, *, features: bool) -> tuple[Any, list[str]]:
    courses = COURSES[given.bits]
    if not features:
        rates = dict.fromkeys((each.learning_rate, each.scale_rate) for each in courses)
        courses = tuple(
            Course(each.epochs, *rate, feature_weight=0.0)
            for rate, each in zip(rates, courses, strict=False)
        )
    tried = {course: _trained(given, course, k) for k, course in enumerate(courses)}
    best, notes = max(tried, key=lambda course: tried[course][0]), []
    if len(tried) > 1:
        said = ", ".join(
            f"{course.learning_rate:g} {course.feature_weight:g} {value:.4f}"
            for course, (value, _) in tried.items()
        )
        notes = [f"rate, weight of features, score on other images: {said}"]
    learnt = tried[best][1]
    if given.bits != 8:
        return _learnt(given, learnt), notes
    table = learnt.with_name(learnt.stem + ".calibration.json")
    deploykit.quantize(learnt, given.made, deploykit.QuantizeOptions(table=table, repair=("none",)))
    return open_model(given.made, threads=given.threads).session.run, notes


def _trained(given: Cell, course: Course, number: int) -> tuple[float, Path]:
    """Return how a course scores on 300 images of their own, where there are several; its file."""
    several = len(COURSES[given.bits]) > 1
    tail = f".{number}" if several else ""
    learnt = given.folder / f"{given.net}.{given.method}.{given.bits}{tail}.float.onnx"
    kept = learnt.with_suffix(".score.json")
    if not learnt.exists() and not kept.exists():
        count, size = TRAINING[given.bits]
        how = given.how()
        if given.bits != 8:
            how = deploykit.QuantizeOptions(table=_ranges(given, _best(given)[0]), repair=("none",))
        images = source(given.net, "train", count, 0)
        options = QatOptions(
            calibrated=how,
            images=painted(given, images) if given.device != "cpu" else images,
            batch_size=size,
            course=replace(course, device=given.device),
            bits=given.bits,
        )
        qat(given.model, learnt, options)
    if not several:
        return 0.0, learnt
    if not kept.exists():
        few = Cell(given.folder, given.net, given.method, given.bits, 300)
        score = judged(_learnt(given, learnt), few, seed=7)["value"]
        kept.write_text(json.dumps(score), encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8"))), learnt


def painted(given: Cell, spec: str) -> str:
    """Return a folder of the images of a set: a GPU learns faster than images are generated."""
    folder = given.folder / spec.replace(":", ".")
    if not folder.exists():
        beside = folder.with_name(f"{folder.name}.partial.{os.getpid()}")
        beside.mkdir()
        count = len(sources.dataset(spec).samples)
        with ProcessPoolExecutor() as pool:
            list(pool.map(_paint, [spec] * count, [beside] * count, range(count), chunksize=32))
        beside.rename(folder)
    return f"folder:{folder}"


def _paint(spec: str, folder: Path, number: int) -> None:
    pixels = sources.dataset(spec).samples[number].read()
    Image.fromarray(pixels).save(folder / f"{number:06d}.bmp")


def _learnt(given: Cell, learnt: Path) -> Any:  # noqa: ANN401 - a runner
    subject = opened.read(learnt)
    placed = placement.place(subject.graph, placement.default_plan(subject.graph, subject.card))
    table = tables.read(learnt.with_name(learnt.stem + ".calibration.json"))
    network = FakeQuantized(subject.graph, placed, table, grid=Grid(bits=given.bits)).eval()
    return _by_torch(network, given.device)


MADE: Mapping[str, Callable[[Cell, Path | None], tuple[Any, list[str]]]] = {
    "float": _float,
    "naive": lambda given, _: _coarse(given, "minmax", by_tensor=True),
    "modelopt_qat": _modelopt_qat,
    "minmax": lambda given, _: _ptq(given, "minmax", "none"),
    "mse": lambda given, _: _ptq(given, "mse", "none"),
    "torch": _default_by_torch,
    "default": lambda given, _: _ptq(given, "mse", "auto"),
    "plan": _plan,
    "ort": _peer,
    "modelopt": _peer,
    "qat": lambda given, _: _qat(given, features=False),
    "qat_cwd": lambda given, _: _qat(given, features=True),
    **{repair: partial(_repaired, repair) for repair in REPAIRS},
}


def judged(run: Any, given: Cell, seed: int = 11) -> dict[str, Any]:  # noqa: ANN401 - a runner
    """Return the task's number over all held-out images, and on each fold of them."""
    model = open_model(given.model)
    card = model.contract()
    contract = evaluation.Contract(card.preprocess, card.class_names, model.task())
    data = sources.dataset(source(given.net, "val", given.images, seed))
    size = math.ceil(len(data.samples) / FOLDS)
    parts = [
        replace(data, samples=data.samples[start : start + size])
        for start in range(0, len(data.samples), size)
    ]
    whole, folds, primary = Judge(data, contract, None), [], ""
    for part in parts:
        judge = Judge(part, contract, None)
        _run(run, part, contract, model.session.inputs, (whole, judge))
        scores = judge.found().scores
        folds.append(scores.value)
        primary = scores.primary
    return {"primary": primary, "value": whole.found().scores.value, "folds": folds}


def _run(
    run: Any,  # noqa: ANN401 - a runner
    data: Any,  # noqa: ANN401 - a data set
    contract: Contract,
    inputs: Any,  # noqa: ANN401 - of the model
    judges: Sequence[Judge],
) -> None:
    size = samples.batch_size(4, feeding.batch(inputs[0]), contract.preprocess.size)
    for batch in samples.batches(data, contract.preprocess, size):
        outputs = run(feeding.feeds(inputs, batch.images, batch.geometries))
        for judge in judges:
            judge.add(batch, feeding.unfilled(outputs, inputs[0], len(batch.names)))


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


if __name__ == "__main__":
    sys.exit(main())
