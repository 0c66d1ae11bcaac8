"""Run a model over images and find the range of each tensor that will be INT8.

Images are decoded, run through the model and observed at the same time. Memory holds a batch of
the observed tensors per worker and does not grow with the number of images.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, cast

import onnx_ir as ir
import onnxruntime as ort

from deploykit.data import feeding, samples
from deploykit.errors import ModelError, OptionError, unknown_name
from deploykit.files import onnxfile
from deploykit.graph import canvases
from deploykit.precision import memory, observers
from deploykit.values import CalibrationTable, TensorSpec, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from deploykit.data.preprocess import Floats, Preprocess
    from deploykit.data.samples import Batch
    from deploykit.data.sources import Dataset
    from deploykit.precision.observers import Extremes
    from deploykit.recipes.opened import Opened
    from deploykit.values import Progress

    Seen: TypeAlias = dict[str, Extremes]
    Sessions: TypeAlias = Mapping[tuple[int, int] | None, ort.InferenceSession]

_FLOAT32 = "tensor(float)"
"""float32 in the runtime's words."""
_MOST_WORKERS = 4
"""Batches at a time: one core each is faster than all cores on one, but takes memory."""
_HELD = 3
"""Times the size of the observed tensors that a worker holds: the runtime's own come with them."""


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

    The model has one input, float32[N, 3, H, W], which may be among the tensors. Files left out
    because they could not be read are in the table's `skipped`.

    Raises: ModelError for a model with another interface or without one of the tensors; DataError
        for images; OptionError for the options; InputError naming a tensor with NaN or infinity.
    """
    options = options or CalibrationOptions()
    observer = observers.load(options.observer, options.percentile)
    skipped: list[str] = []
    samples.choose(dataset.samples, options.size)  # raises before the model is read
    samples.batch_size(options.batch_size, 1, preprocess.size)  # likewise
    graph = model.copy()
    batch_size = _batch_size(graph, preprocess, options.batch_size)
    batches = samples.batches(
        dataset,
        preprocess,
        batch_size,
        limit=options.size,
        skipped=skipped if options.skip_unreadable else None,
        progress=progress,
    )
    wanted = tuple(dict.fromkeys(tensors))
    parts = canvases.split(graph)
    sessions = {size: _open(part, model.path, wanted) for size, part in parts.items()}
    del graph, parts  # the sessions have their own copies of the weights
    seen, names, pixel_sha256s = _observe(
        sessions, batches, lambda: {name: observer.remember(name) for name in wanted}
    )
    return CalibrationTable(
        model_sha256=model.sha256,
        observer=label(options),
        samples=tuple(names),
        samples_sha256=samples.fingerprint(names, pixel_sha256s),
        ranges={name: observers.chosen_range(observer, seen[name]) for name in wanted},
        skipped=tuple(skipped),
        source=dataset.name,
        size=options.size,
    )


def label(options: CalibrationOptions) -> str:
    """Return what a table says of the method, such as `percentile 99.9`."""
    exact = f" {options.percentile:g}" if options.observer == "percentile" else ""
    return options.observer + exact


def _observe(
    sessions: Sessions, batches: Iterator[Batch], remember: Callable[[], Seen]
) -> tuple[Seen, list[str], list[str]]:
    """Return what was seen in all batches, and the names and the hashes of the images in order.

    Workers run and observe whole batches side by side, each into a memory of its own; merging is
    exact, so the result depends on neither their number nor their order. The first batch says how
    much memory one takes, and so how many there can be.
    """
    found: dict[int, tuple[str, str]] = {}
    workers = 1
    spare: SimpleQueue[Seen] = SimpleQueue()
    spare.put(remember())
    running: deque[Future[int]] = deque()
    with ThreadPoolExecutor(_workers(), thread_name_prefix="observer") as pool:
        for number, batch in enumerate(batches):
            read = zip(batch.names, batch.pixel_sha256s, strict=True)
            found |= zip(batch.places, read, strict=True)
            if len(running) == workers:
                size = running.popleft().result()
                if number == 1:
                    workers = _affordable(size)
                    for _ in range(workers - 1):
                        spare.put(remember())
            running.append(pool.submit(_take_in, _for(batch, sessions), batch, spare))
        for future in running:
            future.result()
    seen = spare.get()
    for _ in range(workers - 1):
        for name, other in spare.get().items():
            seen[name].merge(other)
    ordered = [found[place] for place in sorted(found)]
    return seen, [name for name, _ in ordered], [sha256 for _, sha256 in ordered]


def _for(batch: Batch, sessions: Sessions) -> ort.InferenceSession:
    """Return the session of a batch's size, or the only one, which takes any."""
    height, width = batch.images.shape[2:]
    return sessions.get((height, width)) or next(iter(sessions.values()))


