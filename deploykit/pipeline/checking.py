"""The verbs that judge a model: verify and evaluate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit import tasks
from deploykit.data import feeding, samples, sources
from deploykit.measuring import records
from deploykit.measuring.records import AccuracyRecord
from deploykit.pipeline import handing_in, intake, places, teaching
from deploykit.pipeline.made import path_or_none
from deploykit.pipeline.opening import kind, open_model
from deploykit.proof import random_inputs, verification
from deploykit.recipes import reading
from deploykit.recipes.describing import NOTHING
from deploykit.tasks import SHIPPED, evaluation
from deploykit.tasks.agreement import OfKinds, PaddedRows
from deploykit.tasks.evaluation import Contract
from deploykit.values import digest, silent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.backends import Arrays
    from deploykit.data.sources import Dataset
    from deploykit.pipeline.made import StrPath
    from deploykit.pipeline.opening import Model
    from deploykit.recipes.describing import Description
    from deploykit.recipes.metadata import ModelCard
    from deploykit.tasks import AnyTask, Pairing
    from deploykit.values import Agreement, Progress


@dataclass(frozen=True)
class VerifyOptions:
    """How two files are compared."""

    recipe: str | None = None
    atol: float = 1e-5
    rtol: float = 1e-4
    source: str | Dataset | None = None
    """Data set of the images; None: random ones."""
    count: int = 8
    about: Description = NOTHING
    """What the files do not say themselves."""


def verify(
    candidate: StrPath,
    reference: StrPath,
    options: VerifyOptions,
    *,
    task: str | AnyTask | None = None,
    progress: Progress = silent,
) -> tuple[Agreement, ...]:
    """Return how each output, and each column of it, compares with `reference`.

    task: How outputs are brought together; None: as the task of `reference` does.

    Raises: InputError, OptionError, BackendError.
    """
    candidate, reference = Path(candidate), Path(reference)
    opened: dict[Path, Model] = {}
    size = card = None  # a checkpoint has none of its own, nor have many files: as the other
    both = sorted({candidate, reference}, key=lambda path: kind(path) == "checkpoint")
    said = dict(zip(both, intake.shared(options.about, *both), strict=True))
    for path in (*both, both[0]):
        if path in opened and (opened[path].card or card is None):
            continue
        opened[path] = open_model(
            path, recipe=options.recipe, input_size=size, about=said[path], like=card
        )
        card = opened[path].card or card
        size = card.preprocess.size if card else None
    return verification.verify(
        opened[candidate].session,
        opened[reference].session,
        _feeds(opened[reference], options, progress),
        atol=options.atol,
        rtol=options.rtol,
        columns=True,
        pairing=_pairing(opened[reference], task),
    )


def _pairing(opened: Model, task: str | AnyTask | None) -> Pairing:
    """Return the pairing of a model's task, with what its card says of its outputs.

    Where neither the user nor the file names a task, rows of padded detections are paired.
    """
    outputs = opened.card.outputs if opened.card else ()
    if task is None and opened.recipe is None:
        named = SHIPPED.get(opened.card.task) if opened.card else None
        named = named and reading.as_made(named, opened.card)
        return OfKinds(named.agreement() if named else PaddedRows(), outputs)
    return OfKinds(opened.task(task).agreement(), outputs)


def _feeds(opened: Model, options: VerifyOptions, progress: Progress) -> Iterator[Arrays]:
    if options.source is None:
        preprocess = None if opened.card is None else opened.card.preprocess
        feeds = (
            random_inputs.feeds(opened.session.inputs, seed=seed, preprocess=preprocess)
            for seed in range(options.count)
        )
        yield from progress(feeds, "compare", options.count)
        return
    data = sources.dataset(options.source)
    opened.check_images()
    contract = opened.contract()
    for batch in samples.batches(
        data, contract.preprocess, 1, limit=options.count, progress=progress
    ):
        yield opened.feeds(batch.images, batch.geometries)


@dataclass(frozen=True)
class EvalOptions:
    """What a model is evaluated on, and how it is run."""

    source: str | Dataset
    recipe: str | None = None
    backend: str | None = None
    limit: int | None = None
    batch_size: int | None = None
    """Images per forward pass; None: see `samples.batch_size`."""
    threads: int = 0
    about: Description = NOTHING
    """What the file does not say itself."""
    against: StrPath | None = None
    """Another model, such as the float one: what it finds is the truth, and the source needs
    none."""
    predictions: StrPath | None = None
    """Folder for what is found, in the files that the makers of the data set take."""


def evaluate(
    path: StrPath,
    options: EvalOptions,
    *,
    task: str | AnyTask | None = None,
    record: StrPath | None = None,
    progress: Progress = silent,
) -> AccuracyRecord:
    """Return how well a model does its task; appended to `record` where given.

    task: The model's, by name or as a value of your own; None: the one that its file names.

    Raises: InputError, OutputError, BackendError.
    """
    path, record, against = Path(path), path_or_none(record), path_or_none(options.against)
    places.check({"the model": path, "--against": against}, record=record)
    data = sources.dataset(options.source)
    said = intake.shared(options.about, path, *filter(None, [against]))
    opened = _opened(path, options, said[0])
    batch = feeding.batch(opened.session.inputs[0])
    batch_size = samples.batch_size(options.batch_size, batch, opened.contract().preprocess.size)
    chosen, told = opened.task(task), dict[str, str]()
    if against is not None:
        teacher = _opened(against, replace(options, backend=None), said[1], opened.card)
        data = teaching.told_by((opened, teacher), (chosen, teacher.task(task)), data)
        told = {"against": teacher.path.name, "against_sha256": teacher.sha256}
    scores, images, shrunk, _ = evaluation.evaluate(
        opened.forward,
        handing_in.with_files(data, path_or_none(options.predictions)),
        Contract(opened.contract().preprocess, opened.contract().class_names, chosen),
        batch_size=batch_size,
        limit=options.limit,
        progress=progress,
    )
    found = AccuracyRecord(
        model=opened.path.name,
        model_sha256=opened.sha256,
        metrics=scores.metrics,
        images=images,
        dataset=data.name,
        dataset_sha256=digest([*(s.name for s in data.samples), *told.values()]),
        backend=opened.backend,
        protocol={"batch_size": batch_size, **told, **scores.protocol},
        per_class=scores.per_class,
        task=tasks.name(chosen),
        primary=scores.primary,
        warnings=(*opened.notes, *scores.notes, *_shrunk(shrunk, images)),
        display={name: shown for name, shown in scores.display.items() if name in scores.metrics},
    )
    if record is not None:
        records.append(record, found)
    return found


def _opened(
    path: Path, options: EvalOptions, about: Description, like: ModelCard | None = None
) -> Model:
    """Return a model that takes images; `like`: a card, where its file has none.

    Raises: as `open_model`; ModelError.
    """
    opened = open_model(
        path,
        backend=options.backend,
        recipe=options.recipe,
        threads=options.threads,
        about=about,
        like=like,
    )
    opened.check_images()
    return opened


def _shrunk(count: int, images: int) -> tuple[str, ...]:
    """Return a warning about images that were prepared smaller than their family does."""
    if not count:
        return ()
    text = (
        f"{count} of {images} images are larger than every input size at the scale of their "
        "family, and were shrunk: export with --fit SOURCE, or with more of --input-size"
    )
    return (text,)
