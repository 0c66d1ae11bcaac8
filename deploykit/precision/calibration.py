"""Run a model over images and find the range of each tensor that will be INT8."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from deploykit.data import feeding, samples
from deploykit.data.arrays import Fed
from deploykit.errors import InputError, ModelError, OptionError
from deploykit.files import onnxfile
from deploykit.graph import canvases
from deploykit.precision import finiteness, observers, observing, tapping
from deploykit.precision.functions import is_positive
from deploykit.proof.acceptance import MEND
from deploykit.recipes import opened
from deploykit.values import CalibrationTable, TensorSpec, silent

if TYPE_CHECKING:
    from collections.abc import Container, Iterator, Sequence

    import onnx_ir as ir

    from deploykit.backends import Arrays
    from deploykit.data.arrays import ArraySet
    from deploykit.data.preprocess import Preprocess
    from deploykit.data.samples import Batch
    from deploykit.data.sources import Dataset
    from deploykit.precision.histograms import Extremes
    from deploykit.precision.observers import Observer
    from deploykit.recipes.opened import Opened
    from deploykit.values import Progress


_TAKEN = ("float32", "uint8")
"""Element types of an input of images."""


_PIXELS = 1 << 17
"""Of the images of a batch: what workers side by side observe is then small, and observed sooner
after it was computed."""
_LOOKED_AT = 3
"""Images whose channels are looked at one by one: one that is out of line is so in most images."""


@dataclass(frozen=True)
class CalibrationOptions:
    """How a model is calibrated."""

    observer: str = "mse"
    """One of `observers.OBSERVERS`. On the example detector mse costs the least AP, entropy the
    most: detectors live on the large activations that entropy clips."""
    size: int | None = None
    """Images to use, spread over the data set; None: all."""
    batch_size: int | None = None
    """Images per run; None: see `samples.batch_size`. The table does not depend on it."""
    percentile: float = observers.PERCENTILE
    """For the percentile observer alone."""
    candidates: bool = False
    """Keep what repairs ask: `CalibrationTable.candidates` and `reaches`."""
    skip_unreadable: bool = False
    """Leave unreadable images out and list them in the table, instead of failing."""


def calibrate(  # noqa: PLR0913 - model, images, tensors, and two independent options
    model: Opened,
    dataset: Dataset,
    preprocess: Preprocess,
    tensors: Sequence[str],
    *,
    options: CalibrationOptions | None = None,
    progress: Progress = silent,
) -> CalibrationTable:
    """Return the range of each of `tensors` over the images of `dataset`.

    The model has one input of images, see `feeding.formed`, which may be among the tensors. Files
    left out because they could not be read are in the table's `skipped`.

    Raises: ModelError for a model with another interface or without one of the tensors; DataError
        for images; OptionError for the options; InputError naming a tensor with NaN or infinity.
    """
    options = options or CalibrationOptions()
    observers.load(options.observer, options.percentile)  # raises before the model is run
    skipped: list[str] = []
    images = len(samples.choose(dataset.samples, options.size))  # raises before the model is read
    samples.batch_size(options.batch_size, 1, preprocess.size)  # likewise
    batch_size = _batch_size(model.graph, preprocess, options.batch_size)
    batches = samples.batches(
        dataset,
        preprocess,
        batch_size,
        limit=options.size,
        skipped=skipped if options.skip_unreadable else None,
        progress=progress,
    )
    table = _observed(model, batches, tensors, options, images)
    return replace(table, skipped=tuple(skipped), source=dataset.name)


def calibrate_on(
    model: Opened,
    data: ArraySet,
    tensors: Sequence[str],
    *,
    options: CalibrationOptions | None = None,
    progress: Progress = silent,
) -> CalibrationTable:
    """Return the range of each of `tensors` over arrays for the inputs of a model.

    Raises: as `calibrate`; DataError for arrays.
    """
    options = options or CalibrationOptions()
    count = len(samples.choose(data.samples, options.size))
    feeds = data.feeds(limit=options.size, batch=options.batch_size, progress=progress)
    return replace(_observed(model, feeds, tensors, options, count), source=data.name)


def _observed(
    model: Opened,
    batches: Iterator[Batch | Fed],
    tensors: Sequence[str],
    options: CalibrationOptions,
    count: int,
) -> CalibrationTable:
    """Return the ranges over batches of `count` samples, of a set that is not named yet."""
    observer = observers.load(options.observer, options.percentile)
    wanted, digest = tuple(dict.fromkeys(tensors)), model.digest
    with ThreadPoolExecutor(1, thread_name_prefix="first") as pool:
        # images are decoded while the model is opened
        first = pool.submit(lambda: list(islice(batches, 1)))
        sessions = {size: tapping.open_session(part, wanted) for size, part in _parts(model)}
        begun = chain(first.result(), batches)
    positive = {v.name for node in model.graph.graph if is_positive(node) for v in node.outputs}
    try:
        found = observing.observe(
            sessions,
            begun,
            lambda: {name: _memory(observer, name, positive) for name in wanted},
            count,
            looked_at=_LOOKED_AT if options.candidates else 0,
        )
    except observing.UnfiniteError as stopped:
        raise _explained(model, stopped) from stopped
    with ThreadPoolExecutor(tapping.most_workers()) as pool:
        chosen = pool.map(lambda name: observers.chosen_range(observer, found.seen[name]), wanted)
        ranges = dict(zip(wanted, chosen, strict=True))
    return CalibrationTable(
        model_sha256=digest.result(),
        observer=label(options),
        samples=found.names,
        samples_sha256=samples.fingerprint(found.names, found.pixel_sha256s),
        ranges=ranges,
        size=options.size,
        factors=model.factors,
        candidates=observers.Candidates(found.seen) if options.candidates else {},
        reaches=found.reaches,
        growing=found.growing,
    )


def _explained(model: Opened, stopped: observing.UnfiniteError) -> InputError:
    """Return what is said of a tensor that is not finite: the layer, and the image."""
    parts, batch = dict(_parts(model)), stopped.batch
    size = None if isinstance(batch, Fed) else (batch.images.shape[2], batch.images.shape[3])
    part = parts.get(size) or next(iter(parts.values()))
    said = finiteness.of_tensor(part, stopped.tensor, _one_by_one(part, batch))
    if not said:
        return stopped.error
    found = f"{stopped.error.found}: {said}"
    return InputError(found, expected="finite activations", fix=MEND)


def _one_by_one(model: Opened, batch: Batch | Fed) -> Iterator[tuple[str, Arrays]]:
    """Yield the name of each image of a batch, and a batch that holds nothing else."""
    inputs, _ = onnxfile.interface(model.graph)
    count = len(batch.names)
    whole = (
        batch.arrays
        if isinstance(batch, Fed)
        else feeding.feeds(inputs, batch.images, batch.geometries)
    )
    size = feeding.batch(inputs[0])
    times = size if isinstance(size, int) else 1
    for i, name in enumerate(batch.names):
        rows = {n: a[i : i + 1] for n, a in whole.items() if a.ndim and len(a) == count}
        yield name, {**whole, **{n: np.repeat(row, times, 0) for n, row in rows.items()}}


def _memory(observer: Observer, tensor: str, positive: Container[str | None]) -> Extremes:
    found = observer.remember(tensor)
    found.positive = tensor in positive
    return found


def _parts(model: Opened) -> Iterator[tuple[tuple[int, int] | None, Opened]]:
    """Yield a model for each size of image, one after the other; the only one has no size."""
    if len(canvases.sizes(model.graph)) < 2:
        yield None, model
        return
    for size, graph in canvases.split(model.copy()).items():
        yield size, opened.made(graph, model.path)


def label(options: CalibrationOptions) -> str:
    """Return what a table says of the method, such as `percentile 99.9`."""
    exact = f" {options.percentile:g}" if options.observer == "percentile" else ""
    return options.observer + exact


def _batch_size(model: ir.Model, preprocess: Preprocess, asked: int | None) -> int:
    """Return the images per run. Raises: ModelError, OptionError where the model takes others."""
    inputs, _ = onnxfile.interface(model)
    wanted = TensorSpec("images", "float32", ("batch", preprocess.planes, *preprocess.size))
    images = feeding.takes_images(inputs) and inputs[0].dtype in _TAKEN
    if not images or not _fits(feeding.nchw(inputs[0]), wanted):
        fix = "calibrate an image model, with the preprocessing that it was trained with"
        if len(inputs) > 1:
            fix = (
                "--input NAME=NUMBER or NAME=FILE.npy gives an input beside the images its value; "
                "--calib-data DIR calibrates on arrays for all of them"
            )
        raise ModelError(
            f"the model's inputs are {'; '.join(map(str, inputs)) or 'none'}",
            expected=f"{wanted} alone, as the preprocessing makes it",
            fix=fix,
        )
    fixed = feeding.batch(inputs[0])
    batch_size = samples.batch_size(asked, fixed, preprocess.size, pixels=_PIXELS)
    if isinstance(fixed, int) and fixed != batch_size:
        raise OptionError(
            f"a batch size of {batch_size} for the input {inputs[0]}",
            fix=f"use a batch size of {fixed}, or export the model with a dynamic batch",
        )
    return batch_size


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    """Return whether the sizes agree, apart from the batch; a named size takes any value."""
    sizes = zip(found.shape[1:], wanted.shape[1:], strict=True)
    return all(isinstance(has, str) or has == want for has, want in sizes)
