"""The verb bench: how fast models are, by device or from image to result."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.data import samples, sources
from deploykit.errors import OptionError
from deploykit.measuring import benchmarking, environment, records
from deploykit.measuring.benchmarking import BenchOptions, EndToEnd, Instruments, Subject
from deploykit.pipeline import places
from deploykit.pipeline.made import path_or_none
from deploykit.pipeline.opening import PYTORCH, open_model
from deploykit.proof import random_inputs
from deploykit.values import silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.backends import Arrays
    from deploykit.data.preprocess import Geometry
    from deploykit.pipeline.made import StrPath
    from deploykit.pipeline.opening import Model
    from deploykit.values import BenchRecord, Progress

_BENCH_IMAGES = 64
"""Images that an end-to-end measurement takes in turn."""


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
    paths: Sequence[StrPath],
    plan: BenchPlan,
    *,
    record: StrPath | None = None,
    progress: Progress = silent,
) -> tuple[BenchRecord, ...]:
    """Return one record per model and batch size; appended to `record` where given.

    Raises: InputError, OutputError, BackendError.
    """
    record = path_or_none(record)
    models = [Path(path) for path in paths]
    places.check({f"model {i}": p for i, p in enumerate(models, start=1)}, record=record)
    opened = [
        open_model(path, backend=plan.backend, recipe=plan.recipe, threads=plan.options.threads)
        for path in models
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


def _work(model: Model, options: BenchOptions, source: str | None) -> Arrays | EndToEnd:
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

    return EndToEnd(prepare, model.task().decode)
