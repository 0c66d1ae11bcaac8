"""The verbs that judge a model: verify and evaluate."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.data import samples, sources
from deploykit.measuring import records
from deploykit.measuring.records import AccuracyRecord
from deploykit.pipeline import places
from deploykit.pipeline.made import path_or_none
from deploykit.pipeline.opening import kind, open_model
from deploykit.proof import random_inputs, verification
from deploykit.tasks import evaluation
from deploykit.tasks.evaluation import Contract
from deploykit.values import digest, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.backends import Arrays
    from deploykit.pipeline.made import StrPath
    from deploykit.pipeline.opening import Model
    from deploykit.values import Agreement, Progress


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
    candidate: StrPath, reference: StrPath, options: VerifyOptions, *, progress: Progress = silent
) -> tuple[Agreement, ...]:
    """Return how each output, and each column of it, compares with `reference`.

    Raises: InputError, OptionError, BackendError.
    """
    candidate, reference = Path(candidate), Path(reference)
    opened: dict[Path, Model] = {}
    size = None  # a checkpoint has none of its own: it takes that of the file it is compared with
    for path in sorted({candidate, reference}, key=lambda path: kind(path) == "checkpoint"):
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


def _feeds(opened: Model, options: VerifyOptions, progress: Progress) -> Iterator[Arrays]:
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
    path: StrPath,
    options: EvalOptions,
    *,
    record: StrPath | None = None,
    progress: Progress = silent,
) -> AccuracyRecord:
    """Return the COCO average precision of a detector; appended to `record` where given.

    Raises: InputError, OutputError, BackendError.
    """
    path, record = Path(path), path_or_none(record)
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
        model=opened.path.name,
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