def _workers() -> int:
    return min(_MOST_WORKERS, os.cpu_count() or 1)


def _affordable(size: int) -> int:
    """Return how many workers there is memory for, when a batch has `size` bytes of tensors."""
    available = memory.available()
    more = _workers() if available is None else available // max(1, size * _HELD)
    return min(_workers(), 1 + more)


def _run(session: ort.InferenceSession, batch: Batch, seen: Iterable[str]) -> dict[str, Floats]:
    names = [spec.name for spec in session.get_inputs()]
    feeds = cast("dict[str, Floats]", feeding.feeds(names, batch.images, batch.geometries))
    values = dict(feeds)
    inner = [name for name in seen if name not in feeds]
    if inner:
        try:
            outputs = session.run(inner, feeds)
        except Exception as error:  # the errors of the runtime have no common class
            raise ModelError(
                f"ONNX Runtime failed on images of shape {batch.images.shape}: {error}"
            ) from error
        values |= zip(inner, cast("list[Floats]", outputs), strict=True)
    return values


def _take_in(session: ort.InferenceSession, batch: Batch, spare: SimpleQueue[Seen]) -> int:
    """Run and observe a batch with a spare memory; return the bytes of what was observed.

    Each array is freed as soon as it is done.
    """
    seen = spare.get()
    try:
        values = _run(session, batch, seen)
        size = sum(array.nbytes for array in values.values())
        while values:
            name, array = values.popitem()
            if name in seen:
                seen[name].observe(array)
            del array
        return size
    finally:
        spare.put(seen)


def _expose(graph: ir.Graph, path: Path, tensors: Iterable[str]) -> None:
    """Make `tensors` outputs of the graph in memory; an input needs no such thing."""
    values = {value.name: value for node in graph for value in node.outputs if value.name}
    inputs = {value.name for value in graph.inputs}
    for name in tensors:
        if name in inputs or any(value.name == name for value in graph.outputs):
            continue
        if name not in values:
            near = unknown_name("tensor", name, values).fix
            raise ModelError(f"{path} computes no tensor {name!r}", fix=near)
        graph.outputs.append(values[name])


def _open(model: ir.Model, path: Path, tensors: Sequence[str]) -> ort.InferenceSession:
    """Return a session that computes `tensors`, all of them float32."""
    _expose(model.graph, path, tensors)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # an error is raised, so it need not be logged too
    options.intra_op_num_threads = max(1, (os.cpu_count() or 1) // _workers())
    # A thread that waits for work leaves its core to the observers and the decoders.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    ir.external_data.load_to_model(model)
    data = ir.to_proto(model).SerializeToString()
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the errors of the runtime have no common class
        raise ModelError(f"ONNX Runtime cannot run {path}: {error}") from error
    types = {output.name: output.type for output in session.get_outputs()}
    for name in tensors:
        if types.get(name, _FLOAT32) != _FLOAT32:
            raise ModelError(
                f"cannot calibrate {name!r}, a {types[name]}",
                expected=_FLOAT32,
                fix="calibrate the float32 model, before its precision is converted",
            )
    return session


def _batch_size(model: ir.Model, preprocess: Preprocess, asked: int | None) -> int:
    """Return the images per run. Raises: ModelError, OptionError where the model takes others."""
    inputs, _ = onnxfile.interface(model)
    wanted = TensorSpec("images", "float32", ("batch", 3, *preprocess.size))
    if not feeding.takes_images(inputs) or not _fits(inputs[0], wanted):
        raise ModelError(
            f"the model's inputs are {'; '.join(map(str, inputs)) or 'none'}",
            expected=f"{wanted} alone, as the preprocessing makes it",
            fix="calibrate an image model, with the preprocessing that it was trained with",
        )
    fixed = inputs[0].shape[0]
    batch_size = samples.batch_size(asked, fixed, preprocess.size)
    if isinstance(fixed, int) and fixed != batch_size:
        raise OptionError(
            f"a batch size of {batch_size} for the input {inputs[0]}",
            fix=f"use a batch size of {fixed}, or export the model with a dynamic batch",
        )
    return batch_size


def _fits(found: TensorSpec, wanted: TensorSpec) -> bool:
    """Return whether type and sizes agree, apart from the batch; a named size takes any value."""
    sizes = zip(found.shape[1:], wanted.shape[1:], strict=False)
    return (
        found.dtype == wanted.dtype
        and len(found.shape) == len(wanted.shape)
        and all(isinstance(has, str) or has == want for has, want in sizes)
    )
