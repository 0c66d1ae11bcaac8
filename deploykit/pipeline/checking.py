"""The verbs that look and measure: inspect, verify, evaluate, bench, report."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from deploykit import backends, reporting
from deploykit.data import samples, sources
from deploykit.errors import OptionError
from deploykit.files import onnxfile
from deploykit.measuring import benchmarking, environment, records
from deploykit.measuring.benchmarking import BenchOptions, EndToEnd, Instruments, Subject
from deploykit.measuring.records import AccuracyRecord
from deploykit.pipeline import places
from deploykit.pipeline.opening import CHECKPOINTS, PYTORCH, made_by, open_model
from deploykit.precision import lint
from deploykit.proof import random_inputs, verification
from deploykit.tasks import evaluation
from deploykit.tasks.evaluation import Contract
from deploykit.values import digest, silent

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from deploykit.backends import Arrays
    from deploykit.data.preprocess import Geometry
    from deploykit.pipeline.opening import Opened
    from deploykit.precision.lint import Finding
    from deploykit.values import Agreement, BenchRecord, Json, LayerPrecision, Progress

_BENCH_IMAGES = 64
"""Images that an end-to-end measurement takes in turn."""


@dataclass(frozen=True)
class Inspection:
    """What a file's layers run in, and what the lint says of its Q/DQ."""

    path: Path
    layers: tuple[LayerPrecision, ...]
    findings: tuple[Finding, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Return the findings for which TensorRT refuses the graph."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def shares(self) -> dict[str, float]:
        """Return precision -> its share of the multiply-accumulates."""
        return records.shares(self.layers)

    def to_json(self) -> Json:
        """Return the inspection as plain JSON values."""
        return {
            "path": str(self.path),
            "shares": self.shares,
            "layers": [vars(layer) for layer in self.layers],
            "findings": [vars(finding) for finding in self.findings],
        }


def inspect(path: Path) -> Inspection:
    """Return the precision of every layer of an ONNX file or an engine.

    Raises: InputError, BackendError.
    """
    if path.suffix == ".onnx":
        model = onnxfile.read_model(path)
        return Inspection(path, lint.precision_table(model), lint.lint(model))
    opened = backends.load(engine_backend(path))
    return Inspection(path, opened.inspect(path))


def engine_backend(path: Path) -> str:
    """Return the name of the backend that built an engine, from its sidecar."""
    return str(made_by(path)["backend"])


@dataclass(frozen=True)
class VerifyOptions:
    """How two files are compared."""

    recipe: str | None = None
    atol: float = 1e-5
    rtol: float = 1e-4
    source: str | None = None
    """Data set of the images; None: random ones."""
    count: int = 8


def verify(
    candidate: Path, reference: Path, options: VerifyOptions, *, progress: Progress = silent
) -> tuple[Agreement, ...]:
    """Return how each output, and each column of it, compares with `reference`.

    Raises: InputError, OptionError, BackendError.
    """
    opened: dict[Path, Opened] = {}
    size = None  # a checkpoint has none of its own: it takes that of the file it is compared with
    for path in sorted({candidate, reference}, key=lambda path: path.suffix in CHECKPOINTS):
        opened[path] = open_model(path, recipe=options.recipe, input_size=size)
        card = opened[path].card
        size = card.preprocess.size if card else None
    return verification.verify(
        opened[candidate].session,
        opened[reference].session,
        _feeds(opened[reference], options, progress),
        atol=options.atol,
        rtol=options.rtol,
        columns=True,
    )


def _feeds(opened: Opened, options: VerifyOptions, progress: Progress) -> Iterator[Arrays]:
    if options.source is None:
        feeds = (
            random_inputs.feeds(opened.session.inputs, seed=seed) for seed in range(options.count)
        )
        yield from progress(feeds, "compare", options.count)
        return
    data = sources.dataset(options.source)
    preprocess, name = opened.contract().preprocess, opened.images()
    for batch in samples.batches(data, preprocess, 1, limit=options.count, progress=progress):
        yield {name: batch.images}


@dataclass(frozen=True)
class EvalOptions:
    """What a model is evaluated on, and how it is run."""

    source: str
    recipe: str | None = None
    backend: str | None = None
    limit: int | None = None
    batch_size: int | None = None
    """Images per forward pass; None: see `samples.batch_size`."""
    threads: int = 0


def evaluate(
    path: Path, options: EvalOptions, *, record: Path | None = None, progress: Progress = silent
) -> AccuracyRecord:
    """Return the COCO average precision of a detector; appended to `record` where given.

    Raises: InputError, OutputError, BackendError.
    """
    places.check({"the model": path}, record=record)
    data = sources.dataset(options.source)
    opened = open_model(
        path, backend=options.backend, recipe=options.recipe, threads=options.threads
    )
    opened.images()  # raises where images are not all that it takes
    batch = opened.session.inputs[0].shape[0]
    batch_size = samples.batch_size(options.batch_size, batch, opened.contract().preprocess.size)
    scores = evaluation.evaluate(
        opened.forward,
        data,
        Contract(opened.contract().preprocess, opened.contract().class_names, opened.decode()),
        batch_size=batch_size,
        limit=options.limit,
        progress=progress,
    )
    found = AccuracyRecord(
        model=path.name,
        model_sha256=opened.sha256,
        metrics=scores.metrics(),
        images=scores.images,
        dataset=data.name,
        dataset_sha256=digest(sample.name for sample in data.samples),
        backend=opened.backend,
        protocol={"batch_size": batch_size},
        per_class=dict(scores.per_class),
    )
    if record is not None:
        records.append(record, found)
    return found


@dataclass(frozen=True)
class BenchPlan:
    """Which points are measured."""

    options: BenchOptions = field(default_factory=BenchOptions)
    batch_sizes: tuple[int, ...] = (1,)
    backend: str | None = None
    end_to_end: str | None = None
    """Data set of the images for the whole way from image to detections; None: device scope."""
    recipe: str | None = None
    """By name or as a file, over what a model's card says."""


def bench(
    paths: Sequence[Path],
    plan: BenchPlan,
    *,
    record: Path | None = None,
    progress: Progress = silent,
) -> tuple[BenchRecord, ...]:
    """Return one record per model and batch size; appended to `record` where given.

    Raises: InputError, OutputError, BackendError.
    """
    places.check({f"model {i}": p for i, p in enumerate(paths, start=1)}, record=record)
    opened = [
        open_model(path, backend=plan.backend, recipe=plan.recipe, threads=plan.options.threads)
        for path in paths
    ]
    found = []
    for model, batch_size in itertools.product(opened, plan.batch_sizes):
        options = replace(plan.options, batch_size=batch_size)
        measured = benchmarking.bench(
            model.session,
            _work(model, options, plan.end_to_end),
            options,
            subject=Subject(model.path.name, model.sha256, model.backend),
            instruments=Instruments(environment.describe, progress),
        )
        if record is not None:
            records.append(record, measured)
        found.append(measured)
    return tuple(found)


def _work(model: Opened, options: BenchOptions, source: str | None) -> Arrays | EndToEnd:
    if source is None:
        return random_inputs.feeds(model.session.inputs, seed=0, batch=options.batch_size)
    if model.backend == PYTORCH:
        raise OptionError("end-to-end timing of a checkpoint", fix="export it first")
    preprocess, name = model.contract().preprocess, model.images()
    chosen = samples.choose(sources.dataset(source).samples, _BENCH_IMAGES)
    turn = itertools.cycle(chosen)

    def prepare() -> tuple[Arrays, list[Geometry]]:
        placed = [preprocess(next(turn).read()) for _ in range(options.batch_size)]
        return {name: np.stack([pixels for pixels, _ in placed])}, [place for _, place in placed]

    return EndToEnd(prepare, model.decode())


def report(
    paths: Sequence[Path], output: Path, *, title: str = "deploykit report"
) -> tuple[str, tuple[Path, ...]]:
    """Return the summary table as text and the files written. Raises: InputError, OutputError."""
    reads = {f"file {i} of records": path for i, path in enumerate(paths, start=1)}
    for page in reporting.pages(output):
        places.check(reads, output=page)
    found = records.read(paths)
    written = reporting.report(found, output, title=title)
    return reporting.summary(found), written
