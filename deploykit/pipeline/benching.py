"""The verb bench: how fast models are, by device or from image to result."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.data import feeding, samples, sources
from deploykit.errors import OptionError
from deploykit.measuring import benchmarking, environment, records
from deploykit.measuring.benchmarking import BenchOptions, EndToEnd, Instruments, Subject
from deploykit.pipeline import places
from deploykit.pipeline.made import path_or_none
from deploykit.pipeline.opening import PYTORCH, open_model
from deploykit.proof import random_inputs
from deploykit.recipes.describing import NOTHING
from deploykit.tasks import matching
from deploykit.values import digest, silent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploykit.backends import Arrays
    from deploykit.data.preprocess import Geometry, Pixels
    from deploykit.data.sources import Dataset
    from deploykit.pipeline.made import StrPath
    from deploykit.pipeline.opening import Model
    from deploykit.recipes.describing import Description
    from deploykit.values import BenchRecord, Progress

_BENCH_IMAGES = 64
"""Images that batches are drawn from."""
_MOST_BYTES = 1 << 29
"""Of decoded images in memory, beyond which no more are taken."""
_SEED = 0


@dataclass(frozen=True)
class BenchPlan:
    """Which points are measured."""

    options: BenchOptions = field(default_factory=BenchOptions)
    batch_sizes: tuple[int, ...] = ()
    """None named: as many images as a model's input holds, one where it holds any number."""
    backend: str | None = None
    end_to_end: str | Dataset | None = None
    """Data set of the images for the whole way from image to results; None: device scope."""
    recipe: str | None = None
    """By name or as a file, over what a model's card says."""
    inputs: str | Dataset | None = None
    """Data set of the images that the model alone is fed with; None: random numbers."""
    about: Description = NOTHING
    """What the files do not say themselves."""

    @property
    def images(self) -> str | Dataset | None:
        """Return the data set that images are taken from."""
        return self.inputs if self.end_to_end is None else self.end_to_end


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
        open_model(
            path,
            backend=plan.backend,
            recipe=plan.recipe,
            threads=plan.options.threads,
            about=plan.about,
        )
        for path in models
    ]
    data = None if plan.images is None else sources.dataset(plan.images)
    images = _decoded(data) if data else []
    found = []
    pairs = ((model, n) for model in opened for n in plan.batch_sizes or (_held(model),))
    for model, batch_size in pairs:
        options = replace(plan.options, batch_size=batch_size)
        work = _work(model, options, plan, images)
        measured = benchmarking.bench(
            model.session,
            work,
            options,
            subject=Subject(model.path.name, model.sha256, model.backend),
            instruments=Instruments(environment.describe, progress),
            inputs=_described(data, len(images)),
        )
        measured = replace(measured, warnings=(*model.notes, *measured.warnings))
        if data is None and not isinstance(work, EndToEnd):
            measured = _warned(measured, model, work)
        if record is not None:
            records.append(record, measured)
        found.append(measured)
    return tuple(found)


def _held(model: Model) -> int:
    """Return the batch of a model's first input, 1 where that may be any."""
    batch = feeding.batch(model.session.inputs[0]) if model.session.inputs else 1
    return batch if isinstance(batch, int) else 1


def _decoded(data: Dataset) -> list[Pixels]:
    """Return the images that are measured on, decoded: files are read, and drawn ones drawn, once.

    As many as fit in memory, at least one.
    """
    found: list[Pixels] = []
    for sample in samples.choose(data.samples, _BENCH_IMAGES):
        if sum(image.nbytes for image in found) < _MOST_BYTES:
            found.append(sample.read())
    return found


def _described(data: Dataset | None, images: int) -> dict[str, Any]:
    """Return what the record says about the images."""
    if data is None:
        return {"kind": "random numbers", "seed": _SEED}
    return {
        "kind": "images, decoded before the clock starts; each batch drawn anew",
        "seed": _SEED,
        "dataset": data.name,
        "dataset_sha256": digest(sample.name for sample in data.samples),
        "images": images,
    }


def _warned(record: BenchRecord, model: Model, feeds: Arrays) -> BenchRecord:
    """Return the record with a warning where random inputs give a detector little to do."""
    outputs = model.session.run(feeds)
    if not matching.applies(outputs):
        return record
    mean = float(outputs["count"].mean())
    text = (
        f"the inputs are random numbers, in which the model finds {mean:.3g} objects per image: "
        "where its work grows with what it finds, photographs take longer; give some with --inputs"
    )
    return replace(record, warnings=(*record.warnings, text))


def _work(
    model: Model, options: BenchOptions, plan: BenchPlan, images: Sequence[Pixels]
) -> Arrays | EndToEnd:
    """Return what is timed: one batch again and again, or the way from images to results."""
    if not images:
        return random_inputs.feeds(model.session.inputs, seed=_SEED, batch=options.batch_size)
    if model.backend == PYTORCH and plan.end_to_end:
        raise OptionError("end-to-end timing of a checkpoint", fix="export it first")
    model.check_images()
    preprocess = model.contract().preprocess
    # Batches that repeat in turn would make the times depend on each other.
    drawn = np.random.default_rng(_SEED)
    sizes = [preprocess.fit(*image.shape[:2]).canvas for image in images]

    def prepare() -> tuple[Arrays, list[Geometry]]:
        size = sizes[drawn.integers(len(images))]  # of a batch: as often as in the data set
        alike = [i for i, other in enumerate(sizes) if other == size]
        few = len(alike) < options.batch_size
        chosen = drawn.choice(alike, options.batch_size, replace=few)
        placed = [preprocess(images[i]) for i in chosen]
        places = [place for _, place in placed]
        return model.feeds(np.stack([pixels for pixels, _ in placed]), places), places

    return EndToEnd(prepare, model.task().decode) if plan.end_to_end else prepare()[0]
