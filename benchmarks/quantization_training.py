"""What training brings in `quantization.py`: ours, and ModelOpt's."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from PIL import Image
from quantization_cells import EXAMPLES, NETS, ROOT, Cell, by_torch, judged, source
from quantization_methods import best_observer, ranges

import deploykit
from deploykit.data import sources
from deploykit.pipeline.opening import open_model
from deploykit.pipeline.retraining import QatOptions, qat
from deploykit.precision import placement, tables
from deploykit.recipes import opened
from deploykit.training.course import Course
from deploykit.training.fake_quant import FakeQuantized, Grid

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
LABELLED = Course(epochs=4, learning_rate=1e-3, scale_rate=1e-2, feature_weight=1.0)
LABELLED_TRAINING = (16384, 32)
"""Those with labels beside the FP32 self, with as many bits as one likes: at 8, where rounding
costs nearly nothing, the net shows what learning on brings alone."""
LONGER = replace(LABELLED, epochs=8, feature_weight=0.3)
LONGER_FOR = ("repopt", "qarepvgg")
"""Nets that learn twice as long with 5 bits, where the neck leads less."""
LOSS = EXAMPLES / "shapes" / "qat_loss.py"


def modelopt_qat(given: Cell, venv: Path | None) -> tuple[Any, list[str]]:
    """Return what ModelOpt's training makes of the net, quantised by us with its scales."""
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


def trained(given: Cell, *, features: bool, labels: bool = False) -> tuple[Any, list[str]]:
    """Return what our training makes of the net, by the course that scores best."""
    courses = (_labelled(given, features=features),) if labels else COURSES[given.bits]
    if not features:
        rates = dict.fromkeys((each.learning_rate, each.scale_rate) for each in courses)
        courses = tuple(
            Course(each.epochs, *rate, feature_weight=0.0)
            for rate, each in zip(rates, courses, strict=False)
        )
    tried = {
        course: _trained(given, course, f".{k}" if len(courses) > 1 else "", labels=labels)
        for k, course in enumerate(courses)
    }
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


def _labelled(given: Cell, *, features: bool) -> Course:
    longer = features and given.bits == min(COURSES) and given.net in LONGER_FOR
    return LONGER if longer else LABELLED


def _trained(given: Cell, course: Course, tail: str, *, labels: bool) -> tuple[float, Path]:
    """Return how a course scores on 300 images of their own, where there are several; its file."""
    learnt = given.folder / f"{given.net}.{given.method}.{given.bits}{tail}.float.onnx"
    kept = learnt.with_suffix(".score.json")
    if not learnt.exists() and not kept.exists():
        count, size = LABELLED_TRAINING if labels else TRAINING[given.bits]
        how = given.how()
        if given.bits != 8:
            how = deploykit.QuantizeOptions(
                table=ranges(given, best_observer(given)[0]), repair=("none",)
            )
        images = source(given.net, "train", count, 0)
        options = QatOptions(
            calibrated=how,
            images=painted(given, images) if labels or given.device != "cpu" else images,
            batch_size=size,
            course=replace(course, device=given.device),
            bits=given.bits,
            loss=LOSS if labels else None,
        )
        qat(given.model, learnt, options)
    if not tail:
        return 0.0, learnt
    if not kept.exists():
        few = Cell(given.folder, given.net, given.method, given.bits, 300)
        score = judged(_learnt(given, learnt), few, seed=7)["value"]
        kept.write_text(json.dumps(score), encoding="utf-8")
    return float(json.loads(kept.read_text(encoding="utf-8"))), learnt


def painted(given: Cell, spec: str) -> str:
    """Return a set of COCO's layout with the same images: they are read faster than generated."""
    folder = given.folder / re.sub("[:,]", ".", spec)
    if not folder.exists():
        beside = folder.with_name(f"{folder.name}.partial.{os.getpid()}")
        (beside / "annotations").mkdir(parents=True)
        data = sources.dataset(spec)
        count = len(data.samples)
        with ProcessPoolExecutor() as pool:
            told = pool.map(_paint, [spec] * count, [beside] * count, range(count), chunksize=32)
            listed, truths = zip(*told, strict=True)
        objects = [each for truth in truths for each in truth]
        kinds = [{"id": number, "name": name} for number, name in data.categories.items()]
        written = {
            "images": listed,
            "annotations": [{**each, "id": k} for k, each in enumerate(objects, 1)],
            "categories": kinds,
        }
        (beside / "annotations" / "instances_train.json").write_text(json.dumps(written))
        try:
            beside.rename(folder)
        except OSError:  # another process was faster
            shutil.rmtree(beside)
    return f"coco:{folder}"


@functools.cache
def _samples(spec: str) -> Sequence[sources.Sample]:
    return sources.dataset(spec).samples


def _paint(spec: str, folder: Path, number: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write an image; return COCO's entry of it, and those of its objects, without masks."""
    sample = _samples(spec)[number]
    pixels, name = sample.read(), f"{number:06d}.bmp"
    Image.fromarray(pixels).save(folder / name)
    height, width = pixels.shape[:2]
    assert sample.truth is not None
    found: Any = sample.truth()
    kept = ("category_id", "bbox", "area", "iscrowd")
    objects = [{"image_id": number, **{k: each[k] for k in kept}} for each in found.annotations]
    return {"id": number, "file_name": name, "height": height, "width": width}, objects


def _learnt(given: Cell, learnt: Path) -> Any:  # noqa: ANN401 - a runner
    subject = opened.read(learnt)
    placed = placement.place(subject.graph, placement.default_plan(subject.graph, subject.card))
    table = tables.read(learnt.with_name(learnt.stem + ".calibration.json"))
    network = FakeQuantized(subject.graph, placed, table, grid=Grid(bits=given.bits)).eval()
    return by_torch(network, given.device)
